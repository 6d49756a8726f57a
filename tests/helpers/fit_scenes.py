"""A stage's fit on a few drawn scenes, whole and in this process: from image files and a store to published tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from artifacts.cache.fit_store import Publication
from artifacts.cache.fit_work import METRICS
from artifacts.cache.store import MaskStore
from artifacts.records import Box, MaskRef, Record
from tasks.engine.image_task import ImageTask
from tasks.stage import FitStage
from tasks.training.fit_process import FitSpec, plain_params, run_spec

CLASSES = ("disc", "bar")


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture, what the stage before has stored for it, its boxes, and its truth for the monitor."""

    image_rgb: np.ndarray
    stored: Mapping[str, np.ndarray]
    boxes: tuple[Box, ...] | None = None
    tags: tuple[int, ...] | None = None
    truth: MaskRef | None = None


def fit_scenes(
    folder: Path, stage: FitStage, role: str, scenes: Sequence[Scene], *, name: str = "a", **fields: Any
) -> Publication:
    """Fits ``scenes``, whose stored arrays come as ``role`` (or as each of "several roles"), in ``folder/name``.

    Scenes with a truth are watched. ``fields``: of the FitSpec. The result's ``info`` has all "events" of the fit, too.
    """
    store = MaskStore(folder / name)
    train, monitor = [], []
    for i, scene in enumerate(scenes):
        picture = folder / f"{i}.png"
        cv2.imwrite(str(picture), scene.image_rgb[..., ::-1])
        if scene.stored:
            store.write_segment("given-0", [(f"d/{i}", f"s{i}", scene.stored)], meta={})
        record = Record(str(i), str(picture), boxes=scene.boxes, tags=scene.tags)
        up = dict.fromkeys(role.split(), ("given-0", f"s{i}")) if scene.stored else {}
        train.append(ImageTask(f"d/{i}", f"s{i}", record, up))
        if scene.truth is not None:
            monitor.append(ImageTask(f"d/{i}", f"s{i}", dataclasses.replace(record, truth=scene.truth)))
    params_type, plain = plain_params(stage.params)
    spec = FitSpec(
        cache=str(folder / name),
        label=stage.name,
        address=f"{stage.name}-0",
        stamp="0",
        function=stage.function,
        params_type=params_type,
        params=plain,
        train=tuple(train),
        classes=CLASSES,
        reads=stage.reads,
        seed=stage.seed,
        monitor=tuple(monitor),
        inputs={role: str(path) for role, path in stage.inputs.items()},
        device="cpu",
        **fields,
    )
    events: list[dict[str, Any]] = []
    publication = run_spec(spec, events.append)
    return dataclasses.replace(publication, info={**publication.info, "events": events})


def metrics(publication: Publication) -> list[dict[str, float]]:
    """What the fit has logged."""
    return [json.loads(line) for line in (publication.weights.parent / METRICS).read_text().splitlines()]
