"""Do the trainers' own loaders read an exported folder as it is, both splits, to the pixel?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flow_runs import Done, copy_of, demo_tree, maskmill
from numpy.typing import NDArray
from PIL import Image

from artifacts.export.datacard import CARD_JSON
from artifacts.export.regions import fill_polygons
from flows.cli.export import export
from tasks.evaluate.run_suspicion import Beside

CLASSES = ["grazer", "kettle", "cart", "fish", "plant"]
Masks = dict[str, dict[str, NDArray[np.uint8]]]


@pytest.fixture(scope="module")
def expected(tiny: Done) -> Masks:
    """Split -> image id -> mask: the run's of the training pictures, truth of the others."""
    manifest = tiny.manifest
    beside = Beside.of(tiny.out / "cache", manifest, manifest["masks"])
    tree = demo_tree(tiny)
    val = (tree / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    return {
        "train": {key.partition("/")[2]: beside.mine(key)["mask_hw"] for key in beside.pictures},
        "val": {one: np.asarray(Image.open(tree / "SegmentationClass" / f"{one}.png")) for one in val},
    }


@pytest.fixture(scope="module")
def folder(tiny: Done, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's exports to COCO and YOLO, beside the VOC tree that it left itself."""
    out = tmp_path_factory.mktemp("trainers")
    for kind in ("coco", "yolo-seg"):
        export(tiny.out / "cache", "latest", "", kind, out / kind)
    (out / "voc").symlink_to(tiny.out / "dataset-voc")
    return out


@pytest.mark.parametrize("split", ["train", "val"])
def test_torchvision(folder: Path, expected: Masks, split: str) -> None:
    from torchvision.datasets import VOCSegmentation

    found = VOCSegmentation(str(folder / "voc"), year="2012", image_set=split)
    assert len(found) == len(expected[split])
    for place, image_id in enumerate(sorted(expected[split])):
        image, mask = found[place]
        assert image.size == mask.size
        assert np.array_equal(np.asarray(mask), expected[split][image_id])


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_and_torchvisions_coco(folder: Path, expected: Masks, split: str) -> None:
    from torchvision.datasets import CocoDetection

    found = CocoDetection(
        str(folder / "coco" / "images"), str(folder / "coco" / "annotations" / f"instances_{split}.json")
    )
    assert [one["name"] for one in found.coco.cats.values()] == CLASSES
    assert len(found) == len(expected[split])
    for place, number in enumerate(found.ids):
        image, annotations = found[place]
        wanted = expected[split][Path(found.coco.imgs[number]["file_name"]).stem]
        assert image.size == wanted.shape[::-1] and annotations
        covered = np.zeros(wanted.shape, np.bool_)
        for one in annotations:
            part = found.coco.annToMask(one) > 0
            assert part.any() and (wanted[part] > 0).any()
            covered |= part
        assert covered[(wanted > 0) & (wanted < 255)].all(), "what is labelled is of an object"


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The package, which must not fetch anything: no settings of a user, no font, no network."""
    settings = tmp_path_factory.mktemp("ultralytics")
    (settings / "Arial.ttf").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(settings))
        patch.setenv("YOLO_OFFLINE", "true")
        patch.setenv("YOLO_AUTOINSTALL", "false")
        yield pytest.importorskip("ultralytics")


@pytest.mark.parametrize("split", ["train", "val"])
def test_ultralytics(folder: Path, expected: Masks, split: str, ultralytics: Any, tmp_path: Path) -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    here = Path.cwd()
    os.chdir(tmp_path)  # a trainer is started anywhere
    try:
        data = check_det_dataset(str(folder / "yolo-seg" / "data.yaml"), autodownload=False)
    finally:
        os.chdir(here)
    assert list(data["names"].values()) == CLASSES
    found = build_yolo_dataset(get_cfg(overrides={"task": "segment"}), data[split], 2, data, mode="val")
    assert len(found) == len(expected[split])
    for one in found.labels:
        wanted = expected[split][Path(one["im_file"]).stem]
        assert tuple(one["shape"]) == wanted.shape
        size_hw = (wanted.shape[0], wanted.shape[1])
        classes = one["cls"].ravel().astype(int) + 1
        for number in range(1, len(CLASSES) + 1):
            mine = [s * size_hw[::-1] for s, c in zip(one["segments"], classes, strict=True) if c == number]
            assert np.array_equal(fill_polygons(mine, size_hw), wanted == number)
    assert found[0]["masks"].any(), "and it makes tensors of them"


@pytest.mark.parametrize("split", ["train", "val"])
def test_mmsegmentation(folder: Path, expected: Masks, split: str) -> None:
    """By what it documents for ``BaseSegDataset``: it does not install here."""
    text = (folder / "voc" / "mmseg.py").read_text().replace("{{ fileDirname }}", str(folder / "voc"))
    config: dict[str, Any] = {}
    exec(text, config)
    one = config[f"{split}_dataset"]
    assert one["type"] == "BaseSegDataset" and one["metainfo"]["classes"] == ["background", *CLASSES]
    assert len(one["metainfo"]["palette"]) == 6 and one["metainfo"]["palette"][1] == [128, 0, 0]
    assert (one["reduce_zero_label"], one["ignore_index"]) == (False, 255)
    root = Path(one["data_root"])
    ids = [line.strip() for line in (root / one["ann_file"]).read_text().splitlines()]
    assert sorted(ids) == sorted(expected[split])
    for image_id in ids:
        image = Image.open(root / one["data_prefix"]["img_path"] / (image_id + one["img_suffix"]))
        mask = Image.open(root / one["data_prefix"]["seg_map_path"] / (image_id + one["seg_map_suffix"]))
        assert image.size == mask.size and np.array_equal(np.asarray(mask), expected[split][image_id])


def test_the_data_card_counts_what_is_there_and_says_how_it_was_made(folder: Path, expected: Masks, tiny: Done) -> None:
    for kind in ("voc", "coco", "yolo-seg"):
        card = json.loads((folder / kind / CARD_JSON).read_text())
        for split, masks in expected.items():
            one = card["splits"][split]
            assert one["pictures"] == len(masks) and one["pixels"] == sum(mask.size for mask in masks.values())
            for row in one["per_class"]:
                assert row["pixels"] == sum(int((mask == row["number"]).sum()) for mask in masks.values())
                assert row["pictures"] == sum(bool((mask == row["number"]).any()) for mask in masks.values())
        assert [row["name"] for row in one["per_class"]] == ["background", *CLASSES]
        assert sum(row["objects"] or 0 for row in card["splits"]["train"]["per_class"]) == 45
        assert card["made"]["flow"] == "cfs" and card["made"]["seeds"]["params.grabcut.seed"] == 0
        assert card["scores"]["masks (train)"]["miou"] == tiny.manifest["scores"]["masks (train)"]["miou"]
        assert card["suspicion"]["pictures"] == 24 and len(card["suspicion"]["worst"]) == 10


def test_confidence_lies_beside_every_mask_and_its_lowest_pixels_become_undecided(
    tiny: Done, expected: Masks, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ("export", "--cache", str(tiny.out / "cache"), "--to", str(out), "--format", "voc", "--no-images")
    done = maskmill(tmp_path, *given, "--confidence", "--undecided-below", "128")
    assert done.code == 0, done.printed
    wrong: list[NDArray[np.bool_]] = []
    doubt: list[NDArray[np.bool_]] = []
    for image_id, mask_hw in expected["train"].items():
        confidence_hw = np.asarray(Image.open(out / "confidence" / f"{image_id}.png"))
        found_hw = np.asarray(Image.open(out / "VOCdevkit/VOC2012/SegmentationClass" / f"{image_id}.png"))
        assert confidence_hw.dtype == np.uint8 and confidence_hw.shape == mask_hw.shape
        assert np.array_equal(found_hw, np.where(confidence_hw < 128, 255, mask_hw))
        truth_hw = np.asarray(Image.open(demo_tree(tiny) / "SegmentationClass" / f"{image_id}.png"))
        wrong.append((truth_hw != mask_hw)[truth_hw != 255])
        doubt.append((confidence_hw < 128)[truth_hw != 255])
    of_doubtful = np.concatenate(wrong)[np.concatenate(doubt)].mean()
    assert of_doubtful > 2 * np.concatenate(wrong).mean(), "pixels that it doubts are wrong more often"
    assert maskmill(tmp_path, *given, "--undecided-below", "300").code == 2


def test_a_trainers_own_cache_does_not_keep_an_export_from_being_made_again(tiny: Done, tmp_path: Path) -> None:
    out = copy_of(tiny, tmp_path / "run")
    to = tmp_path / "yolo"
    export(out / "cache", "latest", "", "yolo-seg", to, images=False)
    (to / "labels" / "train.cache").write_bytes(b"of a trainer")
    export(out / "cache", "latest", "", "yolo-seg", to)
    assert (to / "images").is_dir() and not (to / "labels" / "train.cache").exists()
