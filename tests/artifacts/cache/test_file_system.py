"""What is tried on a file system: does each trial find the fault that it is for, and is nothing left?"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from artifacts.cache import atomic, file_system
from artifacts.cache.file_system import check_folder


def problems(folder: Path) -> dict[str, str]:
    found = {check.name: check.found for check in check_folder(folder) if not check.ok}
    assert all(check.fix for check in check_folder(folder) if not check.ok)
    assert not list(folder.rglob(".maskmill-tmp-*"))
    return found


def test_a_sound_folder_has_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path) == {}
    assert problems(tmp_path / "to" / "be") == {}
    assert not (tmp_path / "to").exists()


def raising(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_each_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", raising(errno.ENOLCK))
        assert list(problems(tmp_path)) == ["locks (flock)"]
    with monkeypatch.context() as patch:
        patch.setattr(file_system, "_OTHER", "pass")  # the other process gets it, too
        assert problems(tmp_path) == {"locks (flock)": "two processes get the same lock"}
    with monkeypatch.context() as patch:
        patch.setattr(file_system, "fsync_folder", raising(errno.EINVAL))
        assert list(problems(tmp_path)) == ["fsync"]
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", raising(errno.EEXIST))
        assert list(problems(tmp_path)) == ["rename over a file"]
    with monkeypatch.context() as patch:
        patch.setattr(file_system, "LONG_NAME", 400)
        assert list(problems(tmp_path)) == ["long names"]
    with monkeypatch.context() as patch:
        now = time.time
        patch.setattr(file_system.time, "time", lambda: now() - 30)
        assert list(problems(tmp_path)) == ["clock"]
    with monkeypatch.context() as patch:
        patch.setattr(file_system, "LEAST_BYTES", 1 << 62)
        assert list(problems(tmp_path)) == ["free space"]


def test_a_folder_that_cannot_be_written_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", raising(errno.EROFS))
    (check,) = check_folder(tmp_path)
    assert not check.ok and "Read-only" in check.found
