"""Can a COCO export of a COCO set be joined with it by id?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.datasets.coco import read_coco
from artifacts.datasets.coco_writer import write_coco
from artifacts.datasets.without import without_classes
from artifacts.export.coco import write_coco_export
from artifacts.export.items import ExportImage
from artifacts.records import DataError, RecordSet

CATEGORIES = [
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    {"id": 7, "name": "train", "supercategory": "vehicle"},
    {"id": 12, "name": "cat"},
]
IDS: list[tuple[int | str, str]] = [(581, "a.png"), ("612", "b.png"), ("left-3", "c.png")]


@dataclass(frozen=True)
class Truth:
    """What a run would hand to the writer, were its masks the truth."""

    records: RecordSet
    with_images: bool = False

    @property
    def split(self) -> str:
        return "train"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.records.classes

    @property
    def origin(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.records.origin))  # as the cache stores it

    def __iter__(self) -> Iterator[ExportImage]:
        for record in self.records:
            assert record.truth is not None
            yield ExportImage(record.image_id, Path(record.image), record.truth.load(), None)


@pytest.fixture
def records(tmp_path: Path) -> RecordSet:
    images, annotations = [], []
    for number, (image_id, name) in enumerate(IDS):
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / name)
        images.append({"id": image_id, "file_name": name, "height": 6, "width": 8, "license": 3 + number})
        for at, category in enumerate((90, 7, 12)):
            box = [2 * at, 0, 2, 3]
            x, y, w, h = box
            corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append(
                {"id": 1, "image_id": image_id, "category_id": category, "bbox": box, "segmentation": corners}
            )
    content = {
        "images": images,
        "categories": CATEGORIES,
        "annotations": annotations,
        "licenses": [{"id": 3, "name": "CC0"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    return read_coco(tmp_path, tmp_path / "set.json", dataset="set")


def written(records: RecordSet, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    write_coco_export(folder, Truth(records))
    return json.loads((folder / "annotations/instances_train.json").read_text())


def test_ids_supercategories_and_licences_stay(records: RecordSet, tmp_path: Path) -> None:
    found = written(records, tmp_path / "out")
    assert sorted(found["categories"], key=lambda c: c["id"]) == sorted(CATEGORIES, key=lambda c: c["id"])
    assert found["licenses"] == [{"id": 3, "name": "CC0"}]
    assert {(i["id"], i["file_name"], i["license"]) for i in found["images"]} == {
        (581, "a.png", 3),
        (612, "b.png", 4),
        ("left-3", "c.png", 5),
    }
    by_image = {(a["image_id"], a["category_id"]): a["bbox"] for a in found["annotations"]}
    assert by_image == {
        (i, category): [2 * at, 0, 2, 3] for i in (581, 612, "left-3") for at, category in enumerate((90, 7, 12))
    }


def test_without_a_class_and_with_one_of_ones_own_the_others_keep_their_ids(records: RecordSet, tmp_path: Path) -> None:
    found = written(without_classes(records, ["cat"]), tmp_path / "out")
    assert {(c["id"], c["name"]) for c in found["categories"]} == {(7, "train"), (90, "toothbrush")}
    own = read_coco(tmp_path, tmp_path / "set.json", dataset="set", classes=("cat", "lamp", "train"))
    found = written(own, tmp_path / "own")
    assert [(c["id"], c["name"]) for c in found["categories"]] == [(12, "cat"), (13, "lamp"), (7, "train")]
    assert {a["category_id"] for a in found["annotations"]} == {7, 12}


def test_entries_that_are_not_those_of_the_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="categories must be cat, dog"):
        write_coco(tmp_path / "x.json", [], ("cat", "dog"), categories=[{"id": 1, "name": "cat"}])
