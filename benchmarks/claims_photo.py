"""The claims of :mod:`benchmarks.claims_cfs` again, on photographs: networks that start from ImageNet, real objects.

For a VOC tree such as 1,000 pictures of six classes (docs/cfs.md says which). Student and CFS's encoder are
EfficientNet-Lite0 at output stride 16: a run is minutes on two cores. GrabCut is the usual one unless stated: the whole
image, the box as rectangle. Attention is on masks of GrabCut in crops: they need no network, so that the rows of one
seed differ in the attention alone.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks import claims_cfs
from benchmarks.claim_rows import supervised_row
from benchmarks.claim_table import Ordering, Row
from benchmarks.claims_cfs import CROPS, student

WIDE = ("refine.trimap_low=.2", "refine.trimap_high=.8")
REFINED = ("proposals=cfs-refined", "attention=none")
GRABCUT = ("proposals=grabcut", CROPS)

MAIN = (
    Row("box", ("proposals=box", "attention=none"), main=True, paper=student(55.4)),
    Row("GrabCut", ("proposals=grabcut", "attention=none"), main=True, paper=student(66.6)),
    Row("GrabCut in crops", (*GRABCUT, "attention=none"), main=True),
    supervised_row(lambda params: params.deeplab, ("attention=none",), student(76.2)),
    Row("CFS refined", REFINED, main=True, paper=student(70.8)),
    Row("CFS refined, trimap .2/.8", (*REFINED, *WIDE), main=True),
    Row("CFS refined, from crops", (*REFINED, CROPS), main=True),
    Row("CFS refined, from crops, trimap .2/.8", (*REFINED, CROPS, *WIDE), main=True),
    Row("non-local", (*GRABCUT, "attention=nonlocal"), main=True, paper=student(71.5)),
    Row("LGSA", (*GRABCUT, "attention=lgsa"), main=True, paper=student(72.4)),
)
SECONDARY = (
    Row("LGSA without walk", (*GRABCUT, "attention=lgsa", "lgsa.walk=off"), paper=student(71.8)),
    Row("alpha 0, walk", (*GRABCUT, "attention=lgsa", "lgsa.alpha=0"), paper=student(71.5)),
    Row("LGSA, walk on logits", (*GRABCUT, "attention=lgsa", "lgsa.walk=logits")),
    Row("LGSA, alpha x 100", (*GRABCUT, "attention=lgsa", "lgsa.alpha=1000000")),
    Row("LGSA, no warm-up", (*GRABCUT, "attention=lgsa", "lgsa.warmup_epochs=0")),
    Row("LGSA, 8 epochs", (*GRABCUT, "attention=lgsa", "deeplab.epochs=8")),
    Row("LGSA, stride 8", (*GRABCUT, "attention=lgsa", "deeplab.output_stride=8")),
)

ORDERINGS = (
    Ordering("box", "GrabCut", "masks", "Sec. 3.2"),
    Ordering("GrabCut", "GrabCut in crops", "masks", "ours"),
    Ordering("GrabCut", "CFS refined", "masks", "Fig. 5"),
    Ordering("CFS refined", "CFS refined, trimap .2/.8", "masks", "ours"),
    Ordering("GrabCut in crops", "CFS refined, from crops", "masks", "Fig. 5"),
    Ordering("GrabCut in crops", "CFS refined, from crops, trimap .2/.8", "masks", "ours"),
    Ordering("box", "GrabCut", "student", "Table 2"),
    Ordering("GrabCut", "GrabCut in crops", "student", "ours"),
    Ordering("GrabCut", "CFS refined", "student", "Table 2"),
    Ordering("GrabCut", "CFS refined, trimap .2/.8", "student", "ours"),
    Ordering("GrabCut in crops", "CFS refined, from crops", "student", "ours"),
    Ordering("GrabCut in crops", "CFS refined, from crops, trimap .2/.8", "student", "ours"),
    Ordering("GrabCut in crops", "non-local", "student", "Table 3"),
    Ordering("non-local", "LGSA", "student", "Table 3"),
    Ordering("GrabCut in crops", "LGSA", "student", "Tables 2, 3"),
    Ordering("LGSA without walk", "LGSA", "student", "Table 5"),
    Ordering("alpha 0, walk", "LGSA", "student", "Table 5"),
    Ordering("LGSA", "LGSA, walk on logits", "student", "ours"),
    Ordering("LGSA", "LGSA, alpha x 100", "student", "ours"),
    Ordering("LGSA", "LGSA, no warm-up", "student", "ours"),
    Ordering("LGSA", "LGSA, 8 epochs", "student", "ours"),
    Ordering("LGSA", "LGSA, stride 8", "student", "ours"),
)

PRIOR_S = {"grabcut": 0.6, "cfs": 600, "cfs-predict": 0.1, "refine": 0.6, "deeplab": 300, "student": 0.1, "": 10}
PRIOR_S |= {"box-masks": 0.01, "given-masks": 0.01, "student-shown": 0.1}
"""Estimated from parts, on two cores."""

CLAIMS = replace(
    claims_cfs.CLAIMS,
    config="claims-photo",
    rows=(*MAIN, *SECONDARY),
    orderings=ORDERINGS,
    backbone=None,
    prior_s=PRIOR_S,
)
