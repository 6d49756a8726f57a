"""What Wang et al. ("Boundary Perception Guidance", IJCAI 2019) claim of PRN and BRN, as rows to run.

The paper's numbers are mIoU on PASCAL VOC 2012 val with DeepLab v2 on ResNet-101, without and with a CRF, and the edge
loss of the last iteration. There is no student: the network that learns from scribbles is the result. "Edge" is the
mean squared error of the boundaries over the last iterations of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from artifacts.records import Sets
from benchmarks.claim_table import SUPERVISED, Backbone, Claims, Ordering, Row
from flows.bpg import BPGFlowParams, learn, predict
from tasks.deeplab import stages as deeplab
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result, finish

COLUMNS = {"guided": "guided ({val}) mIoU", "crf": "guided + CRF ({val}) mIoU", "edge": "bpg: edge"}
NO_PRN, NO_BRN = "bpg.parts.prn=false", "bpg.parts.brn=off"
LENGTHS = (0.8, 0.5, 0.3, 0.0)
"""Of ScribbleSup's experiment; the strokes as they are, 1, are the row BPG."""

WEIGHTS = (0.1, 0.01)
"""Of the edge loss, whose sum is over all pixels: on drawn pictures some 20 times as many as are scribbled. The paper's
is 1, the row BPG."""


def paper(guided: float, crf: float | None = None, edge: float | None = None) -> dict[str, float]:
    """Tables 1 and 2, per cent."""
    found = {"guided": guided, "crf": crf, "edge": None if edge is None else 100 * edge}
    return {name: value for name, value in found.items() if value is not None}


def guided_page(run: Runner, sets: Sets, params: BPGFlowParams) -> Result:
    """The flow's page without masks of the training images, which no column shows and nothing learns from."""
    _, net = learn(run, sets, params)
    return finish(run, sets, None, {"guided": predict(run, sets, params, net)})


def row(name: str, *sets: str, main: bool = False, paper: Mapping[str, float] | None = None) -> Row:
    """A row on that page."""
    return Row(name, sets, main=main, paper=paper or {}, page=guided_page)


MAIN = (
    row("base", NO_PRN, NO_BRN, main=True, paper=paper(69.9)),
    row("+PRN", NO_BRN, main=True, paper=paper(71.4)),
    row("+BRN", NO_PRN, main=True, paper=paper(72.4)),
    row("BPG", main=True, paper=paper(73.2, 76.0, 0.051)),
    row("BPG, C = K + 1", "bpg.parts.brn=all", main=True, paper=paper(70.8, edge=0.026)),
    row(SUPERVISED, "labels=masks", NO_PRN, NO_BRN, main=True, paper=paper(75.8, 76.4)),
)
SECONDARY = (
    row("BPG on full masks", "labels=masks"),
    row("BPG, Canny", "edges.network=canny"),
    *(row(f"BPG, length {length:g}", f"scribbles.length={length:g}") for length in LENGTHS),
    *(row(f"base, length {length:g}", NO_PRN, NO_BRN, f"scribbles.length={length:g}") for length in (0.3, 0.0)),
    *(row(f"BPG, width {width}", f"scribbles.width={width}") for width in (1, 5)),
    *(row(f"BPG, lambda {weight:g}", f"bpg.boundary_weight={weight:g}") for weight in WEIGHTS),
)

LARGER = row("BPG, edges at 3 x", "edges.scales=[3]")
"""For small pictures: of them HED draws more than borders; seen three times as large, they have fewer others."""

TABLE_1 = (
    Ordering("base", "+PRN", "guided", "Table 1"),
    Ordering("base", "+BRN", "guided", "Table 1"),
    Ordering("+PRN", "BPG", "guided", "Table 1"),
    Ordering("+BRN", "BPG", "guided", "Table 1"),
    Ordering("base", "BPG", "guided", "Table 1"),
    Ordering("base", "BPG", "crf", "ours"),
)
TABLE_2 = (
    Ordering("BPG, C = K + 1", "+PRN", "guided", "Table 2"),
    Ordering("BPG, C = K + 1", "BPG", "guided", "Table 2"),
    Ordering("BPG, C = K + 1", "BPG", "edge", "Table 2"),
)
EDGES = (Ordering("BPG, Canny", "BPG", "guided", "ours"),)
SCRIBBLES = (
    Ordering("BPG, length 0.8", "BPG", "guided", "ScribbleSup"),
    Ordering("BPG, length 0.5", "BPG, length 0.8", "guided", "ScribbleSup"),
    Ordering("BPG, length 0.3", "BPG, length 0.5", "guided", "ScribbleSup"),
    Ordering("BPG, length 0", "BPG, length 0.3", "guided", "ScribbleSup"),
    Ordering("base, length 0", "BPG, length 0", "guided", "ours"),
    Ordering("base, length 0.3", "BPG, length 0.3", "guided", "ours"),
    Ordering("BPG", "BPG on full masks", "guided", "ours"),
    *(Ordering("BPG", f"BPG, lambda {weight:g}", "guided", "ours") for weight in WEIGHTS),
)

PRIOR_S = {"scribbles": 0.01, "given-masks": 0.005, "edges": 0.1, "bpg": 120, "guided": 0.05}
PRIOR_S |= {"pretrained": 300, "guided-shown": 0.05, "": 5}
"""Estimated from parts, on two cores."""

CLAIMS = Claims(
    flow="bpg",
    config="claims-bpg",
    columns=COLUMNS,
    rows=(*MAIN, *SECONDARY, LARGER),
    orderings=(*TABLE_1, *TABLE_2, *EDGES, Ordering("BPG", LARGER.name, "guided", "ours"), *SCRIBBLES),
    ceiling="guided",
    backbone=Backbone(replace(deeplab.DEMO, output_stride=8), takes=("bpg.weights",)),
    prior_s=PRIOR_S,
)
