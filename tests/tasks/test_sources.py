"""Does an edited stage of one's own get another address, and a stage of Maskmill its version's?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tasks.stage as stage_module
from tasks import grabcut
from tasks.stage import FitStage, MapStage, stage_address


def address(stage: MapStage | FitStage) -> str:
    stage_module._module_digest.cache_clear()  # as in the next process
    return stage_address(stage, ("cat",), {})


@pytest.mark.parametrize("kind", ["map", "fit"])
def test_an_edited_function_is_another_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "own_stage_of_a_user.py"
    path.write_text("def work(item, params): return 1\n")
    own = MapStage("own", 1, None, ("image",), ("mask_hw",), "own_stage_of_a_user:work")
    stage = own if kind == "map" else FitStage("own", 1, None, reads=("image",), function="own_stage_of_a_user:work")
    before = address(stage)
    assert address(stage) == before and "own_stage_of_a_user" not in sys.modules, "nothing is imported for it"
    path.write_text("def work(item, params): return 2\n")
    assert address(stage) != before
    path.write_text("def work(item, params): return 1\n")
    assert address(stage) == before


def test_the_packages_own_stages_go_by_version_unless_one_is_being_written(monkeypatch: pytest.MonkeyPatch) -> None:
    released = address(grabcut.propose())
    monkeypatch.setenv("MASKMILL_SOURCES", "1")
    assert address(grabcut.propose()) != released
