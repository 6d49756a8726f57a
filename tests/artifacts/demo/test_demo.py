"""The embedded demo data: the same bytes every time, labels that are true, and an ordinary VOC tree."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from artifacts.datasets import DataParams, read_split
from artifacts.demo import data as demo
from artifacts.demo.data import (
    AUX_CLASSES,
    DEMO,
    DEMO_CLASSES,
    DEMO_TINY,
    DemoParams,
    DemoSample,
    make_sample,
    write_demo,
)
from artifacts.demo.geometry import at, ellipse, limb, spline, turn
from artifacts.demo.paint import relief
from artifacts.demo.strokes import background_strokes, object_stroke
from artifacts.records import DataError

SMALL = DemoParams(train=5, val=2, size=64)


@pytest.fixture(scope="module")
def few() -> list[DemoSample]:
    auxiliary = DemoParams(family="auxiliary")
    return [make_sample(DEMO, "train", i) for i in range(30)] + [make_sample(auxiliary, "train", i) for i in range(12)]


def digest_of_tree(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# -- the same every time ---------------------------------------------------------------------------------------------


def test_same_params_give_the_same_bytes(tmp_path: Path) -> None:
    write_demo(tmp_path / "a", SMALL)
    write_demo(tmp_path / "b", SMALL)
    first, second = digest_of_tree(tmp_path / "a"), digest_of_tree(tmp_path / "b")
    assert first == second and len(first) == 5 * 7 + 5  # five files an image, two lists, tags, classes, marker


def test_a_picture_depends_on_no_other_picture_and_no_process() -> None:
    code = (
        "from artifacts.demo.data import *; import hashlib; s = make_sample(DEMO, 'val', 7);"
        "print(hashlib.sha256(s.image_rgb.tobytes() + s.objects_hw.tobytes() + repr(s.scribbles).encode()).hexdigest())"
    )
    digest = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    more = dataclasses.replace(DEMO, train=3, val=1000, auxiliary=5)
    np.random.seed(3)  # the global generator has no say
    sample = make_sample(more, "val", 7)
    data = sample.image_rgb.tobytes() + sample.objects_hw.tobytes() + repr(sample.scribbles).encode()
    assert digest.strip() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("change", [{"seed": 1}, {"family": "auxiliary"}])
def test_seed_and_family_change_the_picture(change: dict[str, object]) -> None:
    other = dataclasses.replace(DEMO, **change)  # type: ignore[arg-type]
    assert not np.array_equal(make_sample(DEMO, "train", 0).image_rgb, make_sample(other, "train", 0).image_rgb)


def test_splits_and_images_differ() -> None:
    pictures = {make_sample(SMALL, s, i).image_rgb.tobytes() for s in ("train", "val") for i in range(2)}
    assert len(pictures) == 4


def test_other_pictures_are_another_version() -> None:
    """When this fails on purpose: raise DEMO_VERSION, and write the new boxes down."""
    assert demo.DEMO_VERSION == 2
    golden = {
        0: (("cart", "grazer"), [(34, 8, 96, 61), (1, 19, 65, 87)]),
        1: (("kettle",), [(19, 40, 96, 76)]),
        2: (("fish", "fish", "cart"), [(4, 38, 53, 55), (20, 55, 55, 74), (40, 42, 91, 87)]),
    }
    for index, (classes, boxes) in golden.items():
        sample = make_sample(DEMO, "train", index)
        assert sample.classes == classes
        assert np.abs(np.array(sample.boxes_xyxy) - boxes).max() <= 1, "rounding may differ between processors"


# -- labels are true -------------------------------------------------------------------------------------------------


def test_boxes_are_tight_around_what_is_visible(few: list[DemoSample]) -> None:
    for sample in few:
        for number, (x0, y0, x1, y1) in enumerate(sample.boxes_xyxy, 1):
            rows, columns = np.nonzero(sample.objects_hw == number)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)


def test_class_mask_and_object_mask_agree(few: list[DemoSample]) -> None:
    for sample in few:
        table = AUX_CLASSES if sample.image_id.startswith("aux") else DEMO_CLASSES
        for number, name in enumerate(sample.classes, 1):
            assert np.unique(sample.mask_hw[sample.objects_hw == number]).tolist() == [table.index(name) + 1]
        assert np.array_equal(sample.mask_hw == 0, sample.objects_hw == 0)
        assert sample.objects_hw.max() == len(sample.classes) == len(sample.boxes_xyxy)
        assert sample.image_rgb.shape == (96, 96, 3) and sample.image_rgb.dtype == np.uint8
        assert min((sample.objects_hw == n).sum() for n in range(1, len(sample.classes) + 1)) >= 90


def test_scribbles_run_inside_what_they_name(few: list[DemoSample]) -> None:
    for sample in few:
        regions = [sample.objects_hw == n for n in range(1, len(sample.classes) + 1)]
        names = [name for name, _ in sample.scribbles]
        assert names[: len(regions)] == list(sample.classes), "one stroke in each object"
        assert set(names[len(regions) :]) <= {"background"}
        for (_, path), region in zip(sample.scribbles, [*regions, *[sample.objects_hw == 0] * 9], strict=False):
            line = np.zeros(region.shape, np.uint8)
            cv2.polylines(line, [np.array(path, np.int32)], False, 1, 1)
            assert line.any() and region[line > 0].all()
    with_background = sum(any(name == "background" for name, _ in sample.scribbles) for sample in few)
    assert with_background >= 0.95 * len(few)


def test_an_object_stroke_is_long_and_runs_along_the_middle() -> None:
    region = np.zeros((40, 100), bool)
    region[15:26, 5:95] = True
    for seed in range(5):
        path = np.array(object_stroke(np.random.default_rng(seed), region))
        assert np.ptp(path[:, 0]) >= 0.3 * 90
        assert np.abs(path[:, 1] - 20).mean() <= 3


def test_strokes_of_thin_and_empty_regions() -> None:
    speck = np.zeros((9, 9), bool)
    speck[4, 4] = True
    assert object_stroke(np.random.default_rng(0), speck) == ((4.0, 4.0),)
    with pytest.raises(ValueError, match="empty region"):
        object_stroke(np.random.default_rng(0), ~np.ones((9, 9), bool))
    assert background_strokes(np.random.default_rng(0), speck, 3) == []


def test_every_class_turns_up_and_bodies_do_not_tell_them_apart(few: list[DemoSample]) -> None:
    target = few[:30]
    for name in DEMO_CLASSES:
        assert sum(name in s.classes for s in target) >= 6
    assert set(DEMO_CLASSES).isdisjoint(AUX_CLASSES) and len(DEMO_CLASSES) == 5 and len(AUX_CLASSES) == 6
    # The mean colour of a class over many individuals is nearly the same for all classes.
    means = []
    for name in DEMO_CLASSES:
        own = [s.image_rgb[s.objects_hw == n].mean(0) for s in target for n, c in enumerate(s.classes, 1) if c == name]
        means.append(np.mean(own, axis=0))
    assert np.ptp(means, axis=0).max() < 60


def test_boxes_are_as_hard_as_they_should_be(few: list[DemoSample]) -> None:
    """Mean fill of a box: 0.49 over the demo set, so that filled boxes are poor masks."""
    fill = [
        (s.objects_hw == n).sum() / ((b[2] - b[0]) * (b[3] - b[1])) for s in few for n, b in enumerate(s.boxes_xyxy, 1)
    ]
    assert 0.4 < np.mean(fill) < 0.58


# -- geometry and light ----------------------------------------------------------------------------------------------


def test_turning_is_clockwise_on_the_screen() -> None:
    np.testing.assert_allclose(turn(at(1, 0), np.pi / 2), [0, 1], atol=1e-12)  # right -> down


def test_splines_pass_through_their_points() -> None:
    knots = np.array([(0, 0), (2, 1), (3, 4), (-1, 3)], float)
    np.testing.assert_allclose(spline(knots, steps=5)[::5], knots, atol=1e-12)
    open_curve = spline(knots, closed=False, steps=5)
    np.testing.assert_allclose(open_curve[[0, 5, 10, 15]], knots, atol=1e-12)


def test_a_limb_has_the_radius_asked_for() -> None:
    outline = limb([(0, 0), (10, 0)], [2, 1])
    assert outline[:, 0].min() == pytest.approx(-2, abs=0.1) and outline[:, 0].max() == pytest.approx(11, abs=0.1)
    assert outline[:, 1].max() == pytest.approx(2, abs=0.1)


def test_relief_is_bright_where_it_faces_the_light() -> None:
    mask = np.zeros((60, 60), np.uint8)
    cv2.fillPoly(mask, [ellipse(30, 30, 20, 20).astype(np.int32)], 1)
    from_left = relief(mask, (-1.0, 0.0), 15)
    assert from_left[30, 13] > from_left[30, 30] > from_left[30, 47]
    from_above = relief(mask, (0.0, -1.0), 15)
    assert from_above[13, 30] > from_above[47, 30]


# -- on disk ---------------------------------------------------------------------------------------------------------


def test_the_reader_reads_what_was_drawn(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    write_demo(root, SMALL)
    for split in ("train", "val"):
        found = read_split(DataParams(source=f"voc:{root}"), split)
        assert found.classes == DEMO_CLASSES and len(found) == getattr(SMALL, split)
        assert not found.skips and not found.warnings
        for index, record in enumerate(found):
            sample = make_sample(SMALL, split, index)
            assert record.image_id == sample.image_id and record.size_hw == (64, 64)
            assert record.boxes is not None and record.scribbles is not None
            assert record.truth is not None and record.truth_objects is not None
            assert [b.xyxy for b in record.boxes] == list(sample.boxes_xyxy)
            assert [DEMO_CLASSES[b.class_id - 1] for b in record.boxes] == list(sample.classes)
            assert set(record.tags or ()) == {b.class_id for b in record.boxes}
            assert [s.points_xy for s in record.scribbles] == [points for _, points in sample.scribbles]
            assert [s.class_id for s in record.scribbles] == [
                0 if name == "background" else DEMO_CLASSES.index(name) + 1 for name, _ in sample.scribbles
            ]
            assert np.array_equal(record.truth.load(), sample.mask_hw)
            masks, ids = record.truth_objects.load()
            for mask, number in zip(masks, ids, strict=True):
                assert np.array_equal(mask, sample.objects_hw == number + 1)
            image_bgr = cv2.imread(record.image)
            assert image_bgr is not None
            off = np.abs(image_bgr[:, :, ::-1].astype(int) - sample.image_rgb)
            assert off.mean() < 4, "JPEG changes little"


def test_auxiliary_images_are_a_tree_of_their_own(tmp_path: Path) -> None:
    write_demo(tmp_path / "tree", DemoParams(train=1, val=0, size=48, auxiliary=3))
    found = read_split(DataParams(source=f"voc:{tmp_path / 'tree' / demo.AUXILIARY_FOLDER}"), "train")
    assert found.classes == AUX_CLASSES and len(found) == 3
    assert len(read_split(DataParams(source=f"voc:{tmp_path / 'tree'}"), "train")) == 1


def test_writing_twice_touches_nothing(tmp_path: Path) -> None:
    params = DemoParams(train=1, val=0, size=48)
    (tmp_path / "tree").mkdir()  # an empty folder may be there
    write_demo(tmp_path / "tree", params)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "tree").rglob("*")}
    write_demo(tmp_path / "tree", params)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "tree").rglob("*")}
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_another_tree_is_not_overwritten(tmp_path: Path) -> None:
    params = DemoParams(train=1, val=0, size=48)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="mine exists and is no demo data; choose another folder"):
        write_demo(tmp_path / "mine", params)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    write_demo(tmp_path / "tree", params)
    with pytest.raises(DataError, match="holds demo data of other params.*remove the folder"):
        write_demo(tmp_path / "tree", dataclasses.replace(params, seed=1))


def test_a_failed_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "_jpeg", full)
    with pytest.raises(OSError, match="No space left"):
        write_demo(tmp_path / "tree", DEMO_TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_tree_in_the_cache_that_was_cut_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PRESETS", {"demo-small": DemoParams(train=2, val=1, size=48)})
    root = demo.prepare_demo("demo-small", tmp_path)
    before = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert len(before) == 3 * 5 + 2 + 3
    for name in before:
        (root / name).unlink()
        assert demo.prepare_demo("demo-small", tmp_path) == root
        assert {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} == before, name
    (root / demo.MARKER).write_text("{")
    demo.prepare_demo("demo-small", tmp_path)
    assert {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_presets(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no demo data 'demo-huge'; there is demo, demo-tiny, demo-claims, demo-auxiliary"
    ):
        demo.prepare_demo("demo-huge", tmp_path)
    assert {demo.PRESETS[name].family for name in ("demo-auxiliary", "demo-tiny-auxiliary")} == {"auxiliary"}
    assert (DEMO.train, DEMO.val, DEMO.size, DEMO_TINY.train, DEMO_TINY.val) == (240, 60, 96, 24, 8)
    compared = demo.PRESETS["demo-claims"]
    assert dataclasses.replace(compared, seed=0, train=240, val=60) == DEMO and compared.seed != DEMO.seed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 47}, r"size=47 must lie in 48\.\.512"),
        ({"train": 0}, r"train=0 must lie in 1\.\."),
        ({"seed": -1}, "seed=-1"),
        ({"family": "other"}, "family='other' must be one of target, auxiliary"),
        ({"family": "auxiliary", "auxiliary": 3}, "auxiliary=3 must be 0"),
    ],
)
def test_impossible_params(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemoParams(**wrong)  # type: ignore[arg-type]
