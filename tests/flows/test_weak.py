"""Weak means weak: the flow `cfs` learns from boxes, and from nothing else that the data may hold.

The paper's whole figure is put to it: its first stage is the frame's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from flow_runs import FIGURE, Done, copy_of, demo_tree, run_cfs

from artifacts.datasets import DataParams, read_split
from benchmarks.soak_kill import differences, fingerprint


def bare_tree(tree: Path, to: Path) -> Path:
    """A copy without what `cfs` does not declare: train truth (class and object masks), tags and scribbles."""
    shutil.copytree(tree, to)
    train = (to / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    for kind in ("SegmentationClass", "SegmentationObject"):
        for image_id in train:
            (to / kind / f"{image_id}.png").unlink()
    shutil.rmtree(to / "WeakTags")
    shutil.rmtree(to / "ScribbleSup")
    (to / "demo.json").unlink()
    return to


@pytest.fixture(scope="module")
def bare(tiny: Done, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The frame's run on a tree without all that `cfs` may not see, in a cache of its own."""
    folder = tmp_path_factory.mktemp("weak")
    tree = bare_tree(demo_tree(tiny), folder / "bare")
    data = DataParams(source=f"voc:{tree}", name="demo-tiny")
    full = DataParams(source=f"voc:{demo_tree(tiny)}", name="demo-tiny")
    for record in read_split(data, "train"):
        assert record.truth is None and record.truth_objects is None and record.scribbles is None
        assert record.boxes is not None
    assert all(r.truth and r.truth_objects and r.scribbles is not None for r in read_split(full, "train")), (
        "the test shows nothing if there was nothing to remove"
    )
    return run_cfs(folder / "run", *source(tree))


def source(tree: Path) -> tuple[str, ...]:
    return ("--data", f"voc:{tree}", "--set", "data.name=demo-tiny")


def test_masks_and_checkpoint_are_the_same_without_truth_tags_and_scribbles(tiny: Done, bare: Done) -> None:
    assert bare.code == 0, bare.said
    assert bare.computed == tiny.computed, "a cache of its own: everything was worked out again"
    same(bare, tiny, fits=1)
    assert "24 images have no truth mask and are not scored" in bare.said


def test_so_are_those_of_the_whole_figure(whole: Done, bare: Done, tmp_path: Path) -> None:
    """CFS's network, its probabilities, the refined masks, and the student that its own labels guide."""
    done = run_cfs(copy_of(bare, tmp_path / "run"), *source(bare.out.parent / "bare"), *FIGURE)
    assert done.code == 0, done.said
    assert done.computed == whole.computed and done.computed["cfs"] == 1
    same(done, whole, fits=3)
    assert set(done.manifest["scores"]) == {"student (val)"}


def same(found: Done, expected: Done, *, fits: int) -> None:
    """Equal arrays, weights, curves and exports."""
    with_truth, without = fingerprint(expected.out), fingerprint(found.out)
    # The exports' own note of what they are made from names the data's place; all else is there and equal.
    notes = {name for name in with_truth if name.endswith("maskmill-export.json")}
    assert differences(drop(without, notes), drop(with_truth, notes)) == []
    assert sum(name.startswith("fit ") for name in without) == 2 * fits, "weights and the curve with val's scores"


def drop(found: dict[str, str], names: set[str]) -> dict[str, str]:
    return {name: digest for name, digest in found.items() if name not in names}
