"""`maskmill compare` over different flows: the file, what makes them comparable, labels, seconds, the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flow_runs import HERE, ONE_THREAD, Done, copy_of, maskmill, share_demo

from flows.compare.methods import Method, Methods, build_methods, parse_minutes, read_methods
from flows.compare.trials import Attempt, History
from flows.compare.variants import Variant
from flows.config import ConfigError
from flows.registry import SHIPPED
from tasks.engine.options import RunParams

EVIL = "<b>tags</b>"


@pytest.fixture(scope="module")
def cache(tiny: Done, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share_demo(tiny, tmp_path_factory.mktemp("methods"))


def build(cache: Path, *methods: Method, **given: Any) -> list[Variant]:
    options = {"cache": str(cache), "workers": 0, "progress": False}
    return build_methods(methods, (0,), data=given.pop("data", "demo-tiny"), options=options, **given)[0]


# -- the file --------------------------------------------------------------------------------------------------------


def test_a_file_names_flow_configuration_and_what_is_set(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "boxes: {flow: cfs}\n"
        "tags: {flow: rrm, config: demo-tiny-rrm, params: {rrm: {iterations: 4}}, data: {aux: {source: demo}}}\n"
    )
    assert read_methods(path) == [
        Method("boxes", "cfs", None, ()),
        Method("tags", "rrm", "demo-tiny-rrm", ("params.rrm.iterations=4", "data.aux.source=demo")),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {flow: csf}", "variant 'a': flow: expected one of cfs, .*found 'csf'"),
        ("a: {proposals: box}", "variant 'a': unknown 'proposals'; there are flow, config, params, data"),
        ("a: {flow: [cfs]}", r"found \['cfs'\]"),
        ("a: {flow: cfs, config: 3}", "config: expected a YAML file"),
        ("a: {flow: cfs, params: box}", "params: expected {KEY: VALUE}, found 'box'"),
        ("a: {flow: cfs, params: {deeplab: {seed: 3}}}", "params.deeplab.seed: seeds are given by --seeds"),
    ],
)
def test_an_entry_that_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_methods(tmp_path / "m.yaml")


def test_flows_are_compared_on_the_same_pictures(cache: Path) -> None:
    cfs = Method("a", "cfs", None, ())
    lpg = Method("b", "lpg", "demo-tiny-lpg", ())
    found = build(cache, cfs, lpg)
    assert [variant.flow for variant in found] == ["cfs", "lpg"]
    assert found[0].sets is not None and found[0].sets.aux is None
    assert found[1].sets is not None and found[1].sets.aux is not None, "auxiliary data may differ"
    assert found[1].settings == ("flow=lpg", "config=demo-tiny-lpg")
    with pytest.raises(
        ConfigError, match=r"'b' has data\.train='val', 'a' has 'train': flows are compared on the same"
    ):
        build(cache, cfs, Method("b", "lpg", None, ("data.train=val",)))
    with pytest.raises(ConfigError, match=r"'b' has options\.refit='never'"):
        build(cache, cfs, Method("b", "lpg", None, ("options.refit=never",)))
    with pytest.raises(ConfigError, match="'a' and 'b' are the same configuration"):
        build(cache, cfs, Method("b", "cfs", None, ()))
    with pytest.raises(ConfigError, match=r"variant 'b': params\.porposals"):
        build(cache, cfs, Method("b", "cfs", None, ("params.porposals=box",)))


@pytest.mark.parametrize("text", ["boxes", "boxes=x", "boxes=-1", "cats=3", "boxes=inf", "boxes=nan"])
def test_minutes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--minutes"):
        parse_minutes(text)
    assert parse_minutes("boxes=0.5, tags=1") == {"boxes": 0.5, "tags": 1.0} and parse_minutes("") == {}


# -- the table -------------------------------------------------------------------------------------------------------


def test_labels_are_counted_and_cost_what_is_said(cache: Path) -> None:
    flows = {"cfs": None, "lpg": "demo-tiny-lpg", "rrm": None, "bpg": None}
    variants = build(cache, *(Method(flow, flow, config, ()) for flow, config in flows.items()))
    assert variants[1].sets is not None
    train, aux = variants[1].sets.train, variants[1].sets.aux
    assert aux is not None
    boxes, tags = (sum(len(getattr(r, kind)) for r in train) for kind in ("boxes", "tags"))
    aux_boxes, strokes = sum(len(r.boxes or ()) for r in aux), sum(len(r.strokes) for r in train)
    options = RunParams(cache=str(cache), workers=0, progress=False)
    found = Methods.of(variants, variants[0].sets or pytest.fail("read"), options, {"boxes": 0.5, "masks": 4.0})
    assert found.labels["cfs"] == f"{boxes} boxes" and found.labels["rrm"] == f"{tags} tags"
    assert found.labels["bpg"] == f"{strokes} scribbles"
    assert found.labels["lpg"] == f"{boxes} boxes, {aux_boxes} auxiliary boxes, 12 auxiliary masks"
    assert found.hours["cfs"] == pytest.approx(24 * 0.5 / 60) and found.hours["rrm"] is None
    assert found.hours["lpg"] == pytest.approx((24 * 0.5 + 12 * 0.5 + 12 * 4.0) / 60)
    assert sum("state no time" in note for note in found.notes) == 4
    assert sum("15 times less work" in note and "section 2.2" in note for note in found.notes) == 1
    assert all(entry.label_cost for entry in SHIPPED if entry.claims)


def test_a_row_says_masks_objects_student_time_and_labels() -> None:
    scores = {
        "masks (train) mIoU": 0.5,
        "masks (train) object IoU": 0.4,
        "one-step (val) mIoU": 0.2,
        "two-step + CRF (val) mIoU": 0.9,
        "two-step (val) mIoU": 0.3,
    }
    shown = ("masks", "one-step", "two-step")
    attempts = [
        Attempt("a", 0, "done", 1.0, scores=scores, shown=shown, work_s=100.0),
        Attempt("a", 1, "done", 1.0, scores=scores | {"two-step (val) mIoU": 0.5}, shown=shown, work_s=80.0),
        Attempt("b", 0, "done", 1.0, scores={"masks (train) mIoU": 0.5}, shown=("masks",)),
        Attempt("c", 0, "failed", 1.0, error="no"),
    ]
    seeds = {"a": (0, 1), "b": (0,), "c": (0,)}
    variants = [Variant(name, "rrm", lambda *_: None, None, own) for name, own in seeds.items()]
    labels = {"a": "24 tags", "b": "24 boxes", "c": "-"}
    found = Methods(labels, {"a": 0.2, "b": None, "c": None}, {"tags": 0.5}, ()).table(variants, attempts)
    assert list(found.head) == [
        "variant", "flow", "masks mIoU", "object IoU", "student mIoU", "time", "labels", "labelling", "runs",
    ]  # fmt: skip
    assert [list(row) for row in found.rows] == [
        ["a", "rrm", "50.0 ± 0.0", "40.0 ± 0.0", "40.0 ± 14.1 (two-step)", "1 min 30 s", "24 tags", "12 min 00 s", "2"],
        ["b", "rrm", "50.0", "-", "-", "-", "24 boxes", "-", "1"],
        ["c", "rrm", "-", "-", "-", "-", "-", "-", "0 of 1, 1 failed"],
    ]


def test_cached_stages_cost_what_they_took_when_they_were_computed(tmp_path: Path) -> None:
    def manifest(*stages: tuple[str, str, int, int, float, float]) -> dict[str, Any]:
        keys = ("like", "kind", "computed", "total", "amount", "seconds")
        own = [{"label": stage[0], **dict(zip(keys, stage, strict=True))} for stage in stages]
        return {"flow": "cfs", "status": "finished", "seconds": 0.0, "stages": own}

    history = History(tmp_path, ["cfs"])
    half = manifest(("cut", "map", 12, 24, 24.0, 6.0), ("net", "fit", 1, 1, 1e6, 50.0), ("none", "map", 0, 0, 0.0, 0.0))
    history.add(half)
    assert history.work_seconds(half) == pytest.approx(2 * 6.0 + 50.0), "the cached half would take as long"
    cached = manifest(("cut", "map", 0, 24, 24.0, 0.0), ("net", "fit", 0, 1, 2e6, 0.0))
    assert history.work_seconds(cached) == pytest.approx(12.0 + 2 * 50.0), "twice the iterations"
    assert history.work_seconds(manifest(("other", "map", 0, 24, 24.0, 0.0))) is None, "never timed"


# -- the command -----------------------------------------------------------------------------------------------------


FEW = ("--set", "options.report_pictures=1")


@pytest.fixture
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.evaluate.finish.SHEET_ROWS", 2)
        patch.setattr("flows.compare.pictures.DIFFERENT", 2)
        yield


@pytest.mark.usefixtures("short")
def test_flows_side_by_side_one_of_which_fails(tiny: Done, tmp_path: Path) -> None:
    """The first is cached, the second has an evil name and hardly learns, the third's weights are none."""
    out = copy_of(tiny, tmp_path / "out")
    (tmp_path / "no.safetensors").write_text("no weights")
    (tmp_path / "m.yaml").write_text(
        f'boxes: {{flow: cfs}}\n"{EVIL}": {{flow: rrm, config: demo-tiny-rrm, params: {{cam: {{iterations: 1}},'
        f" rrm: {{iterations: 1}}, student: none}}}}\n"
        f"broken: {{flow: cfs, params: {{proposals: box, deeplab: {{weights: {tmp_path / 'no.safetensors'}}}}}}}\n"
    )
    command = ("compare", "--variants", str(tmp_path / "m.yaml"), "--data", "demo-tiny", "--out", str(out), "--quiet")
    done = maskmill(out, *command, *HERE, *ONE_THREAD, *FEW, "--minutes", "tags=0.5,boxes=1")
    assert done.code == 1, done.printed
    summary = json.loads((out / "compare.json").read_text())
    runs = {variant["name"]: variant["runs"][0] for variant in summary["variants"]}
    assert [runs[name]["status"] for name in ("boxes", EVIL, "broken")] == ["done", "done", "failed"]
    assert not [label for label in runs["boxes"]["computed"] if not label.endswith("-shown")], "cached"
    assert runs["boxes"]["work_s"] > 0, "what it took when it was computed"
    page = (out / "compare.html").read_text()
    words = " ".join(re.sub(r"<(script|style)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL).split())
    assert EVIL not in page and "&lt;b&gt;tags&lt;/b&gt; rrm" in words and "no.safetensors" in words
    assert "http" not in page and page.count('class="pic"') >= 3 and "masks: boxes, mIoU" in words
    assert "state no time for tags" in words and "Labelling: minutes" in words
    assert f"| {EVIL} | rrm | " in (out / "compare.md").read_text() and (out / "compare.png").exists()
    again = maskmill(out, *command, "--dry-run")
    assert again.code == 0 and again.printed.count("nothing") == 2, "the failed one alone is left"


def test_what_cannot_be_meant_does_nothing(tmp_path: Path) -> None:
    for given in ((), ("--variant", "a: proposals=box"), ("--variants", "x.yaml", "--config", "demo-tiny")):
        found = maskmill(tmp_path, "compare", *given, "--data", "demo-tiny", "--out", str(tmp_path / "out"))
        assert found.code == 2 and "to compare flows give --variants FILE.yaml" in found.printed
    assert not (tmp_path / "out").exists()
