"""The configuration ``photo`` on pictures of the kinds that people have, as README's first command runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flow_runs import HERE, ONE_THREAD, Done, maskmill
from numpy.typing import NDArray
from PIL import Image

from artifacts.export.voc import DEVKIT

CROP = 32
SIZES_HW = {"grey": (40, 60), "deep": (64, 48), "alpha": (50, 45), "small": (20, 24), "whole": (40, 40)}
"""Of the pictures that can be read: ``small`` is smaller than the crop."""
BOXES = """image,class,x0,y0,x1,y1
grey.png,cat,10,8,40,32
grey.png,cat,50,3,51,4
deep.png,cat,8,10,40,50
alpha.png,dog,5,5,40,45
small.png,dog,4,4,20,16
whole.jpg,cat,0,0,40,40
broken.png,cat,1,1,9,9
val.png,dog,6,6,30,30
"""
"""A box of one pixel, and one as large as the picture."""
QUICK = ("params.deeplab.iterations=1", "params.deeplab.batch=2", f"params.deeplab.crop={CROP}")


def scene(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A bright disk on dark noise."""
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 3))
    return np.asarray(noise + np.where(inside[..., None], (200, 120, 60), (20, 60, 110)), np.uint8)


def photographs(folder: Path) -> Path:
    folder.mkdir()
    pictures = {name: scene(*size, seed) for seed, (name, size) in enumerate(SIZES_HW.items())}
    Image.fromarray(pictures["grey"]).convert("L").save(folder / "grey.png")
    Image.fromarray(pictures["deep"][..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    opaque = np.full((*SIZES_HW["alpha"], 1), 255, np.uint8)
    opaque[:5] = 0
    Image.fromarray(np.concatenate([pictures["alpha"], opaque], axis=2)).save(folder / "alpha.png")
    Image.fromarray(pictures["small"]).save(folder / "small.png")
    Image.fromarray(pictures["whole"]).save(folder / "whole.jpg")
    Image.fromarray(scene(36, 36, 9)).save(folder / "val.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "boxes.csv").write_text(BOXES)
    (folder / "val.txt").write_text("val\n")
    (folder / "train.txt").write_text("\n".join([*SIZES_HW, "broken", ""]))
    with Image.open(folder / "deep.png") as deep:
        assert deep.mode.startswith("I;16")
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("photo")
    given = [part for one in (*QUICK, "params.deeplab.test.flip=false") for part in ("--set", one)]
    source = f"folder:{photographs(folder / 'photos')}"
    command = ("cfs", "--data", source, "--config", "photo", "--export", "voc", "--quiet", *HERE, *ONE_THREAD)
    return maskmill(folder / "out", *command, *given, "--out", str(folder / "out"))


def test_the_broken_picture_alone_is_skipped(photo: Done) -> None:
    assert photo.code == 3, photo.printed
    assert photo.manifest["status"] == "finished"
    assert {Path(skip["path"]).name for skip in photo.manifest["skips"]} == {"broken.png"}
    assert "broken.png" in photo.printed


def test_every_mask_has_its_pictures_size_and_its_boxes_classes(photo: Done) -> None:
    folder = photo.out / "dataset-voc" / DEVKIT / "SegmentationClass"
    masks = {path.stem: np.asarray(Image.open(path)) for path in folder.glob("*.png")}
    assert masks.pop("val").shape == (36, 36), "the student's, as nothing else is known of it"
    assert {name: mask.shape for name, mask in masks.items()} == SIZES_HW
    for name, mask in masks.items():
        cls = {"alpha": 2, "small": 2}.get(name, 1)
        assert cls in np.unique(mask) and set(np.unique(mask)) <= {0, cls, 255}, name
    assert masks["grey"][3, 50] == 1, "the box of one pixel is its object"
    outside = np.ones(SIZES_HW["grey"], bool)
    outside[8:32, 10:40] = outside[3, 50] = False
    assert not (masks["grey"][outside] == 1).any()


def test_the_student_learnt_and_predicts(photo: Done) -> None:
    stages = {stage["label"]: stage for stage in photo.manifest["stages"]}
    assert stages["deeplab"]["kind"] == "fit" and stages["deeplab"]["output"]
    assert stages["student"]["computed"] == 1
    (published,) = (photo.out / "cache" / "fits" / stages["deeplab"]["address"]).glob("*/pub-*")
    lines = [json.loads(line) for line in (published / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[-1]["loss"]) and lines[-1]["step"] == 1
