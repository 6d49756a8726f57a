"""Does a data card say what is in an export, and does no name of a data set become markup in it?"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.export.datacard import as_markdown, describe, plain
from artifacts.export.items import ExportImage, copy_picture
from artifacts.export.mmseg import write_mmseg_config
from artifacts.export.passing import Counted, WithConfidence, without_uncertain
from artifacts.objects import Object
from artifacts.records import DataError

NASTY = ("<script>alert(1)</script>", "[a](javascript:x) |x| `y`", "# *head* _it_", "www.evil.example &lt; http://e.x")


@dataclass
class Images:
    """An export's source: two pictures, one with an object and undecided pixels."""

    classes: tuple[str, ...] = ("cat", "dog", "background")
    split: str = "train"
    with_images: bool = False
    origin: dict[str, Any] = field(
        default_factory=lambda: {
            "licenses": [{"id": 3, "name": "CC <b>BY</b>", "url": "http://x/"}],
            "image_licenses": {"a": 3},
        }
    )

    def __iter__(self) -> Iterator[ExportImage]:
        mask_hw = np.zeros((4, 5), np.uint8)
        mask_hw[1:3, 1:4] = 2
        mask_hw[3, 4] = 255
        yield ExportImage("a", Path("a.jpg"), mask_hw, [(Object(7, (1, 1, 4, 3), np.ones((2, 3), np.uint8)), 2)])
        yield ExportImage("b", Path("b.jpg"), np.full((2, 5), 3, np.uint8), None)


def card(**more: Any) -> dict[str, Any]:
    counted = Counted(Images())
    assert [image.image_id for image in counted] == ["a", "b"]
    origin = {
        **{"format": "voc", "stage": "corrected", "flow": "cfs", "libraries": {"maskmill": "1"}, "without_mask": ["c"]},
        **{
            "skips": [{"key": "set/c", "reason": "gone"}, {"key": "set/d", "reason": "of val"}],
            "scores": {"masks (train)": {"miou": 0.5, "images": 2}},
        },
    }
    manifest = {
        **{
            "stages": [{"label": "corrected", "dataset": "set"}],
            "masks": "corrected",
            "corrected": ["set/a"],
            "warnings": [NASTY[1]],
        },
        "recipe": {"params": {"seed": 4, "net": {"seed": 5}}, "data": {"source": "voc:x", "share_seed": 6}},
    }
    suspicion = {"pictures": 2, "median": 0.2, "tenth": 0.3, "worst": [[NASTY[0], 0.31]]}
    return describe({**origin, **more}, {"images_that_are_no_jpeg": 2}, [counted], manifest, suspicion)


def test_it_counts_pictures_objects_and_pixels_of_each_class() -> None:
    found = card()
    one = found["splits"]["train"]
    assert (one["pictures"], one["pixels"], one["corrected"]) == (2, 30, 1)
    assert one["undecided_share"] == round(1 / 30, 6) and one["pictures_without_known_objects"] == 1
    rows = [(row["number"], row["name"], row["pictures"], row["objects"], row["pixels"]) for row in one["per_class"]]
    assert rows == [
        (0, "background", 1, None, 13),
        (1, "cat", 0, 0, 0),
        (2, "dog", 1, 1, 6),
        (3, "background", 1, 0, 10),
    ]
    assert found["licences"] == [{"id": 3, "name": "CC <b>BY</b>", "url": "http://x/", "pictures": 1}]
    assert found["source"] == {"dataset": "set", "format": "voc"}
    assert found["made"]["seeds"] == {"data.share_seed": 6, "params.net.seed": 5, "params.seed": 4}
    assert found["warnings"] == [
        "1 pictures have no mask and are left out; 1 x gone",
        "train: 3.33% of the pixels are undecided (255)",
        "no mask of cat in train",
        "2 pictures do not end in .jpg: torchvision's VOC class will not find them",
        NASTY[1],
    ]
    assert "never compared with truth" in card(scores={})["warnings"][-2]


def test_no_text_of_a_data_set_is_markup() -> None:
    found = card()
    found["classes"] = list(NASTY)
    for row, name in zip(found["splits"]["train"]["per_class"], NASTY, strict=True):
        row["name"] = name
    text = as_markdown(found)
    assert not re.search(r"[<\[\]`*]|(?<!\w)_|_(?!\w)|http:|www\.|javascript:", text), (
        "nothing that Markdown or HTML acts on"
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {5, 4}, "no cell of its own"
    assert plain("a_b: c") == "a_b: c" and plain("_a_") == "&#95;a&#95;" and plain("a:b") == "a&#58;b"
    for name in NASTY:
        assert plain(name) in text and html.unescape(plain(name)) == name


@pytest.mark.parametrize("text", ["- x", "1. x", "---", "=== ", "+ x", "    code", "a\nb", "2)"])
def test_nothing_begins_a_list_a_line_or_a_heading(text: str) -> None:
    found = plain(text)
    assert "\n" not in found and not re.match(r"\s|[-+=#>]|\d+[.)](\s|$)", found)


def test_a_confidence_map_lies_beside_each_mask_and_uncertain_pixels_leave_mask_and_objects(tmp_path: Path) -> None:
    ramp_hw = np.arange(20, dtype=np.uint8).reshape(4, 5)
    maps = {"a": ramp_hw, "b": np.full((2, 5), 255, np.uint8)}
    source = WithConfidence(Images(), maps.__getitem__, tmp_path / "maps", undecided_below=8)
    first, second = source
    for image_id, confidence_hw in maps.items():
        assert np.array_equal(np.asarray(Image.open(tmp_path / "maps" / f"{image_id}.png")), confidence_hw)
    before, _ = Images()
    assert np.array_equal(first.mask_hw, np.where(ramp_hw < 8, 255, before.mask_hw))
    assert first.objects is not None and before.objects is not None
    assert first.objects[0][0].values_hw.tolist() == [[0, 0, 1], [1, 1, 1]], "pixels 6, 7, 8 and 11, 12, 13"
    assert before.objects[0][0].values_hw.all(), "a copy"
    assert np.array_equal(second.mask_hw, np.full((2, 5), 3)) and second.objects is None
    assert without_uncertain(before, np.zeros((4, 5), np.bool_)).mask_hw.tolist() == before.mask_hw.tolist()
    with pytest.raises(DataError, match=r"a: confidence of \(1, 1\)"):
        list(WithConfidence(Images(), lambda image_id: np.zeros((1, 1), np.uint8)))


def test_a_turned_picture_is_stored_upright(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # white on the left, as stored
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=turned, quality=95)
    copy_picture(tmp_path / "a.jpg", tmp_path / "out" / "sub" / "a.jpg")
    with Image.open(tmp_path / "out" / "sub" / "a.jpg") as image:
        assert image.size == (16, 32) and image.getexif().get(0x0112, 1) == 1
        assert np.asarray(image)[4].min() > 200 and np.asarray(image)[28].max() < 50, "white above"
    copy_picture(tmp_path / "out" / "sub" / "a.jpg", tmp_path / "b.jpg")
    assert (tmp_path / "b.jpg").read_bytes() == (tmp_path / "out" / "sub" / "a.jpg").read_bytes()


def test_mmsegmentations_configuration_holds_names_and_no_code(tmp_path: Path) -> None:
    names = ['"], x=__import__("os")', "{{ fileDirname }}", "é\n"]
    write_mmseg_config(tmp_path, Path("tree"), ("train", "val"), names, Counter({".png": 3, ".jpg": 1}))
    text = (tmp_path / "mmseg.py").read_text()
    assert text.count("{{ fileDirname }}") == 1, "mmengine puts the folder there, and nowhere else"
    found: dict[str, Any] = {}
    exec(text, found)
    assert found["metainfo"]["classes"] == ["background", *names] and found["train_dataset"]["img_suffix"] == ".png"
    assert "1 of the pictures do not end in .png" in text and "_shared" not in found
