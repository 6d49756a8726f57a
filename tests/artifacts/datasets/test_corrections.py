"""Are corrected masks a label of their pictures, and of no others?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from artifacts.datasets import DataParams, read_split
from artifacts.datasets.corrections import load_stored, with_corrections, write_corrections
from artifacts.records import DataError, RecordSet


@pytest.fixture
def records(tmp_path: Path) -> RecordSet:
    root = tmp_path / "data"
    for name in ("a", "b", "sub/a"):
        path = root / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((4, 5, 3), np.uint8))
    (root / "classes.txt").write_text("cat\ndog\n")
    return read_split(DataParams(source=f"folder:{root}", val_share=0.0), "train")


def test_the_pictures_that_have_one_have_it_and_no_others(records: RecordSet, tmp_path: Path) -> None:
    mask_hw = np.array([[0, 1, 2, 255, 0]] * 4, np.uint8)
    folder = tmp_path / "corrections"
    assert write_corrections(folder, [("sub/a", mask_hw), ("elsewhere", mask_hw)], records.classes) == [
        "sub/a",
        "elsewhere",
    ]
    given = read_split(
        DataParams(source=f"folder:{tmp_path / 'data'}", val_share=0.0, corrections=str(folder)), "train"
    )
    corrected = {record.image_id: record.corrected for record in given}
    assert [image_id for image_id, found in corrected.items() if found is not None] == ["sub/a"]
    assert corrected["sub/a"] is not None and np.array_equal(corrected["sub/a"].load(), mask_hw)
    assert [r.view(("corrected",)).corrected is not None for r in given.records[1:]] == [False, True]
    assert given.records[2].view(("boxes", "truth")).corrected is None, "nobody sees it who does not declare it"
    before = given.records[2].label_digest("corrected")
    write_corrections(folder, [("sub/a", mask_hw[::-1].copy())], records.classes)
    assert given.records[2].label_digest("corrected") == before, "the same pixels"
    write_corrections(folder, [("sub/a", np.zeros_like(mask_hw))], records.classes)
    assert given.records[2].label_digest("corrected") != before
    stored = load_stored(folder, "sub/a", records.classes)
    assert stored is not None and not stored.any() and load_stored(folder, "b", records.classes) is None


def test_numbers_follow_the_names(records: RecordSet, tmp_path: Path) -> None:
    folder = tmp_path / "corrections"
    write_corrections(folder, [("b", np.full((4, 5), 1, np.uint8))], ("dog",))
    found = with_corrections(records, folder)
    reference = next(r.corrected for r in found if r.image_id == "b")
    assert reference is not None and (reference.load() == 2).all()


def test_a_class_that_is_new_in_the_data_joins_the_folders_table(records: RecordSet, tmp_path: Path) -> None:
    """Before the others, in the data: the masks that are stored keep their meaning."""
    folder = tmp_path / "corrections"
    write_corrections(folder, [("a", np.full((4, 5), 1, np.uint8))], ("dog",))
    kept = (folder / "masks" / "a.png").read_bytes()
    cat_and_dog = np.array([[0, 1, 2, 255, 0]] * 4, np.uint8)
    write_corrections(folder, [("b", cat_and_dog)], records.classes)
    assert (folder / "classes.txt").read_text() == "dog\ncat\n" and (folder / "masks" / "a.png").read_bytes() == kept
    found = {record.image_id: record.corrected for record in with_corrections(records, folder)}
    assert found["a"] is not None and (found["a"].load() == 2).all()
    assert found["b"] is not None and np.array_equal(found["b"].load(), cat_and_dog)
    stored = load_stored(folder, "b", records.classes)
    assert stored is not None and np.array_equal(stored, cat_and_dog)
    assert load_stored(folder, "b", ("cat", "cow")) is None, "dog is no class there"


def test_what_is_no_folder_of_corrections_is_refused(records: RecordSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no classes.txt there .* `maskmill import` has written"):
        with_corrections(records, tmp_path / "nowhere")
    write_corrections(tmp_path / "other", [("a", np.zeros((4, 5), np.uint8))], ("cow",))
    with pytest.raises(DataError, match="names cow, which is no class of data"):
        with_corrections(records, tmp_path / "other")
    with pytest.raises(DataError, match="its corrections have the classes cow, of which these .cat, dog. lack cow"):
        write_corrections(tmp_path / "other", [], ("cat", "dog"))
    wrong = tmp_path / "wrong"
    write_corrections(wrong, [("a", np.zeros((5, 5), np.uint8))], ("cat",))
    reference = with_corrections(records, wrong).records[0].corrected
    assert reference is not None
    with pytest.raises(DataError, match="the mask is 5 x 5"):
        reference.load()


def with_masks(root: Path, pictures: Sequence[str], masks: Sequence[str]) -> Path:
    """A folder of pictures, and one of corrections with these files; returns the latter."""
    (root / "data" / "images").mkdir(parents=True)
    (root / "data" / "classes.txt").write_text("cat\n")
    for name in pictures:
        path = root / "data" / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8))[1].tobytes())
    write_corrections(root / "corrections", [(name, np.ones((4, 5), np.uint8)) for name in masks], ("cat",))
    return root / "corrections"


UNUSED = "corrected mask that is not used: no picture has its name, or several may be meant"


@pytest.mark.parametrize(
    ("pictures", "masks", "corrected", "unused"),
    [
        (["caf\u00e9", "b"], ["cafe\u0301"], {"caf\u00e9": "cafe\u0301"}, []),
        (["a", "b"], ["A"], {"a": "A"}, []),
        (["sub/a", "b"], ["Sub/a"], {"sub/a": "Sub/a"}, []),
        (["a", "b"], ["typo"], {}, ["typo"]),
        (["sub/a", "b"], ["a"], {}, ["a"]),
        (["a", "A"], ["A"], {"A": "A"}, []),
        (["\u00e9a", "\u00e9A"], ["e\u0301a"], {}, ["e\u0301a"]),
        (["a", "b"], ["a", "A"], {"a": "a"}, ["A"]),
        (["\u00e9a", "\u00e9A"], ["\u00e9a", "e\u0301a"], {"\u00e9a": "\u00e9a"}, ["e\u0301a"]),
        (["u/1", "t/1"], ["1", "b"], {}, ["1", "b"]),
    ],
)
def test_a_mask_is_found_in_another_spelling_and_one_that_is_no_pictures_is_named(
    pictures: list[str], masks: list[str], corrected: dict[str, str], unused: list[str], tmp_path: Path
) -> None:
    folder = with_masks(tmp_path, pictures, masks)
    data = DataParams(source=f"folder:{tmp_path / 'data'}", val_share=0.0, corrections=str(folder))
    found = read_split(data, "train")
    assert len(found) == len(pictures)
    given = {record.image_id: record.corrected.path for record in found if record.corrected is not None}
    assert given == {image_id: str(folder / "masks" / f"{name}.png") for image_id, name in corrected.items()}
    said = [line for line in found.warnings if "corrected mask" in line]
    listed = "; ".join(f"{folder / 'masks' / name}.png" for name in unused)
    assert said == ([f"{len(unused)} x {UNUSED}: {listed}"] if unused else [])
    spelled = [line for line in found.warnings if "name found in another spelling" in line]
    assert len(spelled) == any(image_id != name for image_id, name in corrected.items())


def test_masks_of_the_other_split_are_its_own(tmp_path: Path) -> None:
    """No warning of them, and no picture of this split has one because it is spelled alike."""
    folder = with_masks(tmp_path, ["a", "A", "b", "c"], ["A", "c", "typo"])
    (tmp_path / "data" / "train.txt").write_text("a\nb\n")
    (tmp_path / "data" / "val.txt").write_text("A\nc\n")
    data = DataParams(source=f"folder:{tmp_path / 'data'}", corrections=str(folder))
    train, val = read_split(data, "train"), read_split(data, "val")
    assert [record.image_id for record in (*train, *val)] == ["a", "b", "A", "c"]
    assert [record.corrected is not None for record in (*train, *val)] == [False, False, True, True]
    assert [line for line in train.warnings if "corrected" in line] == [f"1 x {UNUSED}: {folder / 'masks/typo.png'}"]
    assert not [line for line in val.warnings if "corrected" in line]
