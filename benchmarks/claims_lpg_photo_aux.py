"""Which auxiliary pictures help: LPG of :mod:`benchmarks.claims_lpg_photo` with each joined set alone.

`python -m benchmarks.claims lpg --table photo-aux` with the data of `make claims-lpg-photo`. An id of a joined set
(``data.more``) begins with the name of its own: a row takes the auxiliary images of one of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from artifacts.records import DataError, RecordSet, Sets
from benchmarks import claims_lpg_photo
from benchmarks.claim_rows import box_row, supervised_row
from benchmarks.claim_table import Ordering, Row
from benchmarks.claims_lpg import numbers
from flows import lpg
from flows.lpg import LPGFlowParams
from flows.run_flow import Page
from tasks.engine.runner import Runner
from tasks.evaluate.finish import Result

PARTS = {
    "furniture": "aux-furniture",
    "people": "aux-people",
    "COCO's other classes": "coco-mini",
    "drawn pictures": "demo-auxiliary-600",
}
"""Name in the table -> of the data set."""


def part_of(aux: RecordSet, dataset: str) -> RecordSet:
    """The images of one of the joined sets. Raises :class:`DataError` where there are none."""
    part = aux.only(one.image_id for one in aux if one.image_id.startswith(f"{dataset}/"))
    if not len(part):
        raise DataError(f"no image of {dataset} is in the auxiliary set {aux.dataset}; join it with data.more")
    return part


def part_page(dataset: str) -> Page[Any]:
    """The flow's own page on the auxiliary images of one of the joined sets."""

    def page(run: Runner, sets: Sets, params: LPGFlowParams) -> Result:
        assert sets.aux is not None
        return lpg.page(run, replace(sets, aux=part_of(sets.aux, dataset)), params)

    page.__name__ = f"{dataset.replace('-', '_')}_page"
    return page


CLAIMS = replace(
    claims_lpg_photo.CLAIMS,
    rows=(
        box_row(lambda params: params.deeplab),
        Row("LPG", (), main=True, paper=numbers(68.4, 82.2)),
        *(Row(f"LPG, {name}", page=part_page(dataset)) for name, dataset in PARTS.items()),
        supervised_row(lambda params: params.deeplab, (), numbers(69.6)),
    ),
    orderings=tuple(Ordering(f"LPG, {name}", "LPG", "masks", "ours") for name in PARTS),
)
