"""Mean field in a fully connected CRF with Gaussian edges (Krähenbühl & Koltun 2011, algorithm 1).

Each step is a function of its own, over any filter; where all filters are lattices on the CPU the whole loop runs
compiled, without ever storing Q (:func:`mean_field` chooses). Labels come first, points second: ``(L, N)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from models.crf.gaussian import FloatArray, GaussianFilter

Normalisation = Literal["none", "before", "after", "symmetric"]
TINY = 1e-20
"""Added to a row sum before it is divided by, as pydensecrf does."""
LARGEST = 2.0**96
"""Energies beyond it leave float32 once they are scaled, or are worse than the lanes that stand for no label."""


@dataclass(frozen=True)
class Term:
    """One pairwise term: a Gaussian kernel, how it is normalised, and the labels' compatibility.

    ``compat`` as pydensecrf takes it: a Potts weight ``w`` (the more, the smoother), or the penalties ``mu`` of a
    pair of labels as ``(L, L)``, or its diagonal ``(L,)``; Potts ``w`` is ``mu = -w I``.
    """

    filter: GaussianFilter
    compat: float | NDArray[np.floating[Any]]
    normalisation: Normalisation = "symmetric"


def mean_field(unary_ln: NDArray[np.floating[Any]], terms: Sequence[Term], iterations: int) -> FloatArray:
    """Marginals ``(L, N) float32`` after ``iterations`` of mean field from the energies ``unary_ln`` ``(L, N)``.

    Raises ``ValueError`` where shapes, a compatibility or the number of iterations do not fit, or on NaN and infinity.
    """
    unary = _check_unary(unary_ln)
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, not {iterations}")
    for term in terms:
        _check_term(term, *unary.shape)
    backends = {term.filter.backend for term in terms}
    if backends and backends <= {"lattice-torch", "exact"}:
        return _on_device(unary, terms, iterations)
    if backends == {"lattice-cpp"}:
        from models.crf import _lattice

        return np.asarray(_lattice.mean_field(unary, [_plain(term) for term in terms], iterations))
    q = initial(unary)
    for _ in range(iterations):
        q = step(unary, q, terms)
    return q


def initial(unary_ln: FloatArray) -> FloatArray:
    """``Q_i(l) = exp(-psi_u(l)) / Z_i`` (algorithm 1, initialise)."""
    return normalise(-unary_ln)


def step(unary_ln: FloatArray, q_ln: FloatArray, terms: Sequence[Term]) -> FloatArray:
    """One pass of algorithm 1: message passing, compatibility transform, local update, normalise."""
    energy = -unary_ln
    for term in terms:
        energy = energy - compatibility(message(q_ln, term), term.compat)
    return normalise(energy)


def message(q_ln: FloatArray, term: Term) -> FloatArray:
    """``Q~_i(l) = sum_j k(f_i, f_j) Q_j(l)`` (eq. 2's sum over j as a filter, j = i in, as in the authors' code)."""
    before, after = scales(term)
    values = q_ln.T if before is None else q_ln.T * before[:, None]
    found = term.filter.apply(np.ascontiguousarray(values, dtype=np.float32))
    return cast("FloatArray", (found if after is None else found * after[:, None]).T)


def compatibility(message_ln: FloatArray, compat: float | NDArray[Any]) -> FloatArray:
    """``Q^_i(l) = sum_l' mu(l, l') Q~_i(l')`` (algorithm 1, compatibility transform); Potts ``w``: ``-w Q~``."""
    if np.ndim(compat) == 0:
        return cast("FloatArray", np.float32(-compat) * message_ln)
    mu = np.asarray(compat, np.float32)
    return cast("FloatArray", mu @ message_ln if mu.ndim == 2 else mu[:, None] * message_ln)


def normalise(energy_ln: FloatArray) -> FloatArray:
    """Softmax over the labels (algorithm 1, normalise), with the largest taken off first."""
    shifted = np.exp(energy_ln - energy_ln.max(axis=0), dtype=np.float32)
    return cast("FloatArray", shifted / shifted.sum(axis=0))


def scales(term: Term) -> tuple[FloatArray | None, FloatArray | None]:
    """What values are multiplied by before and after filtering, ``(N,)`` each or ``None``.

    Of the kernel's row sums n: ``before`` and ``after`` 1/n there, ``symmetric`` n^-1/2 on both sides.
    """
    if term.normalisation == "none":
        return None, None
    sums = term.filter.row_sums + np.float32(TINY)
    if term.normalisation == "symmetric":
        both = (1 / np.sqrt(sums)).astype(np.float32)
        return both, both
    one = (1 / sums).astype(np.float32)
    return (one, None) if term.normalisation == "before" else (None, one)


def _on_device(unary_ln: FloatArray, terms: Sequence[Term], iterations: int) -> FloatArray:
    """The same loop on the filters' device: one copy of the unaries there, one of the marginals back."""
    import torch

    device = terms[0].filter.device
    start = -torch.from_numpy(np.ascontiguousarray(unary_ln.T)).to(device)
    plain = []
    for term in terms:
        before, after = (None if s is None else torch.from_numpy(s[:, None]).to(device) for s in scales(term))
        plain.append((term, before, after, torch.from_numpy(_added(term.compat)).to(device)))
    with torch.inference_mode():
        q_nl = start.softmax(1)
        for _ in range(iterations):
            energy = start
            for term, before, after, added in plain:
                found = term.filter.apply(q_nl if before is None else q_nl * before)
                found = found if after is None else found * after
                # A full matrix as a sum of products: a matrix product may be rounded to TF32 on a GPU.
                found = (found[:, None, :] * added).sum(2) if added.ndim == 2 else found * added
                energy = energy + found
            q_nl = energy.softmax(1)
    return np.ascontiguousarray(q_nl.cpu().numpy().T)


def _added(compat: float | NDArray[Any]) -> FloatArray:
    """What a message is multiplied by before it is added to ``-unary``: a Potts weight, or ``-mu``."""
    mu = np.asarray(compat, np.float32)
    return mu if mu.ndim == 0 else np.ascontiguousarray(-mu)


def _plain(term: Term) -> tuple[Any, FloatArray | None, FloatArray | None, float | FloatArray]:
    """A term as the compiled lattice takes it; there a compatibility is what is added to ``-unary``."""
    before, after = scales(term)
    added = _added(term.compat)
    return term.filter.lattice, before, after, added if added.ndim else float(added)


def _check_unary(unary_ln: Any) -> FloatArray:
    unary = np.asarray(unary_ln)
    if unary.ndim != 2 or not unary.size:
        raise ValueError(f"unaries must be (labels, points), at least one of each, not {unary.shape}")
    if not np.issubdtype(unary.dtype, np.floating):
        raise ValueError(f"unaries must be floating energies, not {unary.dtype}")
    unary = np.ascontiguousarray(unary, dtype=np.float32)
    if not np.isfinite(unary).all():
        raise ValueError("unaries hold NaN or infinity")
    if max(float(unary.max()), -float(unary.min())) > LARGEST:
        raise ValueError(f"unaries from {unary.min():g} to {unary.max():g}: energies within {LARGEST:g} expected")
    return unary


def _check_term(term: Term, labels: int, points: int) -> None:
    if term.filter.points != points:
        raise ValueError(f"a term filters {term.filter.points} points, the unaries have {points}")
    if term.normalisation not in ("none", "before", "after", "symmetric"):
        raise ValueError(f"normalisation {term.normalisation!r} is none of none, before, after, symmetric")
    shape = np.shape(term.compat)
    if shape not in ((), (labels,), (labels, labels)):
        raise ValueError(f"compat of shape {shape} with {labels} labels; a number, ({labels},) or ({labels}, {labels})")
    if not np.isfinite(term.compat).all():
        raise ValueError("compat holds NaN or infinity")
