"""Is a file there whole or not at all, whatever happens while it is written?"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.cache import atomic


def leftovers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(atomic.TEMPORARY_PREFIX)]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic.write_bytes_atomic(path, b"old")

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic.write_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_killed_writer_leaves_the_old_file_and_a_temporary_that_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    code = (
        "import os, signal, sys; from pathlib import Path; from artifacts.cache.atomic import write_atomic\n"
        "def write(f): f.write(b'half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomic(Path(sys.argv[1]), write)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(leftovers(tmp_path)) == 1
    assert atomic.sweep_temporaries(tmp_path) == 0, "a young one may belong to a writer on another machine"
    assert atomic.sweep_temporaries(tmp_path, older_than_s=0) == 1
    assert leftovers(tmp_path) == []


def test_a_living_writers_temporary_is_never_swept(tmp_path: Path) -> None:
    (tmp_path / f"{atomic.TEMPORARY_PREFIX}{os.getpid()}-0123456789ab").touch()
    assert atomic.sweep_temporaries(tmp_path, older_than_s=0) == 0


@pytest.mark.parametrize(
    "name", [".tmp-backup", ".maskmill-tmp-notes", ".maskmill-tmp-12-mine", ".maskmill-tmp-1-0123456789abc"]
)
def test_what_only_looks_like_a_temporary_is_never_swept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert atomic.sweep_temporaries(tmp_path, older_than_s=0) == 0
    assert (tmp_path / name).is_dir()


def test_a_published_folder_is_never_overwritten(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    atomic.publish_folder(tmp_path / "one", tmp_path / "final")
    with pytest.raises(FileExistsError, match="final"):
        atomic.publish_folder(tmp_path / "two", tmp_path / "final")
    assert (tmp_path / "final" / "f").read_text() == "one"


@pytest.mark.parametrize(
    ("wanted", "calls", "dies"),
    [
        ("fit.mid_publish", 1, True),
        ("fit.mid_publish:2", 1, False),
        ("fit.mid_publish:2", 2, True),
        ("export.mid_export", 3, False),
    ],
)
def test_a_kill_point_kills_at_the_named_arrival_only(wanted: str, calls: int, dies: bool) -> None:
    code = f"from artifacts.cache.atomic import kill_point\nfor _ in range({calls}): kill_point('fit.mid_publish')"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "MASKMILL_KILL_AT": wanted}, check=False)
    assert done.returncode == (-signal.SIGKILL if dies else 0)


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_names_the_file_that_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "stamps" / "a.json"

    def full(*given: object) -> None:
        names = given[:1] if where == "replace" else ()  # the kernel's error for a write names no file
        raise OSError(errno.ENOSPC, "No space left on device", *map(str, names))

    if where != "write":
        monkeypatch.setattr(atomic.os, where, full)
    with pytest.raises(OSError, match="No space left") as caught:
        atomic.write_atomic(path, full if where == "write" else lambda file: file.write(b"x"))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert not list(path.parent.iterdir())


def test_a_picture_that_is_copied_onto_a_full_disk_is_not_what_is_named(tmp_path: Path) -> None:
    copy, source = str(tmp_path / f"{atomic.TEMPORARY_PREFIX}1/a.jpg"), "/photos/a.jpg"
    with pytest.raises(OSError, match="No space left") as full, atomic.naming(tmp_path / "out"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source, None, copy)  # as shutil.copyfile says it
    assert (full.value.filename, full.value.filename2) == (str(tmp_path / "out"), None)
    with pytest.raises(FileNotFoundError) as gone, atomic.naming(tmp_path / "out"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
    assert gone.value.filename == source
