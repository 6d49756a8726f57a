"""Does what the README shows run?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from flows.registry import SHIPPED

README = Path(__file__).parents[1] / "README.md"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_ten_lines_of_h5py_are_those_of_the_cache_page_which_are_run_there() -> None:
    (snippet,) = [block for block in python_blocks(README) if "h5py" in block]
    assert snippet in python_blocks(README.parent / "docs" / "cache.md")


def test_the_plain_script_runs_as_printed(tmp_path: Path) -> None:
    (snippet,) = [block for block in python_blocks(README) if "Runner" in block]
    script = tmp_path / "plain.py"
    script.write_text(snippet)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["demo-tiny/demo_train_00000", "(64,", "64)"]


def test_every_page_and_picture_that_it_points_to_is_there() -> None:
    text = README.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    assert targets
    assert [target for target in targets if not (README.parent / target).exists()] == []


def test_the_table_of_methods_is_the_registry() -> None:
    """Flow, weak labels and method of each row that works; the others are planned."""
    text = README.read_text(encoding="utf-8")
    (table,) = re.findall(r"## Methods\n\n((?:\|.*\n)+)", text)
    rows = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table.splitlines()[2:]]
    working = {name: (labels, method) for name, labels, method, state in rows if state != "not yet"}
    assert working == {f"`{entry.name}`": (", ".join(entry.labels), entry.method) for entry in SHIPPED}
