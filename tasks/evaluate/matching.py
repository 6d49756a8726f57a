"""Largest one-to-one matchings of pixels. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def match(near: NDArray[np.int32], truths: int) -> NDArray[np.bool_]:
    """Which rows are matched with a truth of their own: as many as any one-to-one matching could have.

    Args:
        near: (rows, columns) numbers of the truths that a row may be matched with, in the order in which they are
            tried; -1 for none. No truth is twice in one column.
        truths: their count.

    Returns:
        (rows,) bool.
    """
    mate = np.full(truths + 1, -1, np.int64)
    """Of a truth, its row. The last stands for "none" and is never free."""
    mate[truths] = len(near)
    own = np.full(len(near), -1, np.int64)
    """Of a row, its truth."""
    _augment(near, _nearest_first(near, np.arange(len(near)), mate, own), mate, own)
    return own >= 0


def _nearest_first(
    near: NDArray[np.int32], free: NDArray[np.int64], mate: NDArray[np.int64], own: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Match rows with free truths, column by column; returns the rows that are left."""
    for column in near.T:
        if not len(free):
            break
        wanted = column[free]
        good = mate[wanted] < 0
        mate[wanted[good]] = free[good]
        own[free[good]] = wanted[good]
        free = free[~good]
    return free


def _augment(near: NDArray[np.int32], free: NDArray[np.int64], mate: NDArray[np.int64], own: NDArray[np.int64]) -> None:
    """Match as many of the ``free`` rows as can be, by paths along which matched pairs change partners.

    Trees grow from all free rows at once, no truth in two of them; of each tree one path to a free truth is taken.
    Where no tree finds one, there is none.
    """
    parent = np.empty(len(mate), np.int64)
    """Of a truth, the row from which it was reached."""
    claim = np.empty(len(mate), np.int64)
    roots = free
    while len(roots):
        seen = np.zeros(len(mate), bool)
        seen[-1] = True
        found = np.full(len(roots), -1, np.int64)
        """Of a tree, the free truth that it has reached."""
        rows, trees = roots, np.arange(len(roots))
        while len(rows):
            wanted = near[rows]
            at, column = np.nonzero(~seen[wanted])
            truth = wanted[at, column]
            claim[truth] = np.arange(len(truth))
            first = claim[truth] == np.arange(len(truth))
            truth, at = truth[first], at[first]
            seen[truth] = True
            parent[truth] = rows[at]
            tree = trees[at]
            free_truth = mate[truth] < 0
            found[tree[free_truth]] = truth[free_truth]
            on = ~free_truth & (found[tree] < 0)
            rows, trees = mate[truth[on]], tree[on]
        if (found < 0).all():
            return
        path = found[found >= 0]
        while len(path):
            row = parent[path]
            before = own[row]
            own[row], mate[path] = path, row
            path = before[before >= 0]
        roots = roots[found < 0]
