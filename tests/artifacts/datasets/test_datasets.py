"""Does a source string lead to the right reader, and does a cache keep data sets apart?"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts import keys
from artifacts.datasets import voc
from artifacts.datasets.read import READERS, DataParams, read_split, remember_dataset
from artifacts.records import DataError


def tree(root: Path, names: dict[str, str], split: str = "train") -> Path:
    """A VOC tree with one object of the named class in each image; its pixels follow the class and the id."""
    for image_id, name in names.items():
        seed = int(keys.digest([image_id, name])[:8], 16)
        pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg")
        voc.write_annotation(
            root / "Annotations" / f"{image_id}.xml", f"{image_id}.jpg", (8, 8), [(name, (0, 0, 4, 4), False)]
        )
    voc.write_image_set(root / "ImageSets/Segmentation" / f"{split}.txt", names)
    return root


def params(root: Path, **options: object) -> DataParams:
    return DataParams(source=f"voc:{root}", **options)


# --- params


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"source": "cityscapes:/x"},
            "source must start with one of voc, coco, yolo, folder, demo.*not 'cityscapes:/x'",
        ),
        ({"source": "voc"}, "source 'voc' names no place; write voc:PATH"),
        ({"source": ""}, "source must start with"),
        ({"name": "a/b"}, "name 'a/b' must not hold slashes"),
        ({"train": ""}, "train must name a split"),
        ({"classes": ("a", "a")}, "classes must be different"),
        ({"scribble_origin": 2}, "scribble_origin must be 0 or 1, not 2"),
        ({"val_share": 1.0}, r"val_share must be in \[0, 1\), not 1.0"),
    ],
)
def test_impossible_values_are_refused_by_name(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataParams(**wrong)


def test_a_path_without_format_is_answered_with_the_format(tmp_path: Path) -> None:
    tree(tmp_path / "t", {"a": "cat"})
    with pytest.raises(ValueError, match=f"did you mean voc:{tmp_path}/t"):
        DataParams(source=f"{tmp_path}/t")
    with pytest.raises(ValueError, match=f"did you mean folder:{tmp_path}"):
        DataParams(source=str(tmp_path))


def test_every_reader_is_there_and_takes_the_same_call() -> None:
    import importlib
    import inspect

    for name in READERS.values():
        module, _, function = name.partition(":")
        parameters = list(inspect.signature(getattr(importlib.import_module(module), function)).parameters)
        assert parameters[1:3] == ["split", "data"], name


# --- reading


def test_a_split_is_read_and_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", {"a": "cat", "b": "wolf"})
    found = read_split(params(root), "train", cache=tmp_path / "cache")
    assert (found.dataset, found.split, found.format, found.root) == ("pets", "train", "voc", str(root))
    assert found.classes == ("cat", "wolf") and [r.tags for r in found] == [(1,), (2,)]
    assert read_split(params(root, name="mine"), "train").dataset == "mine"
    assert not (tmp_path / "cache").exists(), "reading remembers nothing"


def test_new_classes_are_appended_to_what_the_cache_knows(tmp_path: Path) -> None:
    root, cache = tree(tmp_path / "pets", {"a": "wolf"}), tmp_path / "cache"
    remember_dataset(cache, read_split(params(root), "train", cache=cache))
    tree(root, {"a": "wolf", "b": "bear"})
    assert read_split(params(root), "train").classes == ("bear", "wolf"), "without the cache: sorted"
    found = read_split(params(root), "train", cache=cache)
    assert found.classes == ("wolf", "bear") and [r.tags for r in found] == [(1,), (2,)]
    remember_dataset(cache, found)
    assert read_split(params(root), "train", cache=cache).classes == ("wolf", "bear")
    voc.write_classes(root / "classes.txt", ["bear", "wolf"])
    assert read_split(params(root), "train", cache=cache).classes == ("bear", "wolf"), "a table in the tree goes first"


def test_demo_data_is_made_once_and_read_as_a_voc_tree(tmp_path: Path) -> None:
    data = DataParams(source="demo-tiny")
    train = read_split(data, "train", cache=tmp_path)
    val = read_split(data, "val", cache=tmp_path)
    assert (len(train), len(val), train.dataset, train.format) == (24, 8, "demo-tiny", "demo")
    assert train.classes == val.classes and not train.skips and not train.warnings
    record = train.records[0]
    assert record.tags and record.boxes and record.scribbles
    assert Path(record.image).is_relative_to(tmp_path / "demo-data")
    mask, (objects, ids) = record.truth.load(), record.truth_objects.load()
    assert set(np.unique(mask)) - {0, 255} == set(record.tags) and ids.tolist() == [b.id for b in record.boxes]
    assert objects.any(0).sum() == ((mask != 0) & (mask != 255)).sum()
    before = os.stat(record.image).st_mtime_ns
    assert read_split(data, "train", cache=tmp_path).records[0] == record
    assert os.stat(record.image).st_mtime_ns == before
    with pytest.raises(DataError, match=r"'demo-huge'.*demo, demo-tiny"):
        read_split(DataParams(source="demo-huge"), "train", cache=tmp_path)


# --- one name, one data set


def entry(cache: Path, name: str) -> dict[str, object]:
    return json.loads((cache / "datasets" / f"{name}.json").read_text())


def test_a_data_set_is_remembered(tmp_path: Path) -> None:
    root, cache = tree(tmp_path / "pets", {f"i{k}": "cat" for k in range(30)}), tmp_path / "cache"
    found = read_split(params(root), "train")
    remember_dataset(cache, found)
    stored = entry(cache, "pets")
    assert (stored["format"], stored["root"], stored["classes"]) == ("voc", str(root), list(found.classes))
    assert 4 <= len(stored["images"]) <= 8
    assert all(keys.digest_file(root / f"JPEGImages/{i}.jpg") == d for i, d in stored["images"].items())
    stamp = os.stat(cache / "datasets/pets.json").st_mtime_ns
    remember_dataset(cache, found)
    assert os.stat(cache / "datasets/pets.json").st_mtime_ns == stamp, "nothing new, nothing written"


def test_a_moved_data_set_is_followed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    root = tree(tmp_path / "old" / "pets", {"a": "cat", "b": "dog"})
    tree(root, {"v": "cow"}, "val")
    for split in ("train", "val"):
        remember_dataset(cache, read_split(params(root), split))
    moved = Path(shutil.move(root, tmp_path / "pets"))
    for split in ("val", "train"):
        remember_dataset(cache, read_split(params(moved), split))
    assert entry(cache, "pets")["root"] == str(moved)


def test_another_data_set_of_the_same_name_is_refused_with_the_fix(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    remember_dataset(cache, read_split(params(tree(tmp_path / "x" / "pets", {"a": "cat", "b": "cat"})), "train"))
    before = entry(cache, "pets")
    other = tree(tmp_path / "y" / "pets", {"a": "cat", "b": "dog"})
    with pytest.raises(
        DataError, match=r"'pets' stands for voc:.*/x/pets.*image 'b' differs there.*--set data.name=pets-2"
    ):
        remember_dataset(cache, read_split(params(other), "train"))
    strangers = tree(tmp_path / "z" / "pets", {"q": "cat"})
    with pytest.raises(DataError, match=r"the cache knows none of these images.*--set data.name="):
        remember_dataset(cache, read_split(params(strangers), "train"))
    assert entry(cache, "pets") == before
    remember_dataset(cache, read_split(params(other, name="pets-2"), "train"))
    assert entry(cache, "pets-2")["root"] == str(other)


def test_edited_images_do_not_make_a_later_move_fail(tmp_path: Path) -> None:
    cache, root = tmp_path / "cache", tree(tmp_path / "x" / "pets", {"a": "cat", "b": "cat"})
    remember_dataset(cache, read_split(params(root), "train"))
    tree(root, {"a": "dog", "b": "cat"})
    remember_dataset(cache, read_split(params(root), "train"))
    moved = Path(shutil.move(root, tmp_path / "pets"))
    remember_dataset(cache, read_split(params(moved), "train"))
    assert entry(cache, "pets")["root"] == str(moved)


def test_demo_trees_of_another_generator_take_the_name_over(tmp_path: Path) -> None:
    cache, found = tmp_path / "cache", read_split(params(tree(tmp_path / "a", {"a": "cat"}), name="demo"), "train")
    other = read_split(params(tree(tmp_path / "b", {"a": "dog"}), name="demo"), "train")
    remember_dataset(cache, replace(found, format="demo"))
    remember_dataset(cache, replace(other, format="demo"))
    assert entry(cache, "demo")["root"] == other.root
    with pytest.raises(DataError, match="data.name="):
        remember_dataset(cache, found)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "voc"}'])
def test_a_broken_entry_is_put_aside_and_made_again(content: str, tmp_path: Path) -> None:
    found = read_split(params(tree(tmp_path / "pets", {"a": "cat"})), "train")
    path = tmp_path / "cache" / "datasets" / "pets.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    remember_dataset(tmp_path / "cache", found)
    assert path.with_name("pets.json.corrupt").read_text() == content
    assert entry(tmp_path / "cache", "pets")["classes"] == list(found.classes)
