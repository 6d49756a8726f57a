"""Rows that tables of several flows share: a student on box masks or on truth.

Each maker takes what the flow alone knows: where its params hold the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from artifacts.records import Sets
from benchmarks.claim_table import SUPERVISED, Row
from tasks import labels
from tasks.deeplab import stages as deeplab
from tasks.deeplab.stages import DeepLabParams
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish
from tasks.stage import MapHandle, MapStage
from tasks.training.params import check_run

P = TypeVar("P")
Student = Callable[[P], DeepLabParams]
"""The student's params in those of the flow."""


def supervised_row(student: Student[P], sets: tuple[str, ...] = (), paper: Mapping[str, float] | None = None) -> Row:
    """The student on truth masks: same network, schedule and data. The ceiling of every table."""

    def supervised_page(run: Runner, sets: Sets, params: P) -> Result:
        return learn_from(run, sets, labels.given_masks(), student(params))

    return Row(SUPERVISED, sets, main=True, paper=paper or {}, page=supervised_page)


def box_row(student: Student[P], sets: tuple[str, ...] = (), paper: Mapping[str, float] | None = None) -> Row:
    """The student on filled boxes: the floor of every table of box supervision."""

    def box_page(run: Runner, sets: Sets, params: P) -> Result:
        return learn_from(run, sets, labels.box_masks(), student(params))

    return Row("box", sets, main=True, paper=paper or {}, page=box_page)


def learn_from(run: Runner, sets: Sets, masks: MapStage, params: DeepLabParams) -> Result:
    """The student on the masks that a stage makes of the training images: what such a row's page ends with."""
    return learn_on(run, sets, run.map(masks, sets.train), params)


def learn_on(run: Runner, sets: Sets, target: MapHandle, params: DeepLabParams) -> Result:
    """The student on masks that are made already."""
    check_run(params, run.options, name="deeplab")
    student = run.fit(deeplab.fit(params), sets.train, monitor=sets.val, target=target)
    predictions = run.map(deeplab.predict(params), sets.val, label="student", net=student)
    return finish(run, sets, target, {"student": predictions})
