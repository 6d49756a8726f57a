"""`maskmill cache` with fits in the cache: listed, checked, removed by the name that the list shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from artifacts.cache.fit_store import FitStore
from flows.cli.main import main


def cache(root: Path, *arguments: str) -> int:
    return main(["cache", *arguments, "--cache", str(root)])


def test_a_fit_is_listed_verified_compacted_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FitStore(tmp_path)
    made = [store.publish("net-01", "ab", save({"w": np.ones(9)}), members=[], info={"label": "net"}) for _ in "12"]
    assert cache(tmp_path, "ls") == 0
    assert "net-01/ab" in capsys.readouterr().out
    assert cache(tmp_path, "verify") == 0
    assert "2 fits as published, 0 problems" in capsys.readouterr().out
    data = made[0].weights.read_bytes()
    made[0].weights.write_bytes(data[:-1] + b"x")
    assert cache(tmp_path, "verify", "net") == 1
    output = capsys.readouterr().out
    assert "pub-0001/weights.safetensors : the tensors are not those that were published" in output
    assert cache(tmp_path, "compact") == 0
    assert "1 superseded publications and 0 abandoned checkpoints removed" in capsys.readouterr().out
    assert store.published("net-01", "ab") == made[1]
    assert cache(tmp_path, "rm", "net-01/ab", "--dry-run") == 0
    assert "would remove net-01/ab: 1 publications" in capsys.readouterr().out
    with store.lock("net-01", "ab"):
        assert cache(tmp_path, "rm", "net") == 1
    assert "net-01/ab is kept: a run is using it" in capsys.readouterr().out
    assert cache(tmp_path, "rm", "net") == 0
    assert store.published("net-01", "ab") is None
