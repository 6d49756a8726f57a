"""What Zhang et al. ("Reliability Does Matter", AAAI 2020) claim of RRM, as rows to run.

The paper's numbers are mIoU on PASCAL VOC 2012 val: one step on ResNet-38, two steps with DeepLab on VGG-16 and on
ResNet-101. Rows of Table 2 are one step, with the top 40 % of each class: "CAM" takes the maps' own labels, "RRM" those
to which the CRF agrees; "CE" has no energy loss, "joint" has. Regions are mined online. The student of the second step
is EfficientNet-Lite0, as the network itself: stronger with a finer grid, weaker as a tiny one from scratch.
"""

from __future__ import annotations

from artifacts.records import Sets
from benchmarks.claim_rows import supervised_row
from benchmarks.claim_table import Claims, Ordering, Row
from flows.rrm import RRMFlowParams, one_step, two_step
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish

COLUMNS = {"masks": "masks ({train}) mIoU", "student": "student ({val}) mIoU"}
CAM, CE = ("rrm.reliable.agreement=false",), ("rrm.energy_weight=0",)
JOINT_OF = {0.1: 42.8, 0.2: 62.3, 0.3: 62.6, 0.4: 62.6, 0.6: 60.9, 0.8: 59.4, 1.0: 58.2}
"""Table 1: share of reliable pixels -> mIoU with the joint loss. 40 % are the rows of Table 2."""
SHARES = tuple(share for share in JOINT_OF if share != 0.4)


def one_step_page(run: Runner, sets: Sets, params: RRMFlowParams) -> Result:
    """One step; the network itself is the student."""
    masks, found = one_step(run, sets, params, label="student")
    return finish(run, sets, masks, {"student": found})


def two_step_page(run: Runner, sets: Sets, params: RRMFlowParams) -> Result:
    """Two steps; DeepLab is the student."""
    masks, _ = one_step(run, sets, params)
    return finish(run, sets, masks, {"student": two_step(run, sets, params, masks, label="student")})


def one(name: str, *sets: str, paper: float | None = None, main: bool = False) -> Row:
    """A row of one step."""
    return Row(name, sets, main=main, paper={} if paper is None else {"student": paper}, page=one_step_page)


def two(name: str, *sets: str, paper: float, main: bool = False) -> Row:
    """A row of two steps."""
    return Row(name, sets, main=main, paper={"student": paper}, page=two_step_page)


def main_rows(stronger: tuple[str, ...]) -> tuple[Row, ...]:
    """Table 2, the second step, and the ceiling. ``stronger``: what makes the student stronger."""
    return (
        one("CAM, CE", *CAM, *CE, paper=46.1, main=True),
        one("CAM, joint", *CAM, paper=55.7, main=True),
        one("RRM, CE", *CE, paper=48.5, main=True),
        one("RRM, joint", paper=62.6, main=True),
        two("two-step, stronger student", *stronger, paper=66.3, main=True),
        supervised_row(lambda params: params.deeplab),
    )


CODE = ("label_gamma=32", "rank_above=.1", "background_above=.8", "crf_certain=.8")
SECONDARY = (
    *(one(f"share {share}, joint", f"rrm.reliable.share={share}", paper=JOINT_OF[share]) for share in SHARES),
    *(one(f"share {share}, CE", f"rrm.reliable.share={share}", *CE) for share in SHARES),
    one("half-size CRF", "rrm.reliable.crf_scale=.5"),
    one("ties kept", "rrm.reliable.ties=all"),
    one("the paper's gamma, 4", "rrm.reliable.gamma=4"),
    one("the released code's rules", *(f"rrm.reliable.{rule}" for rule in CODE)),
    one("mined offline", "rrm.mining=offline"),
    *(one(f"energy x {factor}", f"rrm.energy_weight={weight}") for factor, weight in ((0.1, "1e-8"), (10, "1e-6"))),
)
TINY = ("deeplab.network=tiny", "deeplab.weights=none", "deeplab.output_stride=8", "deeplab.head_multipliers=null")
WEAKER = two("two-step, weaker student", *TINY, "deeplab.lr=2e-3", "deeplab.iterations=400", paper=60.7)

ORDERINGS = (
    Ordering("CAM, CE", "RRM, CE", "student", "Table 2"),
    Ordering("CAM, joint", "RRM, joint", "student", "Table 2"),
    Ordering("CAM, CE", "CAM, joint", "student", "Table 2"),
    Ordering("RRM, CE", "RRM, joint", "student", "Table 2", aim=0.03),
    Ordering("RRM, joint", "two-step, stronger student", "student", "Table 5"),
    Ordering("share 0.1, joint", "RRM, joint", "student", "Table 1: rises"),
    Ordering("share 0.1, joint", "share 0.2, joint", "student", "Table 1: rises"),
    Ordering("share 0.6, joint", "RRM, joint", "student", "Table 1: falls"),
    Ordering("share 0.8, joint", "share 0.6, joint", "student", "Table 1: falls"),
    Ordering("share 1.0, joint", "share 0.8, joint", "student", "Table 1: falls"),
    Ordering("share 1.0, joint", "RRM, joint", "student", "Table 1: falls"),
    *(Ordering(f"share {share}, CE", f"share {share}, joint", "student", "Table 1") for share in SHARES),
)

PRIOR_S = {"classifier": 70, "cam": 0.08, "reliable": 0.03, "rrm": 240, "rrm-masks": 0.06, "one-step": 0.06}
PRIOR_S |= {"deeplab": 200, "student": 0.06, "student-shown": 0.06, "given-masks": 0.005, "": 5}
"""Estimated from parts, on two cores."""

CLAIMS = Claims(
    flow="rrm",
    config="claims-rrm",
    columns=COLUMNS,
    rows=(*main_rows(("deeplab.output_stride=8",)), *SECONDARY, WEAKER),
    orderings=(*ORDERINGS, Ordering("two-step, weaker student", "RRM, joint", "student", "Table 5")),
    ceiling="student",
    prior_s=PRIOR_S,
)
