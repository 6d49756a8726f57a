"""High-dimensional Gaussian filtering: one linear operator that the dense CRF and the dense energy loss share.

``K v`` with ``K_ij = exp(-|f_i - f_j|^2 / 2)`` over N points with features ``f``: exactly, or on the permutohedral
lattice (Adams, Baek, Davis 2010), whose kernel is about 0.58 of the exact one and whose cost grows with N instead of
N^2. Arrays in, arrays out; torch is imported only for tensors or a torch backend, so that a
worker process that runs CRFs on the CPU never imports it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Backend = Literal["auto", "lattice", "lattice-cpp", "lattice-torch", "exact", "brute"]
BACKENDS: tuple[str, ...] = get_args(Backend)
EXACT_ON_GPU = 25_600
"""Points up to which ``auto`` filters exactly on a GPU: 160 x 160, the grid of RRM's energy loss."""
NOT_BUILT = (
    "the compiled lattice models/crf/_lattice is missing. Install a C++ compiler and Python's headers"
    " (Debian, Ubuntu: apt-get install g++ python3-dev), then build it: make -B setup"
)

FloatArray = NDArray[np.float32]


class GaussianFilter:
    """``filter.apply(values_nk)`` is ``K v`` for the points that it was built for.

    ``features_nd`` ``(N, D)``: floats in units of the standard deviation, finite; an array, or a tensor on ``device``.
    Backends (``self.backend`` says which one was chosen):

    - ``lattice-cpp``: the compiled permutohedral lattice, float32, D up to 7, one thread a call, the GIL released
    - ``lattice-torch``: the same in torch, for CUDA
    - ``exact``: every pair, in torch, any float dtype, memory bounded
    - ``brute``: every pair in float64 at once, N^2 memory; for tests
    - ``lattice``: the lattice that suits ``device``; ``auto``: that, or ``exact`` for few points on a GPU

    Raises ``ValueError`` on another shape, NaN, infinity, an unknown backend, or one that ``device`` cannot run,
    and ``ImportError`` where ``lattice-cpp`` is wanted and not built.
    """

    def __init__(self, features_nd: NDArray[Any] | Tensor, backend: str = "auto", device: str = "cpu") -> None:
        self.points, self.dimensions = _shape_of(features_nd)
        self.device = device
        self.backend = choose_backend(backend, device, self.points)
        self._engine = _ENGINES[self.backend](features_nd, device)
        self._row_sums: FloatArray | None = None

    @property
    def symmetric(self) -> bool:
        """Whether ``K`` is its own transpose. The lattice's is not: its blurs run in one order."""
        return self.backend in ("exact", "brute")

    @property
    def nbytes(self) -> int:
        """Memory that the filter holds between calls."""
        return int(self._engine.nbytes)

    @property
    def lattice(self) -> Any:
        """The compiled lattice, for :func:`models.crf.mean_field.mean_field`; other backends have none."""
        return self._engine.lattice

    @overload
    def apply(self, values_nk: NDArray[Any], transpose: bool = False) -> NDArray[Any]: ...

    @overload
    def apply(self, values_nk: Tensor, transpose: bool = False) -> Tensor: ...

    def apply(self, values_nk: NDArray[Any] | Tensor, transpose: bool = False) -> NDArray[Any] | Tensor:
        """``K v`` (or ``K^T v``) for ``(N, K)`` floating values: an array for an array, a tensor for a tensor.

        Lattices compute in float32, the others in the values' dtype (float32 at least; ``brute`` in float64). The
        result has the values' dtype. For tensors the gradient in the values is the filter's transpose. Raises
        ``ValueError`` on another shape or dtype, and on NaN or infinity in an array.
        """
        _check_values(values_nk, self.points)
        if isinstance(values_nk, np.ndarray):
            filtered: NDArray[Any] = self._engine.apply_array(values_nk, transpose)
            return filtered
        if not self._engine.takes_tensors and values_nk.device.type != "cpu":
            raise ValueError(f"values on {values_nk.device}, but {self.backend} filters on the CPU")
        found: Tensor = self._engine.apply_tensor(values_nk, transpose)
        return found

    def diagonal(self) -> FloatArray:
        """``K_ii`` ``(N,) float32``, of the complete lattice for lattice backends: what ``i != j`` takes away."""
        return np.asarray(self._engine.diagonal(), dtype=np.float32)

    @property
    def row_sums(self) -> FloatArray:
        """``K 1`` ``(N,) float32``: what a CRF normalises by; kept."""
        # No functools.cached_property: in Python 3.11 one lock of all filters would make threads wait for each other.
        if self._row_sums is None:
            self._row_sums = self.apply(np.ones((self.points, 1), np.float32))[:, 0]
        return self._row_sums


def choose_backend(name: str, device: str, points: int) -> str:
    """The backend that ``name`` means on ``device`` ("cpu", "cuda", "cuda:1") for that many points."""
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r} is none of {', '.join(BACKENDS)}")
    on_gpu = not device.startswith("cpu")
    if name == "auto" and on_gpu and points <= EXACT_ON_GPU:
        return "exact"
    if name in ("auto", "lattice"):
        return "lattice-torch" if on_gpu else "lattice-cpp"
    if on_gpu and name in ("lattice-cpp", "brute"):
        raise ValueError(f"backend {name!r} runs on the CPU, not on {device!r}; use lattice or exact")
    return name


def position_features(height: int, width: int, sxy: float) -> FloatArray:
    """``(H W, 2)``: x and y in units of ``sxy`` pixels, row by row (Krähenbühl & Koltun 2011, eq. 3, second term)."""
    return np.ascontiguousarray(_grid(height, width, sxy).reshape(-1, 2))


def bilateral_features(image_rgb: NDArray[np.uint8], sxy: float, srgb: float) -> FloatArray:
    """``(H W, 5)``: x and y over ``sxy`` pixels, r, g, b over ``srgb`` grey levels (eq. 3, first term)."""
    height, width = image_rgb.shape[:2]
    features = np.empty((height, width, 5), np.float32)
    features[..., :2] = _grid(height, width, sxy)
    np.divide(image_rgb, np.float32(srgb), out=features[..., 2:], dtype=np.float32)
    return features.reshape(-1, 5)


def _grid(height: int, width: int, sxy: float) -> FloatArray:
    grid = np.empty((height, width, 2), np.float32)
    grid[..., 0] = (np.arange(width, dtype=np.float32) / np.float32(sxy))[None, :]
    grid[..., 1] = (np.arange(height, dtype=np.float32) / np.float32(sxy))[:, None]
    return grid


@functools.lru_cache(maxsize=4)
def spatial_filter(height: int, width: int, sxy: float, backend: str = "auto", device: str = "cpu") -> GaussianFilter:
    """The filter over positions alone, kept for the next images of the same size: colours have no part in it."""
    return GaussianFilter(position_features(height, width, sxy), backend, device)


# --- backends -------------------------------------------------------------------------------------------------------


class _CompiledLattice:
    """``models.crf._lattice``, on plain arrays."""

    takes_tensors = False

    def __init__(self, features_nd: Any) -> None:
        try:
            from models.crf import _lattice
        except ImportError as error:
            raise ImportError(f"{NOT_BUILT} ({error})") from error
        self.module = _lattice
        self.lattice = _lattice.build(np.ascontiguousarray(_as_array(features_nd), dtype=np.float32))

    @property
    def nbytes(self) -> int:
        return int(self.lattice.nbytes)

    def apply_array(self, values_nk: NDArray[Any], transpose: bool) -> NDArray[Any]:
        values = np.ascontiguousarray(values_nk, dtype=np.float32)
        return np.asarray(self.module.apply(self.lattice, values, transpose)).astype(values_nk.dtype, copy=False)

    def apply_tensor(self, values_nk: Tensor, transpose: bool) -> Tensor:
        return _through_arrays(self, values_nk, transpose)

    def diagonal(self) -> FloatArray:
        return np.asarray(self.module.diagonal(self.lattice))


class _Torch:
    """What runs on tensors; arrays go there and come back."""

    takes_tensors = True
    lattice: Any = None

    def __init__(self, features_nd: Any, device: str) -> None:
        import torch

        self.device = device
        self.features = torch.as_tensor(features_nd).detach().to(device)
        if not bool(self.features.isfinite().all()):
            raise ValueError("features hold NaN or infinity")

    @property
    def nbytes(self) -> int:
        return int(self.features.nbytes)

    def apply_tensor(self, values_nk: Tensor, transpose: bool) -> Tensor:
        from models.crf.exact import exact_apply

        return exact_apply(self.features, values_nk)  # symmetric: its own transpose

    def apply_array(self, values_nk: NDArray[Any], transpose: bool) -> NDArray[Any]:
        import torch

        values = torch.from_numpy(np.ascontiguousarray(values_nk)).to(self.device)
        return np.asarray(self.apply_tensor(values, transpose).cpu().numpy())

    def diagonal(self) -> FloatArray:
        return np.ones(len(self.features), np.float32)


class _TorchLattice(_Torch):
    def __init__(self, features_nd: Any, device: str) -> None:
        from models.crf import lattice_torch

        super().__init__(features_nd, device)
        self.torch_lattice = lattice_torch.build(self.features.float())

    @property
    def nbytes(self) -> int:
        return int(self.torch_lattice.nbytes)

    def apply_tensor(self, values_nk: Tensor, transpose: bool) -> Tensor:
        found: Tensor = _tensor_function().apply(values_nk, self.torch_lattice, transpose)
        return found

    def diagonal(self) -> FloatArray:
        from models.crf import lattice_torch

        return np.asarray(lattice_torch.diagonal(self.torch_lattice).cpu().numpy())


class _Brute:
    takes_tensors = False
    lattice: Any = None

    def __init__(self, features_nd: Any) -> None:
        from models.crf.exact import brute_kernel

        self.kernel = brute_kernel(_as_array(features_nd))

    @property
    def nbytes(self) -> int:
        return int(self.kernel.nbytes)

    def apply_array(self, values_nk: NDArray[Any], transpose: bool) -> NDArray[Any]:
        return np.asarray(self.kernel @ values_nk).astype(values_nk.dtype)

    def apply_tensor(self, values_nk: Tensor, transpose: bool) -> Tensor:
        return _through_arrays(self, values_nk, transpose)

    def diagonal(self) -> FloatArray:
        return np.ones(len(self.kernel), np.float32)


_ENGINES: dict[str, Any] = {
    "lattice-cpp": lambda features_nd, device: _CompiledLattice(features_nd),
    "lattice-torch": _TorchLattice,
    "exact": _Torch,
    "brute": lambda features_nd, device: _Brute(features_nd),
}


# --- gradients ------------------------------------------------------------------------------------------------------


def _through_arrays(engine: Any, values_nk: Tensor, transpose: bool) -> Tensor:
    found: Tensor = _array_function().apply(values_nk, engine, transpose)
    return found


@functools.cache
def _array_function() -> Any:
    """The autograd function of an engine on arrays; its backward is the transpose."""
    import torch

    class ArrayFilter(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values_nk: Tensor, engine: Any, transpose: bool) -> Tensor:
            ctx.engine, ctx.transpose = engine, transpose
            return torch.from_numpy(engine.apply_array(_as_array(values_nk), transpose)).to(values_nk.dtype)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad_nk: Tensor) -> tuple[Tensor, None, None]:
            found = ctx.engine.apply_array(_as_array(grad_nk), not ctx.transpose)
            return torch.from_numpy(found).to(grad_nk.dtype), None, None

    return ArrayFilter


@functools.cache
def _tensor_function() -> Any:
    """The autograd function of the torch lattice; its backward is the transpose."""
    import torch

    from models.crf import lattice_torch

    class TensorFilter(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values_nk: Tensor, lattice: Any, transpose: bool) -> Tensor:
            ctx.lattice, ctx.transpose = lattice, transpose
            return lattice_torch.apply(lattice, values_nk.float(), transpose).to(values_nk.dtype)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad_nk: Tensor) -> tuple[Tensor, None, None]:
            found = lattice_torch.apply(ctx.lattice, grad_nk.float(), not ctx.transpose)
            return found.to(grad_nk.dtype), None, None

    return TensorFilter


# --- what is checked ------------------------------------------------------------------------------------------------


def _shape_of(features_nd: Any) -> tuple[int, int]:
    shape = tuple(features_nd.shape)
    if len(shape) != 2 or not all(shape):
        raise ValueError(f"features must be (points, dimensions), at least one of each, not {shape}")
    floating = (
        np.issubdtype(features_nd.dtype, np.floating)
        if isinstance(features_nd, np.ndarray)
        else features_nd.is_floating_point()
    )
    if not floating:
        raise ValueError(f"features must be floating numbers, not {features_nd.dtype}")
    return int(shape[0]), int(shape[1])


def _check_values(values_nk: Any, points: int) -> None:
    shape = tuple(values_nk.shape)
    if len(shape) != 2 or shape[0] != points:
        raise ValueError(f"values must be ({points}, channels), one row a point of the filter, not {shape}")
    is_array = isinstance(values_nk, np.ndarray)
    floating = np.issubdtype(values_nk.dtype, np.floating) if is_array else values_nk.is_floating_point()
    if not floating:
        raise ValueError(f"values must be floating numbers, not {values_nk.dtype}")
    # Only arrays are checked for NaN: a check on a GPU would wait for it.
    if is_array and not np.isfinite(values_nk.sum(dtype=np.float64)) and not np.isfinite(values_nk).all():
        raise ValueError("values hold NaN or infinity: they would spread to every point")


def _as_array(given: Any) -> NDArray[Any]:
    if isinstance(given, np.ndarray):
        return given
    tensor = given.detach().cpu()
    # What numpy does not have is bfloat16.
    return np.asarray((tensor.float() if tensor.itemsize < 4 else tensor).numpy())
