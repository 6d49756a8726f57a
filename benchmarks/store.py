"""The mask store against a folder of PNGs: writes, random reads, size. `python -m benchmarks.store`.

Both sides do the same masks in turns, batch by batch, in one run, so that a busy machine slows both alike. The PNG
folder is written by OpenCV and by Pillow and read by both; the faster writer, the faster reader of its files and
their size are the peer. The store syncs each segment to the disk and takes the digest of each mask; the PNG loop
does neither. Masks: GrabCut-like ones (smooth blobs, rough contours) of 375 x 500, and real ones where the folder of
``--real`` exists.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.cache.store import MaskStore

Mask = NDArray[np.uint8]
ADDRESS = "bench-masks"
SEGMENT = 64
READS = 128
REAL = Path(__file__).parents[1] / "../shared/data/coco-mini/masks"


def grabcut_like_mask(rng: np.random.Generator, height: int = 375, width: int = 500) -> Mask:
    """``(H, W) uint8``: one to four blobs whose outline is a smooth field's level line, roughened by pixel noise.

    Calibrated on GrabCut masks of 38 COCO pictures: 0.012 bytes a pixel as PNG; these take 0.016.
    """
    mask = np.zeros((height, width), np.uint8)
    noise = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 1.5)
    rough = 0.04 * noise / noise.std()
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(int(rng.integers(1, 5))):
        smooth = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 18)
        cy, cx = rng.uniform(0.2, 0.8, 2) * (height, width)
        ry, rx = rng.uniform(0.1, 0.35, 2) * (height, width)
        field = ((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2 + 0.35 * smooth / smooth.std() + rough
        mask[field < 1] = rng.integers(1, 21)
    return mask


def real_masks(folder: Path, count: int) -> list[Mask]:
    """Masks of ``folder`` of 300 px or more on both sides, and their mirror images, over and over to ``count``."""
    found = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(folder.glob("*.png"))]
    large = [mask.astype(np.uint8) for mask in found if mask is not None and min(mask.shape) >= 300]
    flips = (lambda m: m, lambda m: m[:, ::-1], lambda m: m[::-1], lambda m: m[::-1, ::-1])
    mirrored = [np.ascontiguousarray(flip(mask)) for flip in flips for mask in large]
    return [mirrored[i % len(mirrored)] for i in range(count)]


class PngFolder:
    """A folder of PNGs, written by one library."""

    def __init__(self, folder: Path, save: Callable[[Path, Mask], object]) -> None:
        self.folder, self.save = folder, save
        folder.mkdir()

    def write(self, start: int, masks: Sequence[Mask]) -> None:
        for i, mask in enumerate(masks, start):
            self.save(self.folder / f"{i:06d}.png", mask)

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


class StoreFolder:
    """The store, a segment a batch."""

    def __init__(self, root: Path, codec: Any) -> None:
        self.store = MaskStore(root, codec=codec)

    def write(self, start: int, masks: Sequence[Mask]) -> None:
        items = [(f"set/{i:06d}", "stamp", {"mask_hw": mask}) for i, mask in enumerate(masks, start)]
        self.store.write_segment(ADDRESS, items, meta={"stage": "bench"})

    def read(self, i: int) -> Mask:
        return self.store.read(ADDRESS, f"set/{i:06d}", "stamp")["mask_hw"]

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.store.folder(ADDRESS).iterdir())


def _pillow_read(path: Path) -> Mask:
    with Image.open(path, formats=("PNG",)) as picture:
        return np.asarray(picture)


def compare(masks: Sequence[Mask], rounds: int = 6) -> dict[str, dict[str, float]]:
    """Writes/s, random reads/s and bytes a mask of every candidate (median over batches)."""
    with tempfile.TemporaryDirectory(prefix="bench-store-") as name:
        root = Path(name)
        writers: dict[str, PngFolder | StoreFolder] = {
            "png opencv": PngFolder(root / "cv2", lambda path, mask: cv2.imwrite(str(path), mask)),
            "png pillow": PngFolder(root / "pil", lambda path, mask: Image.fromarray(mask).save(path)),
            "store zstd": StoreFolder(root / "zstd", "zstd"),
            "store gzip": StoreFolder(root / "gzip", "gzip"),
        }
        written = _in_turns(
            {
                name: [lambda w=w, s=s: w.write(s, masks[s : s + SEGMENT]) for s in range(0, len(masks), SEGMENT)]
                for name, w in writers.items()
            }
        )
        readers: dict[str, Callable[[int], Mask]] = {}
        for kind, folder in (("png opencv", root / "cv2"), ("png pillow", root / "pil")):
            readers[f"{kind}, read by opencv"] = lambda i, f=folder: cv2.imread(
                str(f / f"{i:06d}.png"), cv2.IMREAD_UNCHANGED
            )
            readers[f"{kind}, read by pillow"] = lambda i, f=folder: _pillow_read(f / f"{i:06d}.png")
        for kind in ("store zstd", "store gzip"):
            readers[kind] = writers[kind].read  # type: ignore[union-attr]
        for read in readers.values():
            assert np.array_equal(read(3), masks[3])
        rng = np.random.default_rng(0)
        orders = [rng.integers(0, len(masks), READS).tolist() for _ in range(rounds)]
        seconds = _in_turns({n: [lambda r=r, o=o: [r(i) for i in o] for o in orders] for n, r in readers.items()})
        result = {}
        for name, writer in writers.items():
            reads = [READS / wall for reader, (wall, _) in seconds.items() if reader.startswith(name)]
            wall, cpu = written[name]
            result[name] = {
                "writes_per_s": min(SEGMENT, len(masks)) / wall,
                "writes_per_cpu_s": min(SEGMENT, len(masks)) / cpu,
                "reads_per_s": max(reads),
                "bytes_per_mask": writer.bytes() / len(masks),
            }
        return result


def _in_turns(jobs: dict[str, list[Callable[[], object]]]) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of one job of each candidate; they take turns, first one then the other in front."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    names = list(jobs)
    for turn in range(len(jobs[names[0]])):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            jobs[name][turn]()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (float(np.median([w for w, _ in s])), float(np.median([c for _, c in s]))) for name, s in seconds.items()
    }


def bar(result: dict[str, dict[str, float]]) -> dict[str, float]:
    """The store (zstd) against the PNG folder that is written faster: what the bar is about."""
    peer = max(("png opencv", "png pillow"), key=lambda name: result[name]["writes_per_s"])
    store, png = result["store zstd"], result[peer]
    return {
        "random reads, at least 3": store["reads_per_s"] / png["reads_per_s"],
        "writes, at least 1": store["writes_per_s"] / png["writes_per_s"],
        "writes by CPU time": store["writes_per_cpu_s"] / png["writes_per_cpu_s"],
        "size, at most 1": store["bytes_per_mask"] / png["bytes_per_mask"],
    }


def index_seconds(images: int = 10_000) -> dict[str, float]:
    """Seconds to load the index of ``images`` images: from the sidecars, rebuilt from the headers, and again."""
    with tempfile.TemporaryDirectory(prefix="bench-store-") as name:
        store = MaskStore(name)
        mask = np.zeros((8, 8), np.uint8)
        for start in range(0, images, SEGMENT):
            count = min(SEGMENT, images - start)
            items = [(f"set/{start + i:06d}", f"{start + i:032x}", {"mask_hw": mask}) for i in range(count)]
            store.write_segment(ADDRESS, items, meta={"stage": "bench"})
        seconds = {"index": _load_seconds(Path(name), images)}
        for path in store.folder(ADDRESS).glob("*.idx"):
            path.unlink()
        seconds["index, sidecars lost"] = _load_seconds(Path(name), images)
        return seconds


def _load_seconds(root: Path, images: int) -> float:
    store = MaskStore(root)
    started = time.perf_counter()
    assert len(store.entries(ADDRESS)) == images
    return time.perf_counter() - started


def run(count: int = 1024, real: Path = REAL) -> dict[str, Any]:
    """Everything this page measures, as plain data."""
    rng = np.random.default_rng(0)
    sets = {"grabcut-like 375x500": [grabcut_like_mask(rng) for _ in range(count)]}
    if real.is_dir():
        sets["real, coco-mini"] = real_masks(real, count)
    report: dict[str, Any] = {}
    for name, masks in sets.items():
        result = compare(masks)
        report[name] = {"masks": len(masks), **result, "bar": bar(result)}
    report["index of 10,000 images, seconds"] = index_seconds()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--masks", type=int, default=1024)
    parser.add_argument("--real", type=Path, default=REAL, help="folder of index PNGs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = run(arguments.masks, arguments.real)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for name, part in report.items():
        print(f"\n{name}" + (f" ({part['masks']} masks)" if "masks" in part else ""))
        for candidate, values in part.items():
            if isinstance(values, dict):
                print(f"  {candidate:12}", "  ".join(f"{what} {value:,.2f}" for what, value in values.items()))
            elif candidate != "masks":
                print(f"  {candidate}: {values:.3f}")


if __name__ == "__main__":
    main()
