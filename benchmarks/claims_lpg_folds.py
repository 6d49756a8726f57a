"""LPG on two folds of one set of photographs: learnt on classes that VOC lacks, deployed on VOC's of the other fold.

`python -m benchmarks.claims lpg --table folds --data coco:IMAGES,JSON --set data.aux.source=coco:IMAGES,JSON`. Folds
are by a hash of the id: the generators of fold A's boxes are learnt on pictures of fold B, and vice versa. Masks alone:
some fifty pictures a fold teach no student. The last row is the truth itself: it says nothing of the table's validity.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from artifacts.datasets.without import share_of
from artifacts.records import Sets
from benchmarks import claims_lpg_photo
from benchmarks.claim_table import SUPERVISED, Claims, Ordering, Row
from flows import lpg
from flows.lpg import LPGFlowParams
from flows.run_flow import Page
from tasks import grabcut, labels
from tasks.crf import dense_crf
from tasks.crf.dense_crf import BoxCRFParams
from tasks.crf.params import PRESETS
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish
from tasks.grabcut import GrabCutParams
from tasks.stage import MapStage

CRF = BoxCRFParams(replace(PRESETS["bbox-seg"], gaussian_compat=3.0), core=0.4)
"""Best of 18 settings (:mod:`benchmarks.crf_boxes`, ``--without voc``) on 50 photographs of coco-mini: 63.3 mIoU."""
OBJECTS = "masks ({train}) object IoU"
COLUMNS = {"masks": "masks ({train}) mIoU", "objects": OBJECTS}
COLUMNS |= {size: f"{OBJECTS}, {size}" for size in ("small", "medium", "large")}
FOLDS = ("A", "B")
ROUNDS = {"LPG, 1 round": ("rounds=1",), "LPG, 2 rounds": ("rounds=2",), "LPG": ()}
MAKERS = {
    "box": labels.box_masks(),
    "GrabCut": grabcut.propose(GrabCutParams(variant="plain")),
    "GrabCut in crops": grabcut.propose(GrabCutParams(variant="crop")),
    "CRF": dense_crf.from_boxes(CRF),
}
"""Row -> the stage that makes its masks without any learning."""


def fold(sets: Sets, name: str) -> Sets:
    """Targets of one fold, auxiliary images of the other."""
    assert sets.aux is not None
    second = name == FOLDS[1]
    train = share_of(sets.train, 0.5, 0, rest=second)
    return Sets(train, sets.val, share_of(sets.aux, 0.5, 0, rest=not second))


def learnt_page(name: str) -> Page[Any]:
    """The flow's own page on a fold."""

    def page(run: Runner, sets: Sets, params: LPGFlowParams) -> Result:
        return lpg.page(run, fold(sets, name), params)

    page.__name__ = f"fold_{name.lower()}_page"
    return page


def made_page(name: str, stage: MapStage) -> Page[Any]:
    """The masks that a stage makes of a fold's boxes."""

    def page(run: Runner, sets: Sets, params: LPGFlowParams) -> Result:
        own = replace(fold(sets, name), aux=None)
        return finish(run, own, run.map(stage, own.train))

    page.__name__ = f"fold_{name.lower()}_{stage.name.replace('-', '_')}_page"
    return page


def truth_page(run: Runner, sets: Sets, params: LPGFlowParams) -> Result:
    """Truth as masks: 100 by definition."""
    own = replace(sets, aux=None)
    return finish(run, own, run.map(labels.given_masks(), own.train))


ORDER = ("box", "CRF", "LPG, 1 round", "LPG, 2 rounds", "LPG")

CLAIMS = Claims(
    flow="lpg",
    config="claims-lpg-folds",
    columns=COLUMNS,
    rows=(
        *(
            row
            for name in FOLDS
            for row in (
                *(Row(f"{name}: {what}", main=True, page=made_page(name, stage)) for what, stage in MAKERS.items()),
                *(Row(f"{name}: {what}", given, main=True, page=learnt_page(name)) for what, given in ROUNDS.items()),
            )
        ),
        Row(SUPERVISED, main=True, page=truth_page),
    ),
    orderings=tuple(
        Ordering(f"{name}: {lower}", f"{name}: {higher}", what, "Table III")
        for name in FOLDS
        for what in ("masks", "objects")
        for lower, higher in (*itertools.pairwise(ORDER), ("GrabCut in crops", "LPG"))
    ),
    ceiling="masks",
    prior_s=claims_lpg_photo.PRIOR_S,
)
