"""GrabCut: how good the masks are against the plain call, and what two worker processes bring.

    python -m benchmarks.grabcut quality --data voc:PATH [--split trainval] [--only a|b] [--set core=0.35 ...]
    python -m benchmarks.grabcut speed   --data voc:PATH [--images 24]

``quality`` scores, on the same pictures, the boxes themselves, the plain call (whole image, rectangle start, 5
iterations; the box where it keeps under 5 %), the default variant, and both with Simple Does It's fallback. Object
IoU is taken before painting, mIoU on the painted label maps. "Worse" and "better" are the shares of objects that lose
or gain more than .1 IoU against the plain call. CPU milliseconds are of this process, so that a busy
machine matters little. The numbers come for all images and for each half (by a hash of the file name): rules were
chosen on half ``a`` of coco-mini, so half ``b`` is the fair one. Pictures without instance masks (voc-animals) give
mIoU alone.

``speed`` runs the stage through the Runner with two worker processes, and a bare single-threaded loop over the same
images before and after it; bar: 1.9 times as fast, start-up subtracted.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from artifacts.datasets import DataParams, read_split
from artifacts.images import read_image_rgb
from artifacts.objects import unpack_objects
from artifacts.records import MaskHW, Record, RecordSet
from tasks import grabcut
from tasks.boxes import label_arrays
from tasks.evaluate.object_iou import object_ious
from tasks.evaluate.score import Scorer
from tasks.grabcut import GrabCutParams
from tasks.labels import BoxMaskParams, box_item
from tasks.stage import Arrays, Item

BAR = 1.9
CLEARLY = 0.1
"""An object is worse or better than the plain call's by more than this IoU."""
SDI = GrabCutParams(fallback="sdi")


@dataclass
class Row:
    """One line of the table."""

    scorer: Scorer
    seconds: float | None = 0.0
    """CPU seconds; ``None``: the same cuts as another row."""
    objects: int = 0
    fell_back: int = 0
    ious: dict[tuple[str, int], float] = field(default_factory=dict)
    """Image and object -> IoU."""

    def add(self, record: Record, arrays: Arrays, seconds: float | None, truth_hw: MaskHW, objects: Any) -> None:
        if self.seconds is not None and seconds is not None:
            self.seconds += seconds
        self.scorer.add(arrays["mask_hw"], truth_hw, where=record.image_id)
        windows = {o.id: (o.window_xyxy, o.values_hw != 0) for o in unpack_objects(arrays)}
        scored = [] if objects is None else object_ious(windows, record.boxes or (), objects, truth_hw)
        self.scorer.add_objects(scored)
        self.ious.update({(record.image_id, one.object_id): one.iou for one in scored})
        self.objects += len(windows)
        self.fell_back += int(arrays["fell_back_n"].sum())

    def as_dict(self, classes: Sequence[str], plain: Row | None) -> dict[str, Any]:
        gains = [self.ious[key] - iou for key, iou in plain.ious.items()] if plain else []
        scores = self.scorer.scores().as_dict(classes)
        return {
            "object_iou": scores["object_iou"]["mean"],
            **{size: one["mean"] for size, one in scores["by_size"].items()},
            "counts": {size: one["count"] for size, one in scores["by_size"].items()},
            "miou": scores["miou"],
            "precision": scores["precision"],
            "recall": scores["recall"],
            "ms_per_object": None if self.seconds is None else 1000 * self.seconds / max(1, self.objects),
            "fallback": self.fell_back / max(1, self.objects),
            "worse": sum(gain < -CLEARLY for gain in gains) / len(gains) if gains else None,
            "better": sum(gain > CLEARLY for gain in gains) / len(gains) if gains else None,
        }


@dataclass
class Table:
    """Rows by name, all over the same images."""

    k: int
    rows: dict[str, Row] = field(default_factory=dict)

    def row(self, name: str, *, timed: bool = True) -> Row:
        return self.rows.setdefault(name, Row(Scorer(self.k), 0.0 if timed else None))


def with_fallback(arrays: Arrays, record: Record, params: GrabCutParams) -> Arrays:
    """The same raw cuts under another fallback rule (a cut does not depend on it)."""
    boxes = [box for box in record.boxes or () if not box.crowd]
    found = {o.id: o for o in unpack_objects(arrays)}
    raw = [found[box.id].values_hw != 0 for box in boxes]
    poor = [bool(m.size == 0 or m.all() or grabcut.keeps_too_little(m, params)) for m in raw]
    masks = [np.ones_like(m) if bad else m for m, bad in zip(raw, poor, strict=True)]
    windows = [found[box.id].window_xyxy for box in boxes]
    return {
        **label_arrays(boxes, windows, masks, arrays["mask_hw"].shape),
        "fell_back_n": np.array(poor, dtype=np.bool_),
    }


def quality(records: RecordSet, params: GrabCutParams, *, plain: bool) -> dict[str, dict[str, Any]]:
    """part -> row -> numbers, for all images and for each half; ``plain=False`` leaves the slow baseline out."""
    tables = {part: Table(len(records.classes)) for part in ("all", "a", "b")}
    for record, item in items(records):
        assert record.truth is not None
        truth_hw, objects = record.truth.load(), record.truth_objects.load() if record.truth_objects else None
        cuts = cut(record, item, params, plain=plain)
        for part in ("all", half(record)):
            for name, (arrays, seconds) in cuts.items():
                tables[part].row(name, timed=seconds is not None).add(record, arrays, seconds, truth_hw, objects)
    return {
        part: {name: row.as_dict(records.classes, table.rows.get("plain")) for name, row in table.rows.items()}
        for part, table in tables.items()
        if table.rows
    }


def cut(record: Record, item: Item, params: GrabCutParams, *, plain: bool) -> dict[str, tuple[Arrays, float | None]]:
    """row -> arrays and CPU seconds (``None``: another row's cuts under another fallback)."""
    boxes = box_item(item, BoxMaskParams())
    found: dict[str, tuple[Arrays, float | None]] = {
        "box": ({**boxes, "fell_back_n": np.ones(len(boxes["object_ids_n"]), dtype=np.bool_)}, None)
    }
    if plain:
        raw, seconds = timed(item, GrabCutParams(variant="plain", fallback="none", seed=params.seed))
        found["plain"] = with_fallback(raw, record, GrabCutParams(variant="plain")), seconds
        found["plain, sdi"] = with_fallback(raw, record, SDI), None
    own, seconds = timed(item, params)
    found["default"] = own, seconds
    found["default, sdi"] = with_fallback(own, record, SDI), None
    return found


def timed(item: Item, params: GrabCutParams) -> tuple[Arrays, float]:
    started = time.process_time()
    arrays = grabcut.propose_item(item, params)
    return arrays, time.process_time() - started


def items(records: RecordSet) -> Iterator[tuple[Record, Item]]:
    """Images with truth, as the stage gets them."""
    for record in records:
        if record.truth is not None:
            view = record.view(("image", "boxes"))
            yield record, Item(records.key(record), view, records.classes, read_image_rgb(Path(record.image)))


def half(record: Record) -> str:
    """``a`` or ``b``, by a hash of the image's file name."""
    return "ab"[hashlib.sha256(Path(record.image).name.encode()).digest()[0] % 2]


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{'':14s} object IoU   small  medium   large    mIoU   prec.  recall   ms/object  fallback   worse  better")
    for name in sorted(rows, key=lambda n: ["box", "plain", "plain, sdi", "default", "default, sdi"].index(n)):
        row = rows[name]
        numbers = [row[key] for key in ("object_iou", "small", "medium", "large", "miou", "precision", "recall")]
        cells = "  ".join("    --" if n is None else f"{n:6.4f}" for n in numbers)
        ms = "" if row["ms_per_object"] is None or name == "box" else f"{row['ms_per_object']:.0f}"
        gains = "".join("      --" if row[key] is None else f"{100 * row[key]:6.1f} %" for key in ("worse", "better"))
        print(f"{name:14s}     {cells}  {ms:>10s}  {100 * row['fallback']:7.1f} %{gains}")


def speed(records: RecordSet, params: GrabCutParams, images: int) -> dict[str, float]:
    """Seconds of the bare loop and of the stage on two processes over the same images, and their ratio."""
    from tasks.engine.options import RunParams
    from tasks.engine.runner import Runner

    chosen = records.only([r.image_id for r in records][:images])
    one = records.only([chosen.records[0].image_id])

    def loop(of: RecordSet) -> float:
        started = time.monotonic()
        for record in of:
            view = record.view(("image", "boxes"))
            item = Item(of.key(record), view, of.classes, read_image_rgb(Path(record.image)))
            grabcut.propose_item(item, params)
        return time.monotonic() - started

    with tempfile.TemporaryDirectory() as cache:
        options = RunParams(cache=cache, workers=2, progress=False)
        first = loop(chosen)
        with Runner(options) as run:
            started = time.monotonic()
            run.map(grabcut.propose(dataclasses.replace(params, seed=params.seed + 1)), one)  # starts the workers
            start_up = time.monotonic() - started
            started = time.monotonic()
            run.map(grabcut.propose(params), chosen)
            stage = time.monotonic() - started
        second = loop(chosen)
    bare = (first + second) / 2
    return {"bare_loop_s": bare, "two_workers_s": stage, "start_up_s": start_up, "ratio": bare / stage}


def parse(values: Sequence[str]) -> GrabCutParams:
    """``name=value`` pairs as params."""
    given: dict[str, Any] = {}
    for pair in values:
        name, _, value = pair.partition("=")
        current = getattr(GrabCutParams(), name)
        given[name] = value == "true" if isinstance(current, bool) else type(current)(value)
    return GrabCutParams(**given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("--data", required=True, help="voc:PATH or coco:IMAGES,JSON")
    parser.add_argument("--split", default="trainval")
    parser.add_argument("--only", choices=["a", "b"], help="quality: this half alone")
    parser.add_argument("--images", type=int, default=24, help="speed: how many")
    parser.add_argument("--no-plain", action="store_true", help="leave the slow baseline out")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="GrabCut params")
    parser.add_argument("--json", help="write the numbers to this file")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    params = parse(arguments.set)
    records = read_split(DataParams(source=arguments.data), arguments.split)
    if arguments.only:
        records = records.only([r.image_id for r in records if half(r) == arguments.only])
    print(f"{records.dataset}:{records.split}, {len(records)} images")
    result: dict[str, Any]
    if arguments.what == "quality":
        result = quality(records, params, plain=not arguments.no_plain)
        for part, rows in result.items():
            print(f"part {part}")
            show(rows)
    else:
        result = dict(speed(records, params, arguments.images))
        print(", ".join(f"{name} {value:.2f}" for name, value in result.items()), f"(bar: ratio >= {BAR})")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"data": records.dataset, "params": str(params), "result": result}))


if __name__ == "__main__":
    main()
