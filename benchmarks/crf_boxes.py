"""The CRF of the tables' row "CRF" on auxiliary pictures: boxes made into masks by 18 settings, and which is the best.

Bbox-Seg's values are left to cross-validation (Papandreou et al., ICCV 2015, section 3.2), and none may be chosen on
the target. One parameter after the other, each from the best so far: `python -m benchmarks.crf_boxes --data voc:PATH`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from artifacts.datasets import DataParams, read_split
from artifacts.images import read_image_rgb
from artifacts.records import DataError, MaskHW, Record, RecordSet
from tasks.crf.dense_crf import BoxCRFParams, boxes_item
from tasks.evaluate.score import score_set
from tasks.stage import Item

STEPS: tuple[tuple[str, Sequence[float]], ...] = (
    ("bilateral_srgb", (2.0, 3.0, 5.0, 10.0, 20.0)),
    ("bilateral_sxy", (20.0, 37.0, 80.0)),
    ("bilateral_compat", (4.0, 10.0, 45.0)),
    ("gaussian_compat", (3.0, 15.0, 30.0)),
    ("core", (0.1, 0.2, 0.3, 0.4)),
)
"""18 settings. ``core`` is the box prior's, the others are the CRF's."""


def changed(params: BoxCRFParams, name: str, value: float) -> BoxCRFParams:
    """``params`` with one value changed."""
    return replace(params, core=value) if name == "core" else replace(params, crf=replace(params.crf, **{name: value}))


def search(score: Callable[[BoxCRFParams], float]) -> Iterator[tuple[str, float, float, BoxCRFParams]]:
    """``(name, value, score, best so far)`` of every setting, in order."""
    best, reached = BoxCRFParams(), -1.0
    for name, values in STEPS:
        start = best
        for value in values:
            params = changed(start, name, value)
            found = score(params)
            if found > reached:
                best, reached = params, found
            yield name, value, found, best


def of_pictures(records: RecordSet) -> Callable[[BoxCRFParams], float]:
    """Setting -> mIoU of its masks."""

    def score(params: BoxCRFParams) -> float:
        def mask_of(record: Record) -> MaskHW:
            image_rgb = read_image_rgb(Path(record.image))
            item = Item(records.key(record), record.view(("boxes",)), records.classes, image_rgb)
            return boxes_item(item, params)["mask_hw"]

        found = score_set(records, len(records.classes), mask_of).scores
        return float(found.as_dict(records.classes)["miou"] or 0.0)

    return score


def main(given: Sequence[str] | None = None) -> int:
    """Print every setting, and the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="auxiliary pictures with boxes and masks: voc:PATH, coco:..., demo"
    )
    parser.add_argument("--more", nargs="*", default=(), help="further sets")
    parser.add_argument("--without", nargs="*", default=(), help="classes to leave out")
    parser.add_argument("--images", type=int, default=100, help="the first so many that have boxes")
    args = parser.parse_args(given)
    try:
        data = DataParams(args.data, more=tuple(args.more), without=tuple(args.without), val_share=0.0)
        found = read_split(data, data.train)
    except (DataError, ValueError) as error:
        print(f"crf_boxes: {error}", file=sys.stderr)
        return 2
    some = islice((one for one in found if one.boxes and one.truth is not None), args.images)
    records = replace(found, records=tuple(some))
    print(f"{found.dataset}: {len(records)} pictures")
    best = BoxCRFParams()
    for name, value, miou, so_far in search(of_pictures(records)):
        best = so_far
        print(f"{name} {value:g}: {100 * miou:.2f} mIoU", flush=True)
    print(f"best: core {best.core:g}, {best.crf}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
