"""Rows that tables of several flows share: a student on box masks or on truth, and masks without a student.

Each maker takes what the flow alone knows: where its params hold the student, which stages make its masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from artifacts.records import Sets
from benchmarks.claim_table import SUPERVISED, Row
from flows.run_flow import Page
from tasks import labels
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish, score_handle
from tasks.stage import MapHandle, MapStage

P = TypeVar("P")
Student = Callable[[P], DeepLabParams]
"""The student's params in those of the flow."""


def supervised_row(student: Student[P], sets: tuple[str, ...] = (), paper: Mapping[str, float] | None = None) -> Row:
    """The student on truth masks: same network, schedule and data. The ceiling of every table."""

    def supervised_page(run: Runner, sets: Sets, params: P) -> Result:
        return _learn(run, sets, labels.given_masks(), student(params))

    return Row(SUPERVISED, sets, main=True, paper=paper or {}, page=supervised_page)


def box_row(student: Student[P], sets: tuple[str, ...] = (), paper: Mapping[str, float] | None = None) -> Row:
    """The student on filled boxes: the floor of every table of box supervision."""

    def box_page(run: Runner, sets: Sets, params: P) -> Result:
        return _learn(run, sets, labels.box_masks(), student(params))

    return Row("box", sets, main=True, paper=paper or {}, page=box_page)


def masks_page(masks: Callable[[Runner, Sets, P], MapHandle]) -> Page[P]:
    """A page that ends at the masks, scored: for rows of which the paper has no student either."""

    def masks_page(run: Runner, sets: Sets, params: P) -> Result:
        made = masks(run, sets, params)
        if run.planning:
            return Result("", {}, {}, {"stages": [], "skips": [], "seconds": 0.0})
        found = score_handle(run, made)
        run.skips.extend(found.skips)
        scores = {f"masks ({sets.train.split})": found.scores.as_dict(sets.train.classes)}
        manifest = run.write_manifest("finished", scores=scores, masks=made.label, classes=list(sets.train.classes))
        return Result(run.folder.run_id, scores, {}, manifest)

    return masks_page


def _learn(run: Runner, sets: Sets, masks: MapStage, params: DeepLabParams) -> Result:
    deeplab.check_run(params, run.options)
    target = run.map(masks, sets.train)
    student = run.fit(deeplab.fit(params), sets.train, monitor=sets.val, target=target)
    return finish(run, target, student, sets.val, deeplab.predict(params))
