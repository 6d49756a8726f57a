"""What Xie et al. ("Learning Effectively from Noisy Supervision", BMVC 2020) claim of CFS and LGSA, as rows to run.

The paper's numbers are mIoU on PASCAL VOC 2012 val with DeepLab v2 on ResNet-101; it scores no masks. GrabCut is the
usual one unless stated: the whole image, the box as rectangle. "In crops" is this project's (tasks/grabcut.py)
at the refinement's working size: what it gains needs no network. LGSA is on masks of CFS, refined, with two modules,
alpha 10,000 and the random walk, unless stated otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.claim_rows import supervised_row
from benchmarks.claim_table import Backbone, Claims, Ordering, Row
from tasks.deeplab import stages as deeplab

COLUMNS = {"masks": "masks ({train}) mIoU", "student": "student ({val}) mIoU"}
REFINED = ("proposals=cfs-refined",)
PLAIN = (*REFINED, "attention=none")
NONLOCAL = (*REFINED, "attention=nonlocal")
LGSA = (*REFINED, "attention=lgsa")
CROPS = "grabcut.variant=crop"
ALONE = "student=none"
"""The masks alone, scored: rows of which the paper has no student either."""
NO_WALK = (*LGSA, "lgsa.walk=off")

TABLE_5 = {0: (71.5, 71.5), 5000: (71.7, 72.1), 10000: (71.8, 72.4), 15000: (71.8, 72.3), 20000: (71.7, 72.2)}
"""alpha -> mIoU without and with random walk. Without guidance and walk: non-local; with 10,000 and walk: LGSA."""
TABLE_3 = {1: (71.3, 71.9), 2: (71.5, 72.4), 3: (71.5, 72.6)}
"""Modules -> non-local, LGSA."""


def student(miou: float) -> dict[str, float]:
    """The paper's number of a row."""
    return {"student": miou}


MAIN = (
    Row("box", ("proposals=box", "attention=none"), main=True, paper=student(55.4)),
    Row("GrabCut", ("proposals=grabcut", "attention=none"), main=True, paper=student(66.6)),
    Row("CFS raw", ("proposals=cfs", ALONE), main=True),
    Row("CFS refined", PLAIN, main=True, paper=student(70.8)),
    Row("CFS refined, trimap .2/.8", (*PLAIN, "refine.trimap_low=.2", "refine.trimap_high=.8"), main=True),
    Row("GrabCut in crops", ("proposals=grabcut", ALONE, CROPS), main=True),
    Row("CFS refined, from crops", (*REFINED, ALONE, CROPS), main=True),
    Row("non-local", NONLOCAL, main=True, paper=student(TABLE_3[2][0])),
    Row("LGSA", LGSA, main=True, paper=student(TABLE_3[2][1])),
    supervised_row(lambda params: params.deeplab, ("attention=none",), student(76.2)),
)
SECONDARY = (
    Row("CFS without class channel", (*REFINED, ALONE, "cfs.class_channel=false")),
    Row("CFS without deep re-feed", (*REFINED, ALONE, "cfs.deep_refeed=false")),
    Row("LGSA without walk", NO_WALK, paper=student(TABLE_5[10000][0])),
    Row("alpha 0, walk", (*LGSA, "lgsa.alpha=0"), paper=student(TABLE_5[0][1])),
    *(
        Row(f"{name}, modules {n}", (*sets, f"lgsa.modules={n}"), paper=student(TABLE_3[n][place]))
        for n in (1, 3)
        for place, (name, sets) in enumerate((("non-local", NONLOCAL), ("LGSA", LGSA)))
    ),
    *(Row(f"alpha {a}", (*NO_WALK, f"lgsa.alpha={a}"), paper=student(TABLE_5[a][0])) for a in (5000, 15000, 20000)),
    *(Row(f"alpha {a}, walk", (*LGSA, f"lgsa.alpha={a}"), paper=student(TABLE_5[a][1])) for a in (5000, 15000, 20000)),
)

ORDERINGS = (
    Ordering("box", "GrabCut", "masks", "Sec. 3.2"),
    Ordering("GrabCut", "CFS raw", "masks", "Fig. 5"),
    Ordering("CFS raw", "CFS refined", "masks", "Fig. 5"),
    Ordering("GrabCut", "CFS refined", "masks", "Fig. 5", aim=0.03),
    Ordering("CFS refined", "CFS refined, trimap .2/.8", "masks", "ours"),
    Ordering("GrabCut in crops", "CFS refined, from crops", "masks", "Fig. 5", aim=0.03),
    Ordering("box", "GrabCut", "student", "Table 2"),
    Ordering("GrabCut", "CFS refined", "student", "Table 2"),
    Ordering("GrabCut", "CFS refined, trimap .2/.8", "student", "Table 2"),
    Ordering("CFS refined", "non-local", "student", "Tables 2, 3"),
    Ordering("non-local", "LGSA", "student", "Table 3"),
    Ordering("CFS refined", "LGSA", "student", "Tables 2, 3"),
    Ordering("LGSA without walk", "LGSA", "student", "Table 5"),
    *(Ordering(f"alpha {a}", f"alpha {a}, walk", "student", "Table 5") for a in (5000, 15000, 20000)),
    Ordering("alpha 0, walk", "LGSA", "student", "Table 5"),
    Ordering("alpha 20000, walk", "LGSA", "student", "Table 5"),
    *(Ordering(f"non-local, modules {n}", f"LGSA, modules {n}", "student", "Table 3") for n in (1, 3)),
    Ordering("LGSA, modules 1", "LGSA", "student", "Table 3"),
    Ordering("LGSA", "LGSA, modules 3", "student", "Table 3"),
    *(
        Ordering(f"CFS without {what}", "CFS refined", "masks", "Sec. 3.2")
        for what in ("class channel", "deep re-feed")
    ),
)

PRIOR_S = {"grabcut": 0.03, "cfs": 60, "cfs-predict": 0.03, "refine": 0.05, "deeplab": 130, "student": 0.05, "": 5}
"""Estimated from parts, on two cores."""
PRIOR_S |= {"pretrained": 300, "box-masks": 0.005, "given-masks": 0.005, "student-shown": 0.02}

BACKBONE = Backbone(replace(deeplab.DEMO, output_stride=4), takes=("deeplab.weights",))

CLAIMS = Claims(
    flow="cfs",
    config="claims-cfs",
    columns=COLUMNS,
    rows=(*MAIN, *SECONDARY),
    orderings=ORDERINGS,
    ceiling="student",
    backbone=BACKBONE,
    prior_s=PRIOR_S,
)
