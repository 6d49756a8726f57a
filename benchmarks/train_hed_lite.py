"""Train hed-lite: `python -m benchmarks.train_hed_lite --out FOLDER [--iterations N] [--threads N]`.

Pictures are those of BSDS500's train (``../shared/data/bsds``) but for 40, by hash of the name, on which settings are
chosen (`python -m benchmarks.edges --held-out --network hed-lite --weights FILE`). It resumes where it was stopped.

The class-balanced loss puts probabilities much too high, so the fused logit is calibrated on the 40 held out: a crest's
value is the share of such crests that somebody drew a boundary beside, within the benchmark's distance. The weights
are FOLDER/hed-lite.safetensors, in float16; their digest and size go into the table of weights.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from artifacts.images import read_image_rgb
from artifacts.records import Record
from benchmarks.edges import HELD_OUT, boundaries_of, by_hash
from flows.cli.edges import drawing_of
from tasks.edges.lite_fit import LiteFitParams, calibrated, platt
from tasks.edges.stages import EdgesParams
from tasks.edges.thin import smooth, thin
from tasks.engine.fit_spec import FitSpec, plain_params
from tasks.engine.image_task import ImageTask
from tasks.evaluate.boundary import RADIUS
from tasks.training.fit_process import run_spec


def crests_held_out(weights: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of each crest pixel that the network draws on the pictures held out: logit, and whether people drew it, too."""
    draw = drawing_of(EdgesParams("hed-lite", str(weights)))
    logits, hits = [], []
    for path in by_hash("train")[:HELD_OUT]:
        crests_hw = thin(smooth(draw(read_image_rgb(path))))
        drawn_hw = boundaries_of(path).any(axis=0)
        far_hw = cv2.distanceTransform((~drawn_hw).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        found = crests_hw > 0
        logits.append(torch.from_numpy(crests_hw[found]).double().logit(eps=1e-6).numpy())
        hits.append(far_hw[found] <= RADIUS * np.hypot(*drawn_hw.shape))
    return np.concatenate(logits), np.concatenate(hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=LiteFitParams().iterations)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="bf16: faster on CPUs that have it")
    parser.add_argument("--stamp", default="0", help="of the fit: another one starts anew")
    arguments = parser.parse_args()
    params = LiteFitParams(iterations=arguments.iterations, seed=arguments.seed, precision=arguments.precision)
    params_type, plain = plain_params(params)
    pictures = by_hash("train")[HELD_OUT:]
    spec = FitSpec(
        cache=str(arguments.out),
        label="hed-lite",
        address="hed-lite",
        stamp=arguments.stamp,
        function="tasks.edges.lite_fit:fit",
        params_type=params_type,
        params=plain,
        train=tuple(ImageTask(f"bsds/{path.stem}", path.stem, Record(path.stem, str(path))) for path in pictures),
        reads=("image",),
        seed=arguments.seed,
        device="cpu",
        threads=arguments.threads,
        checkpoint_every_s=120,
    )
    said = 0.0

    def emit(event: dict[str, Any]) -> None:
        nonlocal said
        if event["event"] != "progress" or time.monotonic() - said > 30:
            said = time.monotonic()
            print(event, flush=True)

    found = load_file(run_spec(spec, emit).weights)
    halves = {name: tensor.to(torch.float16) for name, tensor in found.items() if not name.startswith("normalise.")}
    raw = arguments.out / "not-calibrated.safetensors"  # under the final name a killed run would leave it as the result
    save_file(halves, raw)
    scale, shift = platt(*crests_held_out(raw))
    print(f"the fused logit times {scale:.3f} {shift:+.3f}")
    path = arguments.out / "hed-lite.safetensors"
    save_file(calibrated(halves, scale, shift), path)
    print(f"{path}: SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
