"""What decides a dense CRF: its parameters, and the sets that papers and their released code have used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from tasks.bounds import bounded, number
from tasks.stage import PARAMS_CONFIG

Backend = Literal["auto", "lattice", "lattice-cpp", "lattice-torch", "exact", "brute", "pydensecrf"]
Normalisation = Literal["symmetric", "before", "after", "none"]
Preset = Literal["ahn-kwak-cam", "deeplab-largefov", "deeplab-v2", "rrm-test", "bbox-seg"]


@dataclass(frozen=True)
class CRFParams:
    """A fully connected CRF of two Gaussian terms (Krähenbühl & Koltun 2011, eq. 3).

    ``w1 exp(-|p_i-p_j|^2 / 2 bilateral_sxy^2 - |I_i-I_j|^2 / 2 bilateral_srgb^2) + w2 exp(-|p_i-p_j|^2 / 2
    gaussian_sxy^2)`` with w1 = ``bilateral_compat`` and w2 = ``gaussian_compat``. Lengths are pixels, colours 0..255.
    ``backend`` decides results and therefore addresses (``exact`` and the lattice agree on some 99.5 % of labels);
    ``auto`` names ONE algorithm, the lattice: whether its C++ or its torch form runs it is rounding.

    Raises ``ValueError`` naming the field for a value outside of its bounds.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG

    iterations: int = number(10, 0, 1000, "mean-field iterations; 0: the unaries alone")
    gaussian_sxy: float = number(3.0, 0.01, 10_000.0, "standard deviation of the position term, pixels")
    gaussian_compat: float = number(3.0, 0.0, 10_000.0, "weight of the position term; 0: without")
    bilateral_sxy: float = number(80.0, 0.01, 10_000.0, "standard deviation in position of the colour term, pixels")
    bilateral_srgb: float = number(13.0, 0.01, 10_000.0, "standard deviation in colour of the colour term, 0..255")
    bilateral_compat: float = number(10.0, 0.0, 10_000.0, "weight of the colour term; 0: without")
    normalisation: Normalisation = field(
        default="symmetric",
        metadata={"help": "kernel's rows divided by their sums: symmetric (both roots), before, after, or none"},
    )
    backend: Backend = field(
        default="auto", metadata={"help": "auto, lattice[-cpp|-torch], exact, brute, or pydensecrf"}
    )

    def __post_init__(self) -> None:
        bounded(self, "crf")
        for name, kind in (("normalisation", Normalisation), ("backend", Backend)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}")

    @property
    def uses_torch(self) -> bool:
        """Whether the backend computes with torch."""
        return self.backend in ("lattice-torch", "exact")


PRESETS: Mapping[Preset, CRFParams] = {
    # Ahn & Kwak 2018, released code (pydensecrf): what turns CAMs into labels; RRM's CRF is the same.
    "ahn-kwak-cam": CRFParams(),
    # DeepLab-LargeFOV as released. Chen et al. 2015, section 4.1: w2 = 3 and sigma_gamma = 3 fixed, the bilateral
    # w1 and sigmas cross-validated. DeepLab runs the 2011 form of the CRF's code, which divides the filtered values
    # by each pixel's row sum ("after").
    "deeplab-largefov": CRFParams(bilateral_sxy=140.0, bilateral_srgb=5.0, bilateral_compat=5.0, normalisation="after"),
    # DeepLab v2 with ResNet-101 as released. "position 3/1" is weight 3 and 1 pixel, "bilateral 4/67/3" is weight 4,
    # 67 pixels and 3 grey levels: re-implementations print the names beside the numbers, and DeepLab's own list of
    # cross-validated values has 67 as bi_x_std, 3 as bi_r_std and 3 as pos_w.
    "deeplab-v2": CRFParams(
        gaussian_sxy=1.0,
        gaussian_compat=3.0,
        bilateral_sxy=67.0,
        bilateral_srgb=3.0,
        bilateral_compat=4.0,
        normalisation="after",
    ),
    # RRM's released code at test time (Zhang et al. 2020).
    "rrm-test": CRFParams(bilateral_sxy=83.0, bilateral_srgb=5.0, bilateral_compat=4.0),
    # The weights for boxes as unaries; the boxes come with `crf --boxes` or `proposals=box-crf`. Bbox-Seg of Papandreou
    # et al. 2015, section 3.2, whose text leaves the values to cross-validation. These are the ones that the released
    # code names for it (bboxErode20: w 45, 37 px, 3 grey levels; position w 15, 3 px), again with DeepLab's "after".
    "bbox-seg": CRFParams(
        gaussian_sxy=3.0,
        gaussian_compat=15.0,
        bilateral_sxy=37.0,
        bilateral_srgb=3.0,
        bilateral_compat=45.0,
        normalisation="after",
    ),
}
"""Named sets, each as its paper's or its released code's."""


def chosen(crf: Literal["off"] | Preset) -> CRFParams | None:
    """The set that a flow's ``crf`` names; ``None`` for "off"."""
    return None if crf == "off" else PRESETS[crf]


def preset(name: str) -> CRFParams:
    """The set ``name``. Raises ``ValueError`` that lists the names there are."""
    for known, params in PRESETS.items():
        if known == name:
            return params
    raise ValueError(f"no CRF parameter set {name!r}; there are {', '.join(PRESETS)}")
