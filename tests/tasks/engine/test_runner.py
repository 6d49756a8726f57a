"""Does the Runner do what is pending, all of it, and nothing else?"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from fit_stages import TinyParams
from safetensors.numpy import save, save_file

from artifacts.cache.fit_store import FitStore
from artifacts.records import DataError, Kind, Record, RecordSet
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner, StageFailed
from tasks.stage import PARAMS_CONFIG, FitHandle, FitStage, MapHandle, MapStage


@dataclass(frozen=True)
class Level:
    __pydantic_config__: ClassVar[dict[str, str]] = PARAMS_CONFIG
    level: int = 100


def stage(name: str = "threshold", level: int = 100, reads: tuple[Kind, ...] = ("image",), **changes: Any) -> MapStage:
    made = MapStage(name, 1, Level(level), reads, ("mask_hw",), f"stage_functions:{name}")
    return replace(made, **changes)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "count"
    monkeypatch.setenv("MASKMILL_TEST_COUNT", str(path))
    return path


def calls(path: Path) -> list[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(lines)


def images(folder: Path, names: list[str]) -> RecordSet:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    records = []
    for name in names:
        path = folder / f"{name}.png"
        if not path.exists():
            cv2.imwrite(str(path), rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        records.append(Record(name, str(path), tags=(1,)))
    return RecordSet("set", "train", ("thing",), tuple(records))


def options(tmp_path: Path, **changes: Any) -> RunParams:
    return RunParams(**{"cache": str(tmp_path / "cache"), "workers": 0, **changes})


def both(run: Runner, records: RecordSet, level: int = 100) -> tuple[MapHandle, MapHandle]:
    one = run.map(stage(level=level), records)
    return one, run.map(stage("invert", reads=()), records, source=one)


def test_a_second_run_computes_nothing_and_gives_the_same(tmp_path: Path, counted: Path) -> None:
    records = images(tmp_path / "i", ["a", "b", "ü c"])
    with Runner(options(tmp_path)) as run:
        first = both(run, records)
    assert len(calls(counted)) == 6
    with Runner(options(tmp_path)) as run:
        second = both(run, records)
        mask = run.store.read(second[0].address, "set/a", second[0].produced["set/a"].stamp)["mask_hw"]
    assert calls(counted) == []
    assert [handle.produced for handle in first] == [handle.produced for handle in second]
    image = cv2.imread(records.records[0].image)
    assert np.array_equal(mask, image.mean(2) > 100)


def test_one_new_image_computes_one_image_in_each_stage(tmp_path: Path, counted: Path) -> None:
    with Runner(options(tmp_path)) as run:
        both(run, images(tmp_path / "i", ["a", "b"]))
    calls(counted)
    with Runner(options(tmp_path)) as run:
        both(run, images(tmp_path / "i", ["a", "b", "c"]))
    assert calls(counted) == ["invert set/c", "threshold set/c"]


def test_a_changed_image_is_computed_again_and_an_undeclared_label_is_not_looked_at(
    tmp_path: Path, counted: Path
) -> None:
    records = images(tmp_path / "i", ["a", "b"])
    with Runner(options(tmp_path)) as run:
        both(run, records)
    calls(counted)
    cv2.imwrite(records.records[1].image, np.full((6, 8, 3), 200, np.uint8))
    relabelled = replace(records, records=tuple(replace(r, tags=(1, 1)) for r in records))
    with Runner(options(tmp_path)) as run:
        both(run, relabelled)
    assert calls(counted) == ["invert set/b", "threshold set/b"]


def test_a_changed_declared_label_makes_its_image_stale(tmp_path: Path, counted: Path) -> None:
    records = images(tmp_path / "i", ["a", "b"])
    with Runner(options(tmp_path)) as run:
        run.map(stage(reads=("image", "tags")), records)
    calls(counted)
    changed = replace(records, records=(records.records[0], replace(records.records[1], tags=())))
    with Runner(options(tmp_path)) as run:
        run.map(stage(reads=("image", "tags")), changed)
    assert calls(counted) == ["threshold set/b"]


def test_rerun_with_the_same_result_recomputes_nothing_behind_it(tmp_path: Path, counted: Path) -> None:
    records = images(tmp_path / "i", ["a", "b"])
    with Runner(options(tmp_path)) as run:
        both(run, records)
    calls(counted)
    with Runner(options(tmp_path, rerun=("threshold",))) as run:
        both(run, records)
    assert calls(counted) == ["threshold set/a", "threshold set/b"]


def test_another_param_is_another_address_and_the_old_one_stays(tmp_path: Path, counted: Path) -> None:
    records = images(tmp_path / "i", ["a"])
    with Runner(options(tmp_path)) as run:
        low = both(run, records)
        high = both(run, records, level=200)
        again = both(run, records)
    assert low[0].address != high[0].address
    assert low[1].address != high[1].address
    assert again[1].produced == low[1].produced
    assert len(calls(counted)) == 4
    assert [report.label for report in run.reports][:4] == ["threshold", "invert", "threshold@2", "invert@2"]


def test_rerun_names_one_round_or_all(tmp_path: Path) -> None:
    records = images(tmp_path / "i", ["a"])

    def rounds(rerun: tuple[str, ...]) -> list[int]:
        with Runner(options(tmp_path, rerun=rerun)) as run:
            for level in (1, 2, 3):
                run.map(stage(level=level), records)
        return [report.computed for report in run.reports]

    assert rounds(()) == [1, 1, 1]
    assert rounds(("threshold@2",)) == [0, 1, 0]
    assert rounds(("threshold",)) == [1, 1, 1]


def test_a_plan_counts_without_working_and_knows_what_depends(tmp_path: Path, counted: Path) -> None:
    records = images(tmp_path / "i", ["a", "b", "c"])
    with Runner(options(tmp_path)) as run:
        both(run, records.only(["a", "b"]))
    calls(counted)
    with Runner(options(tmp_path), planning=True) as run:
        both(run, records)
    assert [(r.label, r.cached, r.to_compute, r.unknown) for r in run.reports] == [
        ("threshold", 2, 1, 0),
        ("invert", 2, 0, 1),
    ]
    assert calls(counted) == []
    with Runner(options(tmp_path, rerun=("treshold",)), planning=True) as run:
        both(run, records)
        with pytest.raises(DataError, match="treshold: no such stage; this flow has invert, threshold"):
            run.check_rerun()


def test_broken_images_are_listed_and_the_rest_are_done(tmp_path: Path) -> None:
    records = images(tmp_path / "i", ["good", "empty", "text", "gone"])
    Path(records.records[1].image).write_bytes(b"")
    Path(records.records[2].image).write_text("not an image")
    Path(records.records[3].image).unlink()
    for _ in range(2):  # the second time from the cache
        with Runner(options(tmp_path)) as run:
            one, two = both(run, records)
        assert two.produced["set/good"].output is not None
        assert {key for key, produced in one.produced.items() if produced.output is None} == {
            "set/empty",
            "set/text",
            "set/gone",
        }
        assert {key for key, produced in two.produced.items() if produced.output is None} == {
            "set/empty",
            "set/text",
            "set/gone",
        }
        listed = {skip.key: skip for skip in run.skips}
        assert set(listed) == {"set/empty", "set/text", "set/gone"}
        assert listed["set/text"].path == records.records[2].image
        assert (listed["set/text"].permanent, listed["set/gone"].permanent) == (True, False)
        assert "No such file" in listed["set/gone"].reason


def test_all_images_broken_is_a_failure_that_names_the_first(tmp_path: Path) -> None:
    records = images(tmp_path / "i", ["a", "b"])
    for record in records:
        Path(record.image).write_bytes(b"")
    with (
        pytest.raises(StageFailed, match=r"threshold: all 2 images were skipped; the first: .*a\.png"),
        Runner(options(tmp_path)) as run,
    ):
        both(run, records)
    manifest = json.loads((run.folder.path / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert len(manifest["skips"]) == 2


def test_a_stages_own_fault_on_one_image_is_tried_again_next_time(tmp_path: Path) -> None:
    records = images(tmp_path / "i", ["a", "fault", "skip"])
    for computed in (1, 0):
        with Runner(options(tmp_path)) as run:
            run.map(stage("touchy", reads=()), records)
        assert run.reports[0].computed == computed, "what has a result, no skip"
        reasons = {skip.key: skip.reason for skip in run.skips}
        assert reasons.pop("set/fault").startswith("ZeroDivisionError: a fault of the stage (")
        assert reasons == {"set/skip": "nothing to see"}, "remembered, where the fault is tried again"
    (fault,) = (skip.reason for skip in run.skips if skip.key == "set/fault")
    assert "stage_functions.py:" in fault and 'raise ZeroDivisionError("a fault of the stage")' in fault
    assert "MASKMILL_LOG=debug shows the whole traceback" in fault


def test_an_image_over_the_pixel_limit_is_tried_again_when_the_limit_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = images(tmp_path / "i", ["a", "b"])
    cv2.imwrite(records.records[1].image, np.zeros((20, 20, 3), np.uint8))
    monkeypatch.setenv("MASKMILL_MAX_PIXELS", "100")
    with Runner(options(tmp_path)) as run:
        run.map(stage(), records)
    assert [skip.key for skip in run.skips] == ["set/b"]
    monkeypatch.setenv("MASKMILL_MAX_PIXELS", "1000")
    with Runner(options(tmp_path)) as run:
        run.map(stage(), records)
    assert (run.reports[0].computed, run.skips) == (1, [])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_part_of_a_checkpoint_is_the_one_that_a_map_reads(tmp_path: Path, workers: int) -> None:
    weights = save({"generator.w": np.array(3.0), "critic.w": np.array(5.0)})
    made = FitStore(tmp_path / "cache").publish("gan-0", "s", weights, members=[])
    fit_stage = FitStage("gan", 1, None, (), "nowhere:fit")
    net = FitHandle("gan", fit_stage, "gan-0", "s", made.digest, str(made.weights), part_digests=made.part_digests)
    records = images(tmp_path / "i", ["a"])
    with Runner(options(tmp_path, workers=workers)) as run:
        handles = [run.map(stage("first_weight", reads=()), records, net=net.part(n)) for n in ("generator", "critic")]
        masks = [run.store.read(h.address, "set/a", h.produced["set/a"].stamp)["mask_hw"] for h in handles]
    assert [mask[0, 0] for mask in masks] == [3, 5]


def test_a_file_of_networks_is_known_by_its_tensors(tmp_path: Path) -> None:
    tensors = {"generator.w": np.array(3.0), "critic.w": np.array(5.0)}
    records = images(tmp_path / "i", ["a"])
    for name, metadata in (("first", None), ("renamed", {"written": "later"})):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata)
        for planning in (True, False):
            with Runner(options(tmp_path), planning=planning) as run:
                net = run.load(tmp_path / f"{name}.safetensors")
                handles = [
                    run.map(stage("first_weight", reads=()), records, net=net.part(part))
                    for part in ("generator", "critic")
                ]
            if planning:
                assert [report.unknown for report in run.reports] == [0, 0], "known before any work"
        masks = [run.store.read(h.address, "set/a", h.produced["set/a"].stamp)["mask_hw"] for h in handles]
        assert [mask[0, 0] for mask in masks] == [3, 5]
    assert [report.computed for report in run.reports] == [0, 0], "another name and header, the same tensors"
    assert run.handles == handles, "a file is no stage of the run"
    save_file({**tensors, "critic.w": np.array(6.0)}, tmp_path / "first.safetensors")
    with Runner(options(tmp_path)) as run:
        net = run.load(tmp_path / "first.safetensors")
        for part in ("generator", "critic"):
            run.map(stage("first_weight", reads=()), records, net=net.part(part))
        loaded = run.write_manifest("finished")["loaded"]
    assert loaded == [{"path": str(tmp_path / "first.safetensors"), "digest": net.digest}]
    assert [report.computed for report in run.reports] == [0, 1], "a part is known by its own tensors"


def test_a_file_of_networks_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not a network")
    save_file({"generator.w": np.array(3.0)}, tmp_path / "one.safetensors")
    with Runner(options(tmp_path), planning=True) as run:
        with pytest.raises(DataError, match=r"missing.safetensors: No such file or directory; check the path"):
            run.load(tmp_path / "missing.safetensors")
        with pytest.raises(DataError, match=r"text.safetensors: no safetensors file, or cut short"):
            run.load(str(tmp_path / "text.safetensors"))
        with pytest.raises(DataError, match=r"one.safetensors has networks \['generator'\], not 'critic'"):
            run.load(tmp_path / "one.safetensors").part("critic")


def test_a_fit_starts_from_a_file(tmp_path: Path) -> None:
    records = images(tmp_path / "i", ["a", "b"])
    learnt = FitStage("tiny", 1, TinyParams(iterations=1, batch=2), ("image",), "fit_stages:fit")
    save_file({"w": np.array(3.0)}, tmp_path / "w.safetensors")
    with Runner(options(tmp_path, launch="inline", device="cpu")) as run:
        init = run.load(tmp_path / "w.safetensors")
        assert run.fit(learnt, records, init=init).stamp != run.fit(learnt, records).stamp


def test_an_annotation_for_another_size_is_a_skip_where_positions_are_read(tmp_path: Path) -> None:
    records = images(tmp_path / "i", ["a", "b"])
    boxed = tuple(replace(r, boxes=(), size_hw=(6, 8) if r.image_id == "a" else (8, 6)) for r in records)
    records = replace(records, records=boxed)
    with Runner(options(tmp_path)) as run:
        found = run.map(stage(reads=("image", "boxes")), records)
        run.map(stage(), records)
    (skip,) = run.skips
    assert (skip.key, found.produced["set/a"].output is None) == ("set/b", False)
    assert "the image is (6, 8)" in skip.reason
    assert "made for (8, 6)" in skip.reason
    mended = replace(records, records=tuple(replace(record, size_hw=(6, 8)) for record in records))
    with Runner(options(tmp_path)) as run:
        found = run.map(stage(reads=("image", "boxes")), mended)
    assert (run.reports[0].computed, found.produced["set/b"].output is None) == (1, False)


def test_undeclared_outputs_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(
            StageFailed, match=r"declares outputs \['mask_hw'\], stage_functions:first_axis_only returned \['mask'\]"
        ),
        Runner(options(tmp_path)) as run,
    ):
        run.map(stage("first_axis_only"), images(tmp_path / "i", ["a"]))


def test_an_upstream_over_other_images_is_refused(tmp_path: Path) -> None:
    records = images(tmp_path / "i", ["a", "b"])
    with Runner(options(tmp_path)) as run:
        one = run.map(stage(), records.only(["a"]))
        with pytest.raises(DataError, match="lacks 1 of its 2 images"):
            run.map(stage("invert"), records, source=one)


def test_workers_give_the_same_as_none_and_an_abort_costs_one_image(tmp_path: Path) -> None:
    names = [f"i{i}" for i in range(12)]
    records = images(tmp_path / "i", names)
    with Runner(options(tmp_path)) as run:
        alone = both(run, records)
    with Runner(options(tmp_path, cache=str(tmp_path / "other"), workers=2)) as run:
        shared = both(run, records)
        deadly = run.map(stage("touchy", reads=()), images(tmp_path / "i", [*names, "abort"]))
    assert [handle.produced for handle in alone] == [handle.produced for handle in shared]
    assert sum(produced.output is not None for produced in deadly.produced.values()) == 12
    (skip,) = run.skips
    assert skip.key == "set/abort"
    assert "SIGABRT" in skip.reason


def test_a_damaged_segment_costs_its_images_once(tmp_path: Path, counted: Path) -> None:
    records = images(tmp_path / "i", ["a", "b"])
    with Runner(options(tmp_path)) as run:
        one = run.map(stage(), records)
    segments = sorted((tmp_path / "cache" / "maps" / one.address).glob("*.h5"))
    data = bytearray(segments[0].read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    os.chmod(segments[0], 0o600)
    segments[0].write_bytes(data)
    calls(counted)
    with Runner(options(tmp_path)) as run:
        both(run, records)
    hurt = {skip.key for skip in run.skips}
    with Runner(options(tmp_path)) as run:
        _, two = both(run, records)
    assert all(produced.output is not None for produced in two.produced.values())
    assert run.skips == []
    assert hurt <= {"set/a", "set/b"}


def test_a_relative_cache_is_named_whole_where_others_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a cluster, and fits that are started by hand, have folders of their own."""
    monkeypatch.chdir(tmp_path)
    stage = FitStage("tiny", 1, TinyParams(iterations=1), ("image",), "fit_stages:fit")
    with Runner(options(tmp_path, cache="cache", launch="inline", device="cpu")) as run:
        fitted = run.fit(stage, images(tmp_path / "i", ["a", "b"]))
        assert run.store.root == tmp_path / "cache"
    assert Path(fitted.path).is_relative_to(tmp_path / "cache")
