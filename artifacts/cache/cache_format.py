"""The format version of a whole cache, and what to do about an operating system's errors in it."""

from __future__ import annotations

import errno
from pathlib import Path

from artifacts.cache import sealed
from artifacts.cache.atomic import write_bytes_atomic
from artifacts.cache.segments import StoreError

CACHE_FORMAT = 1


def check_cache_format(root: Path) -> None:
    """Raise :class:`StoreError` if ``root`` was written by a newer version than this one can read.

    A damaged note is put aside and counts as absent: every segment and every publication states its own format, too.
    """
    path = root / "maskmill.json"
    try:
        version = int(sealed.unseal(path.read_bytes())["format"])
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise explained(error, path, "read") from error
    except (ValueError, KeyError, TypeError) as error:
        sealed.put_aside(path, error)
        return
    if version > CACHE_FORMAT:
        raise StoreError(
            f"{path} has cache format {version}, this Maskmill reads up to {CACHE_FORMAT}: update Maskmill, or name "
            "another folder with --set options.cache="
        )


def write_cache_format(root: Path) -> None:
    """Note the format in a new cache."""
    path = root / "maskmill.json"
    if not path.exists():
        write_bytes_atomic(path, sealed.seal({"format": CACHE_FORMAT, "program": "maskmill"}))


_ADVICE = {
    errno.ENOSPC: "the disk is full: free space, or `maskmill cache gc` and `maskmill cache compact`; then run again",
    errno.EDQUOT: "the quota is used up: free space, then run again",
    errno.EROFS: "the file system is read-only: name a writable cache folder",
    errno.EACCES: "no permission: name a cache folder of your own, or change its owner",
    errno.EPERM: "no permission: name a cache folder of your own, or change its owner",
    errno.EMFILE: "too many open files: raise `ulimit -n`",
    errno.EIO: "the disk failed: see the system log; what is stored is kept",
    errno.ENOLCK: "the file system has no locks: `maskmill doctor` says what to do",
    errno.ESTALE: "the network file system lost the file: run again",
}


def explained(error: OSError, path: Path, verb: str) -> StoreError:
    """An operating system's error with what to do about it."""
    return StoreError(f"{path} cannot be {verb}: {error.strerror or error}; {advice(error)}")


def advice(error: OSError) -> str:
    """What to do about an operating system's error."""
    return _ADVICE.get(error.errno or 0, "no half-written file is left; run again when this is repaired")
