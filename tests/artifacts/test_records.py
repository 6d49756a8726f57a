"""Does a stage see only what it declared, and does a label's digest follow the label?"""

from __future__ import annotations

import pytest

from artifacts.records import LABEL_KINDS, Box, DataError, MaskRef, Record, RecordSet, Scribble

FULL = Record(
    "a b/ü",
    "/x/a.jpg",
    (4, 4),
    tags=(1,),
    boxes=(Box(0, 1, 0.0, 0.0, 2.0, 2.5),),
    scribbles=(Scribble(0, ((0.0, 1.0), (2.0, 3.0))),),
    truth=MaskRef("nowhere:load", "/x/a.png"),
    truth_objects=MaskRef("nowhere:load", "/x/a.png"),
)


@pytest.mark.parametrize("declared", LABEL_KINDS)
def test_a_view_holds_the_declared_kind_and_nothing_else(declared: str) -> None:
    view = FULL.view((declared, "image"))
    for kind in LABEL_KINDS:
        assert getattr(view, kind) == (getattr(FULL, kind) if kind == declared else None)
    assert view.size_hw is None, "an annotation's size is a label too"


def test_a_label_digest_follows_its_own_label_only() -> None:
    other = Record("a b/ü", "/elsewhere.jpg", tags=(1, 2), boxes=FULL.boxes)
    assert other.label_digest("boxes") == FULL.label_digest("boxes")
    assert other.label_digest("tags") != FULL.label_digest("tags")
    assert Record("a", "i", boxes=()).label_digest("boxes") != Record("a", "i").label_digest("boxes")


def test_more_classes_than_a_uint8_mask_holds_are_refused() -> None:
    RecordSet("d", "train", tuple(f"c{i}" for i in range(254)), ())
    with pytest.raises(DataError, match="255 classes.*at most 254"):
        RecordSet("d", "train", tuple(f"c{i}" for i in range(255)), ())


@pytest.mark.parametrize("name", ["", "a/b", "..\\x"])
def test_a_data_set_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"data\.name"):
        RecordSet(name, "train", (), ())


def test_keys_hold_the_data_set_but_not_the_split() -> None:
    train, val = (RecordSet("d", split, (), (FULL,)) for split in ("train", "val"))
    assert train.key(FULL) == val.key(FULL) == "d/a b/ü"
