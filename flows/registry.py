"""The only list of flows. A flow is a page (a module in ``flows/``), one entry here, and a row of README's table.

An entry imports nothing heavy: it names modules and classes, which are imported when they are used. So ``maskmill
--help`` answers at once.

**A flow of one's own** needs no change here. ``MASKMILL_FLOWS=my_flow:ENTRY`` (several with commas) adds the
:class:`FlowEntry` that the module ``my_flow`` holds. Being in the environment, it reaches workers, fits and served
runs; the module must be importable there, too (``PYTHONPATH``).
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from artifacts.records import DataError

PLUG_INS = "MASKMILL_FLOWS"
"""Environment variable: ``module:ENTRY``, several with commas."""


@dataclass(frozen=True)
class FlowEntry:
    """What the command, serve, compare, claims, docs and tests need of a flow."""

    name: str
    """``maskmill NAME``; the page's Prefect flow has this name, with ``_`` for ``-``."""
    module: str
    """The page's module: holds ``page``, the params class and the Prefect flow."""
    params: str
    """Name of the params class."""
    help: str
    """One line for ``--help``."""
    labels: tuple[str, ...]
    """Kinds of weak labels (fields of ``Record``) that the flow's stages may read of the training images, no others."""
    method: str
    """What it does and the paper, for README's table."""
    demo: str = ""
    """Configuration (shipped, or a file's path) for the data ``demo``; "" for the flow's defaults."""
    tiny: str = ""
    """The same for ``demo-tiny``: the whole flow in seconds. The tests run it."""
    figure: tuple[str, ...] = ()
    """What ``--set`` adds to ``tiny`` for the paper's whole figure; empty if ``tiny`` is the whole figure."""
    claims: Mapping[str, str] = field(default_factory=dict)
    """The paper's claims: name of a table -> the module that holds it as ``CLAIMS``. The first is the usual one."""
    label_cost: str = ""
    """What the paper says of the time that its labels take a person, for the notes of ``maskmill compare``."""
    shortcut: tuple[str, str] | None = None
    """An option of the command that sets one value: ``("--generator", "params.generator")``."""
    ranks: int = 2
    """Processes that may share the first fit of ``tiny`` in the test that kills them; its batch is divisible by it."""

    @property
    def entrypoint(self) -> str:
        """``module:name`` of the Prefect flow."""
        return f"{self.module}:{self.name.replace('-', '_')}"

    @property
    def demos(self) -> Mapping[str, str]:
        """Demo data -> the configuration that belongs to it."""
        return {data: config for data, config in (("demo", self.demo), ("demo-tiny", self.tiny)) if config}

    @property
    def page(self) -> Any:
        """The flow's page (imports it)."""
        return getattr(importlib.import_module(self.module), "page")  # noqa: B009 (mypy: a module has no page)

    @property
    def params_class(self) -> type[Any]:
        """The flow's params class (imports it)."""
        found: type[Any] = getattr(importlib.import_module(self.module), self.params)
        return found

    @property
    def prefect_flow(self) -> Any:
        """The page as a Prefect flow (imports it)."""
        module, _, name = self.entrypoint.partition(":")
        return getattr(importlib.import_module(module), name)


SHIPPED = (
    FlowEntry(
        name="cfs",
        module="flows.cfs",
        params="CFSFlowParams",
        help="Boxes -> GrabCut -> CFS -> refined masks -> DeepLab with self-attention -> scores.",
        labels=("boxes",),
        method="GrabCut, CFS proposals, GrabCut refinement; DeepLab with LGSA (Xie et al., BMVC 2020)",
        demo="demo",
        tiny="demo-tiny",
        figure=("params.proposals=cfs-refined", "params.attention=lgsa"),
        claims={"drawn": "benchmarks.claims_cfs", "photo": "benchmarks.claims_photo"},
        label_cost="Xie et al. 2020 state no time for boxes, in the text or in tables 1 to 5.",
    ),
    FlowEntry(
        name="rrm",
        module="flows.rrm",
        params="RRMFlowParams",
        help="Tags -> reliable regions -> a network of two branches -> masks -> DeepLab -> scores.",
        labels=("tags",),
        method="CAM, dense CRF, reliable regions, dense energy loss (Zhang et al., AAAI 2020)",
        demo="demo-rrm",
        tiny="demo-tiny-rrm",
        figure=("params.rrm.mining=online",),
        claims={"drawn": "benchmarks.claims_rrm", "photo": "benchmarks.claims_rrm_photo"},
        label_cost=(
            "Zhang et al. 2020 state no time for tags, in the text or in tables 1 to 5; only that, of weak labels, they"
            " are the simplest to collect (introduction)."
        ),
    ),
    FlowEntry(
        name="bpg",
        module="flows.bpg",
        params="BPGFlowParams",
        help="Scribbles and edges -> DeepLab with refined scores and boundaries -> masks -> DeepLab -> scores.",
        labels=("scribbles",),
        method="HED edges; DeepLab with PRN and BRN (Wang et al., IJCAI 2019)",
        demo="demo-bpg",
        tiny="demo-tiny-bpg",
        claims={"drawn": "benchmarks.claims_bpg", "photo": "benchmarks.claims_bpg_photo"},
        label_cost=(
            "Wang et al. 2019 state no time for scribbles, in the text or in tables 1 to 3; of boxes, that they can be"
            " 15 times less work than pixels (section 2.2, after Lin et al. 2014)."
        ),
    ),
    FlowEntry(
        name="lpg-learn",
        module="flows.lpg_learn",
        params="LPGLearnParams",
        help="Boxes and masks of any classes -> mask generators, a bundle for `maskmill lpg`.",
        labels=("boxes", "truth"),
        method="stage-wise EM of a segmenter and a class-agnostic mask generator (Xie et al., 2021)",
        tiny="demo-tiny-lpg-learn",
        ranks=1,
    ),
    FlowEntry(
        name="lpg",
        module="flows.lpg",
        params="LPGFlowParams",
        help="Boxes -> masks by learnt generators, round by round -> DeepLab -> scores.",
        labels=("boxes",),
        method="masks by generators learnt on other classes (Xie et al., 2021)",
        demo="demo-lpg",
        tiny="demo-tiny-lpg",
        claims={
            "drawn": "benchmarks.claims_lpg",
            "photo": "benchmarks.claims_lpg_photo",
            "photo-aux": "benchmarks.claims_lpg_photo_aux",
            "folds": "benchmarks.claims_lpg_folds",
        },
        shortcut=("--generator", "params.generator"),
        label_cost="Xie et al. 2021 state no time for boxes or auxiliary masks, in the text or in tables I to VIII.",
        ranks=1,
    ),
)
"""The flows that come with Maskmill."""


class Flows(Mapping[str, FlowEntry]):
    """Name -> entry: the shipped ones, then those of ``MASKMILL_FLOWS`` as it is now."""

    def __getitem__(self, name: str) -> FlowEntry:
        return self._entries()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def _entries(self) -> Mapping[str, FlowEntry]:
        return _entries(os.environ.get(PLUG_INS, ""))


FLOWS = Flows()


@functools.cache
def _entries(plug_ins: str) -> Mapping[str, FlowEntry]:
    """Raises :class:`DataError` for a plug-in that cannot be imported, and for a name that is taken."""
    found = {entry.name: entry for entry in SHIPPED}
    for place in filter(None, (part.strip() for part in plug_ins.split(","))):
        module, colon, name = place.partition(":")
        try:
            entry = getattr(importlib.import_module(module), name) if colon else None
        except (ImportError, AttributeError) as error:
            raise DataError(f"{PLUG_INS}={place}: {error}") from error
        if not isinstance(entry, FlowEntry):
            raise DataError(f"{PLUG_INS}={place}: expected MODULE:ENTRY that names a FlowEntry (flows/registry.py)")
        if entry.name in found:
            raise DataError(f"{PLUG_INS}={place}: there is a flow {entry.name!r} already")
        found[entry.name] = entry
    return found
