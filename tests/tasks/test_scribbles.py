"""Scribbles as label maps: what is drawn, and what is said where nothing can be learnt from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.datasets.scribblesup import rasterize
from artifacts.datasets.voc_masks import class_mask_ref
from artifacts.datasets.voc_writer import write_class_mask
from artifacts.records import DataError, Record, Scribble
from tasks.scribbles import ScribbleParams, scribbles, scribbles_item
from tasks.stage import Item, SkipImage

SIZE = (20, 30)
STROKES = (Scribble(1, ((2.0, 5.0), (22.0, 5.0))), Scribble(0, ((3.0, 15.0),)))


def drawn(found: Any, params: ScribbleParams = ScribbleParams()) -> np.ndarray:
    item = Item("d/a", Record("a", "", scribbles=found), ("cat", "dog"), np.zeros((*SIZE, 3), np.uint8))
    return scribbles_item(item, params)["mask_hw"]


def test_strokes_are_drawn_as_wide_and_as_long_as_asked() -> None:
    assert np.array_equal(drawn(STROKES), rasterize(STROKES, SIZE, 3.0))
    thick = drawn(STROKES, ScribbleParams(width=5.0))
    assert (thick[:, 12] == 1).sum() == 5 and (thick == 0).sum() > (drawn(STROKES) == 0).sum()
    half = drawn(STROKES, ScribbleParams(width=1.0, length=0.5))
    assert np.flatnonzero(half[5] == 1).tolist() == list(range(7, 18)), "the middle half"
    click = drawn(STROKES, ScribbleParams(length=0.0))
    ys, xs = np.nonzero(click == 1)
    assert (ys.mean(), xs.mean(), len(ys)) == (5, 12, 9) and click[15, 3] == 0


def test_what_lies_outside_is_cut_off_and_an_image_with_nothing_inside_is_skipped() -> None:
    partly = (Scribble(1, ((25.0, 5.0), (60.0, 5.0))), Scribble(2, ((90.0, 90.0),)))
    assert set(np.unique(drawn(partly))) == {1, 255} and (drawn(partly) == 1).any(axis=0).nonzero()[0].tolist() == list(
        range(24, 30)
    )
    for nothing, message in (
        ((Scribble(2, ((90.0, 90.0),)),), "d/a: none of its 1 strokes lies in the image"),
        ((), "d/a: no scribble lies in the image"),
        (None, "d/a: no scribbles are known for this image"),
    ):
        with pytest.raises(SkipImage, match=message):
            drawn(nothing)


def test_background_alone_is_a_label() -> None:
    assert set(np.unique(drawn((STROKES[1],)))) == {0, 255}


def test_an_index_mask_is_taken_as_it_is(tmp_path: Path) -> None:
    mask_hw = rasterize(STROKES, SIZE, 2.0)
    write_class_mask(tmp_path / "a.png", mask_hw)
    reference = class_mask_ref(str(tmp_path / "a.png"), 2, SIZE)
    assert np.array_equal(drawn(reference, ScribbleParams(width=9.0)), mask_hw)
    with pytest.raises(DataError, match=r"a\.png: an index mask has no strokes to be shortened; set scribbles.length"):
        drawn(reference, ScribbleParams(length=0.5))
    with pytest.raises(DataError, match=r"a\.png: is \(20, 30\), its image"):
        other = Item("d/a", Record("a", "", scribbles=reference), ("cat",), np.zeros((9, 9, 3), np.uint8))
        scribbles_item(other, ScribbleParams())
    write_class_mask(tmp_path / "a.png", np.full(SIZE, 7, np.uint8))
    with pytest.raises(DataError, match="holds the number 7"):
        drawn(reference)
    write_class_mask(tmp_path / "a.png", np.full(SIZE, 255, np.uint8))
    with pytest.raises(SkipImage, match="no scribble lies in the image"):
        drawn(reference)


def test_it_reads_scribbles_and_nothing_else() -> None:
    assert scribbles().reads == ("image", "scribbles") and scribbles().holds_classes
