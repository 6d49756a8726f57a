"""Size and load time of the report of a large run: `python -m benchmarks.report`. 10,000 records, two sets of masks.

The pictures are noise of VOC's size, which no JPEG makes small: real ones take less. What depends on the number of
pictures is written as a run writes it: scores and suspicion of each, skips, stages. Chromium opens the page from
`file://` and says when it was loaded, and how long one filter takes. Bars: 20 MB, 5 s.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import report
from artifacts.objects import Object
from artifacts.records import ImageRGB
from artifacts.report.pictures import Layer, ReportPicture
from tasks.engine.options import RunParams

CLASSES = tuple(f"class {number:02d}" for number in range(1, 21))
SETS = ("masks (train)", "student (val)")
SIZE_HW = (375, 500)
STAGES = 5
MOST_MB, MOST_S = 20.0, 5.0
WATCH = """<script>addEventListener("load", () => {
  const loaded = performance.now(), out = document.createElement("pre");
  const one = document.querySelector("[data-by=classes]");
  one.selectedIndex = 1;
  one.dispatchEvent(new Event("input", { bubbles: true }));
  document.body.getBoundingClientRect();
  out.id = "result";
  out.textContent = JSON.stringify({ loaded_ms: loaded, filter_ms: performance.now() - loaded });
  document.body.append(out);
});</script></head>"""


def main() -> int:
    """Write the page, weigh it, open it; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maskmill-report-") as folder:
        started = time.process_time()
        page = write(Path(folder), given.pictures)
        written_s = time.process_time() - started
        size_mb = page.stat().st_size / 1e6
        listed_mb = (Path(folder) / "pictures.json").stat().st_size / 1e6
        print(f"index.html {size_mb:.1f} MB, pictures.json {listed_mb:.1f} MB, written in {written_s:.1f} CPU seconds")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")
        loaded = load(page)
    if loaded:
        print(f"Chromium: loaded after {loaded['loaded_ms']:.0f} ms, a filter takes {loaded['filter_ms']:.0f} ms")
    return int(size_mb > MOST_MB or loaded.get("loaded_ms", 0.0) > 1000 * MOST_S)


def write(folder: Path, count: int) -> Path:
    """The report of a run over ``count`` pictures of each set."""
    rng = np.random.default_rng(0)
    rows = {
        name: [(f"2012_{n:06d}", round(float(rng.uniform()), 4), round(float(rng.uniform()), 4)) for n in range(count)]
        for name in SETS
    }
    report.write_picture_list(folder / report.PICTURES, rows)
    scores: dict[str, dict[str, Any]] = {
        name: {"miou": 0.6, "per_class": dict.fromkeys(("background", *CLASSES), 0.6), "images": count} for name in SETS
    }
    matrix = rng.integers(1, 10**6, (len(CLASSES) + 1, len(CLASSES) + 2)).tolist()
    stages = [
        {"label": f"stage-{n}", "kind": "map", "total": count, "cached": 0, "computed": count, "seconds": 61.0}
        for n in range(STAGES)
    ]
    skips = [{"path": f"/pictures/2012_{n:06d}.jpg", "reason": "not a whole image"} for n in range(count // 50)]
    return report.html_report(
        folder,
        title="maskmill cfs",
        manifest={"run": "r", "stages": stages, "recipe": {"params": {f"p{n}": n for n in range(100)}}},
        scores=scores,
        files={"pictures": str(folder / "pictures.json")},
        skips=skips,
        pictures=report.ReportPictures(
            [drawn(name, n, rng) for name in SETS for n in range(2 * RunParams().report_pictures)],
            dict.fromkeys(SETS, CLASSES),
            dict.fromkeys(SETS, count),
        ),
        matrices={name: report.Confusion(CLASSES, matrix) for name in SETS},
    )


def drawn(name: str, number: int, rng: np.random.Generator) -> ReportPicture:
    """A noisy picture with three discs in every stage's mask."""
    height, width = SIZE_HW
    image_rgb: ImageRGB = rng.normal(128, 25, (height, width, 3)).clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    layers = []
    for stage in (*(f"stage-{n}" for n in range(STAGES)), "truth"):
        mask_hw = np.zeros(SIZE_HW, np.uint8)
        objects = []
        for place in range(3):
            cy, cx, radius = rng.integers(60, height - 60), rng.integers(60, width - 60), int(rng.integers(20, 60))
            disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
            mask_hw[disc] = rng.integers(1, len(CLASSES) + 1)
            window = int(cx) - radius, int(cy) - radius, int(cx) + radius, int(cy) + radius
            objects.append(Object(place, window, disc[window[1] : window[3], window[0] : window[2]].astype(np.uint8)))
        layers.append(Layer(stage, mask_hw, objects))
    score, doubt = (float(value) for value in rng.uniform(size=2))
    return ReportPicture(f"2012_{number:06d}", name, image_rgb, layers, f"/p/{number}.jpg", score, doubt)


def load(page: Path) -> dict[str, float]:
    """Milliseconds by Chromium's own clock; empty where there is none."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium on this machine: the page was not opened")
        return {}
    watched = page.with_name("watched.html")
    watched.write_text(page.read_text().replace("</head>", WATCH, 1))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--timeout=120000"]
    command += [f"--user-data-dir={page.parent / 'browser'}", watched.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout)
    if found is None:
        raise RuntimeError(f"Chromium said nothing: {done.stderr[-500:]}")
    loaded: dict[str, float] = json.loads(found[1])
    return loaded


if __name__ == "__main__":
    sys.exit(main())
