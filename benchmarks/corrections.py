"""What corrections buy: run, correct the worst pictures, run again; against as many that were chosen by chance.

    python -m benchmarks.corrections --out loop                                        # drawn data, with the student
    python -m benchmarks.corrections --out loop --no-student                           # masks alone
    python -m benchmarks.corrections --out loop --data voc:PATH --config photo --seeds 1

Truth stands for the person: a corrected picture has its truth as mask, in a folder of corrections as `maskmill import`
writes it. All runs share one cache in ``--out``, so that a benchmark that was stopped goes on where it was, and another
seed or count computes nothing twice. The student's seed is the number of the repetition, and so is that of chance.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.cache.runs import find_run
from artifacts.datasets.corrections import write_corrections
from artifacts.records import RecordSet
from benchmarks import results
from flows.cli.export import records_of, worst_pictures
from flows.cli.main import main as maskmill

COUNTS = (20, 50, 100)
ORDERS = ("suspicion", "score", "random")
"""Most suspicious first; lowest mIoU first, which needs truth; by chance."""

Found = dict[str, dict[str, dict[str, list[float]]]]
"""Order -> number of corrected pictures -> ``masks`` and ``student`` -> mIoU (%) of each repetition."""


def run(options: argparse.Namespace, seed: int, corrections: Path | None) -> Mapping[str, Any]:
    """One run of ``cfs``; its manifest. Raises ``SystemExit`` with what it said where it fails."""
    cache = options.out / "cache"
    given = ["cfs", "--config", options.config, "--quiet", "--out", str(options.out / "run"), "--cache", str(cache)]
    given += ["--data", options.data] if options.data else []
    sets = [*options.set, f"params.deeplab.seed={seed}", "options.export=[]"]
    sets += [] if options.student else ["params.student=none"]
    sets += [] if corrections is None else [f"data.corrections={corrections}"]
    given += [part for one in sets for part in ("--set", one)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = maskmill(given)
    if code not in (0, 3):
        raise SystemExit(f"maskmill {' '.join(given)} ended with exit code {code}:\n{said.getvalue()[-2000:]}")
    return find_run(cache).manifest()


def chosen(cache: Path, manifest: Mapping[str, Any], records: RecordSet, order: str, seed: int) -> list[str]:
    """Keys of the pictures with truth, in the order in which they are corrected."""
    with_truth = {records.key(record) for record in records if record.truth is not None}
    if order == "random":
        every = sorted(with_truth)
        return [every[place] for place in np.random.default_rng(seed).permutation(len(every))]
    return [key for key in worst_pictures(cache, manifest, manifest["masks"], len(records), order) if key in with_truth]


def correct(folder: Path, records: RecordSet, keys: Sequence[str]) -> Path:
    """A folder of corrections that holds truth for these pictures, and nothing else."""
    of_key = {records.key(record): record for record in records}
    found = ((of_key[key].image_id, truth.load()) for key in keys if (truth := of_key[key].truth) is not None)
    write_corrections(folder, found, records.classes)
    return folder


def measure(options: argparse.Namespace) -> Found:
    """All runs, one after the other; the table so far is printed after each."""
    found: Found = {}
    cache = options.out / "cache"
    for seed in range(options.seeds):
        first = run(options, seed, None)
        records = records_of(first, "train", first["recipe"]["data"]["train"], cache)
        keep(found, "none", 0, first)
        for order in options.orders:
            if seed and order != "random" and not options.student:
                continue  # the same pictures, the same masks
            keys = chosen(cache, first, records, order, seed)
            for count in options.counts:
                if count > len(keys):
                    continue
                name = f"{order}-{seed if order == 'random' else 0}-{count}"
                folder = correct(options.out / "corrections" / name, records, keys[:count])
                keep(found, order, count, run(options, seed, folder))
                print(table(found), flush=True)
    return found


def keep(found: Found, order: str, count: int, manifest: Mapping[str, Any]) -> None:
    """Enter one run's scores."""
    of = found.setdefault(order, {}).setdefault(str(count), {})
    for name, one in manifest["scores"].items():
        what = name.partition(" (")[0]
        if what in ("masks", "student") and one["miou"] is not None:
            of.setdefault(what, []).append(100 * one["miou"])


def table(found: Found) -> str:
    """Means, and the range where there are several repetitions."""
    lines = ["| corrected | pictures | masks | student | repetitions |", "|---|--:|--:|--:|--:|"]
    for order, counts in found.items():
        for count, scores in counts.items():
            cells = [_cell(scores.get(what, ())) for what in ("masks", "student")]
            most = max(map(len, scores.values()), default=0)
            lines.append(f"| {order} | {count} | {' | '.join(cells)} | {most} |")
    return "\n".join([*lines, ""])


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    ranged = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{ranged}"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of cache and corrections; the same goes on")
    parser.add_argument("--config", default="demo", help="of cfs")
    parser.add_argument("--data", default="", help="as maskmill's; default: the configuration's")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as maskmill's; repeatable")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=("suspicion", "random"))
    parser.add_argument("--seeds", type=int, default=3, help="repetitions")
    parser.add_argument("--no-student", dest="student", action="store_false", help="masks alone")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/corrections.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parsed(arguments)
    found = measure(options)
    print(table(found))
    if options.save:
        print(results.save("corrections", {"config": options.config, "data": options.data, "miou": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
