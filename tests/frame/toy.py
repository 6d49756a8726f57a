"""The line that registers the toy: ``MASKMILL_FLOWS=toy:ENTRY``."""

from pathlib import Path

from flows.registry import FlowEntry

ENTRY = FlowEntry(
    name="toy",
    module="toy_flow",
    params="ToyFlowParams",
    help="Scribbles and auxiliary masks -> two rounds of learning -> masks -> scores.",
    labels=("scribbles",),
    method="a toy that the tests of the frame run",
    tiny=str(Path(__file__).with_name("toy-tiny.yaml")),
    ranks=1,
)
