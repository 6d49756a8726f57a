"""Weak means weak: a flow learns from the labels that its entry declares, and from nothing else that the data may hold.

The paper's whole figure is put to it, too: its first stages are the tiny run's.
"""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from flow_runs import Done, Runs, copy_of, demo_tree, figure_of, run_flow

from artifacts.datasets import DataParams, read_split
from artifacts.export.datacard import CARDS
from artifacts.records import Record
from benchmarks.soak_kill import differences, fingerprint
from flows.registry import FLOWS

KINDS = ("tags", "boxes", "scribbles")
HAS: dict[str, Callable[[Record], bool]] = {
    kind: lambda record, kind=kind: bool(getattr(record, kind)) for kind in KINDS
}
HAS |= {"truth": lambda record: record.truth is not None, "objects": lambda record: record.truth_objects is not None}


def bare_tree(tree: Path, to: Path, labels: Collection[str]) -> Path:
    """A copy whose training images have nothing but ``labels``: of truth at most the class masks, no other kind."""
    shutil.copytree(tree, to)
    train = (to / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    for image_id in train:
        for kind in ("SegmentationClass", "SegmentationObject")[int("truth" in labels) :]:
            (to / kind / f"{image_id}.png").unlink()
        annotation = to / "Annotations" / f"{image_id}.xml"
        document = ElementTree.parse(annotation)
        for one in document.findall("object"):
            if not {"boxes", "tags"} & set(labels):
                document.getroot().remove(one)
            elif "boxes" not in labels and (box := one.find("bndbox")) is not None:
                one.remove(box)
        document.write(annotation)
    for kind, folder in (("tags", "WeakTags"), ("scribbles", "ScribbleSup")):
        if kind not in labels:
            shutil.rmtree(to / folder)
    (to / "demo.json").unlink()
    return to


@pytest.mark.parametrize("labels", [("tags",), ("boxes",), ("scribbles",), ("boxes", "truth"), ()])
def test_the_bare_tree_shows_what_it_says(runs: Runs, tmp_path: Path, labels: tuple[str, ...]) -> None:
    """The tests below would show nothing if there had been nothing to remove, or if it were still there."""
    full = demo_tree(runs.tiny("cfs"))
    assert all(has(record) for record in records(full) for has in HAS.values())
    expected = {*labels, "tags"} if "boxes" in labels else {*labels}
    bare = records(bare_tree(full, tmp_path / "bare", labels))
    assert len(bare) == 24
    for record in bare:
        assert {kind for kind, has in HAS.items() if has(record)} == expected


def records(tree: Path) -> list[Record]:
    return list(read_split(DataParams(source=f"voc:{tree}", name="demo-tiny"), "train"))


@pytest.fixture(scope="module")
def bare(flow: str, runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The tiny run on a tree without all that the flow may not see, in a cache of its own."""
    folder = tmp_path_factory.mktemp("weak")
    tree = bare_tree(demo_tree(runs.tiny(flow)), folder / "bare", FLOWS[flow].labels)
    return run_flow(flow, folder / "run", *source(tree))


def source(tree: Path) -> tuple[str, ...]:
    return ("--data", f"voc:{tree}", "--set", "data.name=demo-tiny")


def test_masks_and_checkpoints_are_the_same_without_all_that_is_not_declared(flow: str, runs: Runs, bare: Done) -> None:
    assert bare.code == 0, bare.printed
    assert bare.computed == runs.tiny(flow).computed, "a cache of its own: everything was worked out again"
    same(bare, runs.tiny(flow))
    assert ("24 images have no truth mask and are not scored" in bare.printed) is ("truth" not in FLOWS[flow].labels)


def test_so_are_those_of_the_whole_figure(flow: str, runs: Runs, bare: Done, tmp_path: Path) -> None:
    """For ``cfs``: its network, its probabilities, the refined masks, and the student that its own labels guide."""
    whole = runs.whole(flow)
    done = run_flow(flow, copy_of(bare, tmp_path / "run"), *source(bare.out.parent / "bare"), *figure_of(flow))
    assert done.code == 0, done.printed
    if FLOWS[flow].figure:
        assert done.computed == whole.computed and any(done.computed.values())
    same(done, whole)
    scored = {name.rpartition(" ")[2] for name in done.manifest["scores"]}
    assert ("(train)" in scored) is ("truth" in FLOWS[flow].labels) and "(val)" in scored, "no train truth"


def same(found: Done, expected: Done) -> None:
    """Equal arrays, weights, curves and exports."""
    with_truth, without = fingerprint(expected.out), fingerprint(found.out)
    # The exports' own notes of what they are made from name the data's place and scores; all else is there and equal.
    notes = {name for name in with_truth if name.endswith(("maskmill-export.json", *CARDS))}
    assert differences(drop(without, notes), drop(with_truth, notes)) == []
    fits = {s["address"] for run in (found, expected) for s in run.manifest["stages"] if s["kind"] == "fit"}
    kept = [name for name in without if name.startswith("fit ")]
    for address in fits:
        mine = sorted(Path(name).name for name in kept if name.startswith(f"fit {address}/"))
        assert mine == ["metrics.jsonl", "weights.safetensors"], "weights and the curve with val's scores"


def drop(found: dict[str, str], names: set[str]) -> dict[str, str]:
    return {name: digest for name, digest in found.items() if name not in names}
