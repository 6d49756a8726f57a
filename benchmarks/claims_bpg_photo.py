"""The claims of :mod:`benchmarks.claims_bpg` again, on photographs: a network that starts from ImageNet, real objects.

For a VOC tree with scribbles (docs/bpg.md says which). The network is EfficientNet-Lite0 at output stride 16. Edges are
the full HED's unless stated.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks import claims_bpg
from benchmarks.claim_table import Ordering
from benchmarks.claims_bpg import MAIN, SCRIBBLES, TABLE_1, TABLE_2, row

SECONDARY = (
    row("BPG, hed-lite", "edges.network=hed-lite"),
    *claims_bpg.SECONDARY,
)
EDGES = (*claims_bpg.EDGES, Ordering("BPG, hed-lite", "BPG", "guided", "ours"))

PRIOR_S = {"scribbles": 0.03, "given-masks": 0.01, "edges": 0.6, "bpg": 1200, "guided": 0.8}
PRIOR_S |= {"guided-shown": 0.8, "": 10}
"""Estimated from parts, on two cores."""

CLAIMS = replace(
    claims_bpg.CLAIMS,
    config="claims-bpg-photo",
    rows=(*MAIN, *SECONDARY),
    orderings=(*TABLE_1, *TABLE_2, *EDGES, *SCRIBBLES),
    backbone=None,
    prior_s=PRIOR_S,
)
