"""SIMD vectors of float32 inside numba functions: ``load``, ``multiply_add``, ``exp``, ``store``, ...

numba's automatic way to such code (``NUMBA_SLP_VECTORIZE=1`` before its import) is a switch for the whole process, off
by default because it miscompiled code, and therefore no business of a library. Here the vector is a type of its own,
written in LLVM's terms: a machine with shorter registers gets several of them, one without any gets plain numbers.

How many lanes a vector has is said by the LENGTH of a tuple, ``lanes = (0,) * 8``: it is part of the tuple's type, so
that one source is compiled once for each length in use. All functions work inside compiled functions only. (numba
renews what it stored on disk when the file of the CALLING function changes: after an edit here, touch that too.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

EXP_CUT = -62.0
"""``exp`` is exactly 0 below (1e-27): denormal numbers, also as products with small weights, cost about x1.7."""

_LOG2_E = 1.44269504
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
"""Cody and Waite's two parts of ln 2: the first has so few bits that its product with an integer is exact."""

_EXP_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
"""exp(r) for \\|r\\| <= ln(2) / 2: the first term left out is 5e-9."""

_ROUNDER = 12582912.0
"""1.5 * 2**23: added and taken away again, it leaves the nearest integer (half to even) of \\|x\\| < 2**22."""

_INT32, _FLOAT = ir.IntType(32), ir.FloatType()
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Lanes = tuple[int, ...]
"""As many numbers as a vector has lanes; their values mean nothing."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compiled at the first call, kept on disk, without the GIL. No fastmath: NaN has to stay NaN."""
    decorate: Callable[[_Function], Any] = njit(nogil=True, cache=True, error_model="numpy")
    result: _Function = decorate(function)
    return result


def compiled_inside(function: _Function) -> _Function:
    """:func:`compiled` for functions that compiled functions alone call: without the way in from Python."""
    inside: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    decorate: Callable[[_Function], Any] = njit(nogil=True, cache=True, error_model="numpy", **inside)
    result: _Function = decorate(function)
    return result


def _intrinsic(function: Callable[..., Any]) -> Any:
    """numba's ``intrinsic``: its own types describe the function that writes the code, not the one that is called."""
    return intrinsic(function)


class VectorType(types.Type):
    """``lanes`` float32 numbers in one register."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"float32x{lanes}")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    """LLVM's ``<lanes x float>``."""

    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, ir.VectorType(_FLOAT, kind.lanes))  # type: ignore[no-untyped-call]


def _constant(like: Any, number: float) -> Any:
    """The vector of type ``like.type`` that holds ``number`` in each lane."""
    kind = ir.VectorType(_INT32, like.type.count) if isinstance(number, int) else like.type
    return ir.Constant(kind, [number] * like.type.count)


def _address(context: Any, builder: Any, signature: Any, args: Any, lanes: int) -> Any:
    """Where ``args[0][args[1]]`` lies, as a pointer to a vector."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), ir.VectorType(_FLOAT, lanes).as_pointer())


@_intrinsic
def load(typing: Any, array: Any, index: Any, lanes: Any) -> Any:
    """``array[index : index + len(lanes)]`` of a contiguous float32 array of one axis; bounds are not checked."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        loaded = builder.load(_address(context, builder, signature, args, lanes.count))
        loaded.align = 4
        return loaded

    return VectorType(lanes.count)(array, types.intp, lanes), emit


@_intrinsic
def item(typing: Any, array: Any, index: Any) -> Any:
    """``array[index]`` for an index that is not negative: numba's own look-up would ask each time."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), emit


@_intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """``array[index : index + lanes] = vector``; bounds are not checked."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        stored = builder.store(args[2], _address(context, builder, signature, args, vector.lanes))
        stored.align = 4
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), emit


@_intrinsic
def fill(typing: Any, number: Any, lanes: Any) -> Any:
    """The vector that holds ``number`` in each lane."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.Constant(ir.VectorType(_FLOAT, lanes.count), ir.Undefined)
        for lane in range(lanes.count):
            vector = builder.insert_element(vector, args[0], _INT32(lane))
        return vector

    return VectorType(lanes.count)(types.float32, lanes), emit


def _one_of(emit: Callable[[Any, Any], Any]) -> Any:
    """A function of one vector to a vector."""

    def typed(typing: Any, a: Any) -> Any:
        return a(a), lambda context, builder, signature, args: emit(builder, *args)

    typed.__name__ = emit.__name__
    return _intrinsic(typed)


def _one_of_two(emit: Callable[[Any, Any, Any], Any]) -> Any:
    """A function of two vectors of one type to a third."""

    def typed(typing: Any, a: Any, b: Any) -> Any:
        return a(a, b), lambda context, builder, signature, args: emit(builder, *args)

    typed.__name__ = emit.__name__
    return _intrinsic(typed)


def _one_of_three(emit: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """A function of three vectors of one type to a fourth."""

    def typed(typing: Any, a: Any, b: Any, c: Any) -> Any:
        return a(a, b, c), lambda context, builder, signature, args: emit(builder, *args)

    typed.__name__ = emit.__name__
    return _intrinsic(typed)


def _folded(emit: Callable[[Any, Any, Any], Any]) -> Any:
    """A function of a vector to one whose lanes all hold the lanes of the first, folded by ``emit``.

    Halves are exchanged and folded, then quarters, ...: the order is always the same.
    """

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, lanes = args[0], args[0].type.count
        distance = lanes // 2
        while distance > 0:
            exchange = ir.Constant(ir.VectorType(_INT32, lanes), [lane ^ distance for lane in range(lanes)])
            vector = emit(builder, vector, builder.shuffle_vector(vector, vector, exchange))
            distance //= 2
        return vector

    def typed(typing: Any, a: Any) -> Any:
        return a(a), lower

    typed.__name__ = emit.__name__
    return _intrinsic(typed)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _rounded(builder: Any, a: Any) -> tuple[Any, Any]:
    """The nearest integers as floats, and a vector of int32 whose lowest 22 bits are those of the integers."""
    shifted = builder.fadd(a, _constant(a, _ROUNDER))
    return builder.fsub(shifted, _constant(a, _ROUNDER)), builder.bitcast(shifted, ir.VectorType(_INT32, a.type.count))


def _exp(builder: Any, a: Any) -> Any:
    """2**n * exp(r), n the nearest integer of a / ln 2; NaN stays NaN."""
    n, bits = _rounded(builder, builder.fmul(a, _constant(a, _LOG2_E)))
    r = _multiply_add(builder, n, _constant(a, -_LN2_HIGH), a)
    r = _multiply_add(builder, n, _constant(a, -_LN2_LOW), r)
    power = _constant(a, _EXP_TAYLOR[0])
    for coefficient in _EXP_TAYLOR[1:]:
        power = _multiply_add(builder, power, r, _constant(a, coefficient))
    scaled = builder.add(builder.bitcast(power, bits.type), builder.shl(bits, _constant(a, 23)))
    return builder.select(
        builder.fcmp_unordered(">=", a, _constant(a, EXP_CUT)), builder.bitcast(scaled, a.type), _constant(a, 0.0)
    )


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(a.type, [a.type] * 3)
    function = get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{a.type.count}f32")  # type: ignore[no-untyped-call]
    return builder.call(function, [a, b, c])


def _less(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), _constant(a, 1.0), _constant(a, 0.0))


def _where_equal(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.select(builder.fcmp_ordered("==", a, b), c, _constant(c, 0.0))


add = _one_of_two(lambda builder, a, b: builder.fadd(a, b))
subtract = _one_of_two(lambda builder, a, b: builder.fsub(a, b))
multiply = _one_of_two(lambda builder, a, b: builder.fmul(a, b))
divide = _one_of_two(lambda builder, a, b: builder.fdiv(a, b))
maximum = _one_of_two(_larger)
less = _one_of_two(_less)
"""1 where the first vector is less than the second, 0 elsewhere."""
where_equal = _one_of_three(_where_equal)
"""The third vector where the first two are equal, 0 elsewhere."""
multiply_add = _one_of_three(_multiply_add)
"""a * b + c, with one rounding where the processor can."""
round_even = _one_of(lambda builder, a: _rounded(builder, a)[0])
"""The nearest integer, half to even; \\|x\\| < 2**22."""
exp = _one_of(_exp)
"""e**x for x <= 0 within 2e-7 of it, relatively; exactly 0 below ``EXP_CUT``."""
largest = _folded(_larger)
"""The largest number of the vector, in all lanes."""
total = _folded(lambda builder, a, b: builder.fadd(a, b))
"""The sum of the vector, in all lanes."""
