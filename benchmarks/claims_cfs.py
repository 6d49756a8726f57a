"""What Xie et al. ("Learning Effectively from Noisy Supervision", BMVC 2020) claim of CFS and LGSA, as rows to run.

The paper's numbers are mIoU on PASCAL VOC 2012 val with DeepLab v2 on ResNet-101; it scores no masks. GrabCut is the
usual one if not said otherwise: the whole image, the box as rectangle. "In crops" is this project's (tasks/grabcut.py)
at the refinement's working size: what it gains needs no network. LGSA is on masks of CFS, refined, with two modules,
alpha 10,000 and the random walk, if not said otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from artifacts.records import RecordSet
from benchmarks.claim_table import Claims, Ordering, Row
from flows.cfs import CFSFlowParams, proposals
from tasks import labels
from tasks.deeplab import stages as deeplab
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish, score_handle
from tasks.training.params import check_run

SUPERVISED = "fully supervised"
REFINED = ("proposals=cfs-refined",)
PLAIN = (*REFINED, "attention=none")
NONLOCAL = (*REFINED, "attention=nonlocal")
LGSA = (*REFINED, "attention=lgsa")
CROPS = "grabcut.variant=crop"
NO_WALK = (*LGSA, "lgsa.walk=off")

TABLE_5 = {0: (71.5, 71.5), 5000: (71.7, 72.1), 10000: (71.8, 72.4), 15000: (71.8, 72.3), 20000: (71.7, 72.2)}
"""alpha -> mIoU without and with random walk. Without guidance and walk: non-local; with 10,000 and walk: LGSA."""
TABLE_3 = {1: (71.3, 71.9), 2: (71.5, 72.4), 3: (71.5, 72.6)}
"""Modules -> non-local, LGSA."""


def supervised_page(run: Runner, train: RecordSet, val: RecordSet, params: CFSFlowParams) -> Result:
    """The student on truth masks: same network, schedule and data, no attention. The ceiling of every table."""
    check_run(params.deeplab, run.options, name="deeplab")
    masks = run.map(labels.given_masks(), train)
    student = run.fit(deeplab.fit(params.deeplab), train, monitor=val, target=masks)
    return finish(run, masks, student, val, deeplab.predict(params.deeplab))


def masks_page(run: Runner, train: RecordSet, val: RecordSet, params: CFSFlowParams) -> Result:
    """The masks alone, scored: rows of which the paper has no student either."""
    masks = proposals(run, train, params)
    if run.planning:
        return Result("", {}, {}, {"stages": [], "skips": [], "seconds": 0.0})
    found = score_handle(run, masks)
    run.skips.extend(found.skips)
    scores = {f"masks ({train.split})": found.scores.as_dict(train.classes)}
    manifest = run.write_manifest("finished", scores=scores, masks=masks.label, classes=list(train.classes))
    return Result(run.folder.run_id, scores, {}, manifest)


MAIN = (
    Row("box", ("proposals=box", "attention=none"), main=True, paper=55.4),
    Row("GrabCut", ("proposals=grabcut", "attention=none"), main=True, paper=66.6),
    Row("CFS raw", ("proposals=cfs", "attention=none"), main=True, page=masks_page),
    Row("CFS refined", PLAIN, main=True, paper=70.8),
    Row("CFS refined, trimap .2/.8", (*PLAIN, "refine.trimap_low=.2", "refine.trimap_high=.8"), main=True),
    Row("GrabCut in crops", ("proposals=grabcut", "attention=none", CROPS), main=True, page=masks_page),
    Row("CFS refined, from crops", (*PLAIN, CROPS), main=True, page=masks_page),
    Row("non-local", NONLOCAL, main=True, paper=TABLE_3[2][0]),
    Row("LGSA", LGSA, main=True, paper=TABLE_3[2][1]),
    Row(SUPERVISED, ("attention=none",), main=True, paper=76.2, page=supervised_page),
)
SECONDARY = (
    Row("CFS without class channel", (*PLAIN, "cfs.class_channel=false"), page=masks_page),
    Row("CFS without deep re-feed", (*PLAIN, "cfs.deep_refeed=false"), page=masks_page),
    Row("LGSA without walk", NO_WALK, paper=TABLE_5[10000][0]),
    Row("alpha 0, walk", (*LGSA, "lgsa.alpha=0"), paper=TABLE_5[0][1]),
    *(
        Row(f"{name}, modules {n}", (*sets, f"lgsa.modules={n}"), paper=TABLE_3[n][place])
        for n in (1, 3)
        for place, (name, sets) in enumerate((("non-local", NONLOCAL), ("LGSA", LGSA)))
    ),
    *(Row(f"alpha {a}", (*NO_WALK, f"lgsa.alpha={a}"), paper=TABLE_5[a][0]) for a in (5000, 15000, 20000)),
    *(Row(f"alpha {a}, walk", (*LGSA, f"lgsa.alpha={a}"), paper=TABLE_5[a][1]) for a in (5000, 15000, 20000)),
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
"""Guessed from parts, on two cores."""
PRIOR_S |= {"pretrained": 300, "box-masks": 0.005, "given-masks": 0.005, "student-shown": 0.02}

BACKBONE = replace(deeplab.DEMO, output_stride=4)

CLAIMS = Claims("cfs", "claims-cfs", (*MAIN, *SECONDARY), ORDERINGS, SUPERVISED, BACKBONE, PRIOR_S)
