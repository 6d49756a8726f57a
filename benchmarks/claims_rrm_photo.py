"""The claims of :mod:`benchmarks.claims_rrm` again, on photographs: there maps mean something.

For a VOC tree such as 1,000 pictures of six classes (docs/rrm.md says which). The stronger student learns twice as long
as the other, with the same network: at a finer grid its epochs would take hours of two cores.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks import claims_rrm
from benchmarks.claims_rrm import ORDERINGS, SECONDARY, main_rows

PRIOR_S = {"classifier": 220, "cam": 0.2, "reliable": 0.06, "rrm": 500, "rrm-masks": 0.2, "one-step": 0.2}
PRIOR_S |= {"deeplab": 400, "student": 0.2, "student-shown": 0.2, "given-masks": 0.01, "": 10}
"""Estimated from parts, on two cores."""

CLAIMS = replace(
    claims_rrm.CLAIMS,
    config="photo-rrm",
    rows=(*main_rows(("deeplab.epochs=8",)), *SECONDARY),
    orderings=ORDERINGS,
    prior_s=PRIOR_S,
)
