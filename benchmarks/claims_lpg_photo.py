"""The claims of :mod:`benchmarks.claims_lpg` again, on photographs: networks that start from ImageNet, real objects.

The target is a VOC tree with boxes, the auxiliary set any data sets with masks of other classes (docs/lpg.md, "The
auxiliary set"). Beside the paper's CRF there are GrabCut, the usual one and in crops, and CFS, refined, as
:mod:`benchmarks.claims_photo` has it.
"""

from __future__ import annotations

from dataclasses import replace

from artifacts.records import Sets
from benchmarks import claims_lpg
from benchmarks.claim_rows import box_row, learn_from, learn_on, supervised_row
from benchmarks.claim_table import SUPERVISED, Ordering, Row
from benchmarks.claims_cfs import CROPS
from benchmarks.claims_lpg import crf_page, numbers
from benchmarks.claims_photo import CLAIMS as OF_CFS
from flows import cfs
from flows.configure import configure
from flows.lpg import LPGFlowParams
from tasks import grabcut
from tasks.crf.dense_crf import BoxCRFParams
from tasks.crf.params import PRESETS
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result
from tasks.grabcut import GrabCutParams

CRF = BoxCRFParams(replace(PRESETS["bbox-seg"], bilateral_sxy=80.0, bilateral_srgb=20.0), core=0.2)
"""Best of 18 settings (:mod:`benchmarks.crf_boxes`) on 100 photographs of aux-furniture and aux-people: 78.2 mIoU."""


def plain_page(run: Runner, sets: Sets, params: LPGFlowParams) -> Result:
    """The row "GrabCut": the student on the usual one's masks."""
    return learn_from(run, sets, grabcut.propose(GrabCutParams(variant="plain")), params.deeplab)


def cfs_page(run: Runner, sets: Sets, params: LPGFlowParams) -> Result:
    """The row "CFS refined, from crops": the student on what CFS makes of GrabCut in crops."""
    own = configure("cfs", None, OF_CFS.config, (f"params.{CROPS}",), {}).params
    own = replace(own, cfs=replace(own.cfs, seed=params.deeplab.seed))
    return learn_on(run, sets, cfs.proposals(run, sets.train, own), params.deeplab)


def grabcut_page(run: Runner, sets: Sets, params: LPGFlowParams) -> Result:
    """The row "GrabCut in crops": the student on its masks."""
    return learn_from(run, sets, grabcut.propose(GrabCutParams(variant="crop")), params.deeplab)


MAIN = (
    box_row(lambda params: params.deeplab),
    Row("CRF", main=True, paper=numbers(masks=69.7), page=crf_page(CRF)),
    Row("GrabCut", main=True, page=plain_page),
    Row("GrabCut in crops", main=True, page=grabcut_page),
    Row("CFS refined, from crops", main=True, page=cfs_page),
    Row("LPG, 1 round", ("rounds=1",), main=True, paper=numbers(66.8, 78.2)),
    Row("LPG, 2 rounds", ("rounds=2",), main=True, paper=numbers(68.3, 81.7)),
    Row("LPG", (), main=True, paper=numbers(68.4, 82.2)),
    Row("LPG, fixed", ("generators=fixed",), paper=numbers(67.5)),
    supervised_row(lambda params: params.deeplab, (), numbers(69.6)),
)

ORDERINGS = (
    Ordering("box", "CRF", "masks", "Table III"),
    Ordering("CRF", "LPG, 1 round", "masks", "Table III"),
    Ordering("GrabCut in crops", "LPG", "masks", "ours", aim=0.04),
    Ordering("LPG, 1 round", "LPG, 2 rounds", "masks", "Table III"),
    Ordering("LPG, 2 rounds", "LPG", "masks", "Table III"),
    Ordering("CFS refined, from crops", "LPG", "masks", "ours"),
    Ordering("LPG", SUPERVISED, "student", "Table IV"),
    Ordering("CRF", "LPG", "student", "Table IV"),
    Ordering("GrabCut in crops", "LPG", "student", "ours"),
    Ordering("CFS refined, from crops", "LPG", "student", "ours"),
    Ordering("LPG, fixed", "LPG", "masks", "Table II"),
)

PRIOR_S = {name: 4 * seconds for name, seconds in claims_lpg.PRIOR_S.items()}
PRIOR_S |= {"grabcut": 0.6, "crf-boxes": 0.1, "cfs": 600, "cfs-predict": 0.1, "refine": 0.6}
"""Estimated from parts, on two cores."""

CLAIMS = replace(
    claims_lpg.CLAIMS, config="claims-lpg-photo", rows=MAIN, orderings=ORDERINGS, backbone=None, prior_s=PRIOR_S
)
