"""Does the notebook run as it stands, and do its objects show themselves?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
ROOT = Path(__file__).parents[1]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with a kernel of this very Python."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    book: Any = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert not [cell for cell in book.cells if cell.cell_type == "code" and cell.outputs], "kept without outputs"
    nbclient.NotebookClient(book, timeout=400, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {
        cell.source.splitlines()[-1]: {kind for output in cell.outputs for kind in output.get("data", {})}
        for cell in book.cells
        if cell.cell_type == "code"
    }
    assert "image/png" in shown["masks[0]"] and "image/png" in shown["predictor.predict([(10, 10, 60, 60)])"]
    tables = [line for line, kinds in shown.items() if "text/html" in kinds]
    assert [line.split("(")[0] for line in tables] == ["photos", "score_set", "run"]
    assert (tmp_path / "mask.png").exists() and (tmp_path / "results" / "index.html").exists()
