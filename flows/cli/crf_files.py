"""Which files ``maskmill crf`` reads and writes: pairs by name, impossible requests are refused before the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.datasets.find import NO_ENDING, Names, may_be_picture
from artifacts.images import IMAGE_SUFFIXES
from artifacts.records import Box, DataError

PICTURE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})


@dataclass(frozen=True)
class Job:
    """One picture: what is read, what is written."""

    image: Path
    source: Path
    """Probabilities (.npy), labels (.png) or the boxes' table."""
    out: Path
    overlay: Path | None = None
    marginals: Path | None = None
    boxes: tuple[Box, ...] | None = None


def source_of(image: Path | None, probs: Path | None, labels: Path | None) -> Path:
    """What the pictures are paired with. Raises ``DataError`` unless picture and it are two files or two folders."""
    if (probs is None) == (labels is None):
        raise DataError("give --probs, --labels or --boxes, one of them")
    if image is None:
        raise DataError("give --image: a picture, or a folder of pictures")
    option, source = ("probs", probs) if probs is not None else ("labels", labels)
    assert source is not None
    for name, path in (("image", image), (option, source)):
        if not path.exists():
            raise DataError(f"--{name} {path}: no such file or folder")
    if image.is_dir() != source.is_dir():
        one, other = ("a folder", "none") if image.is_dir() else ("a file", "a folder")
        raise DataError(f"--image {image} is {one}, {source} is {other}: give both as folders, or both as files")
    return source


def pair_folders(
    images: Path, sources: Path, out: Path, overlay: Path | None, marginals: Path | None, suffix: str
) -> tuple[list[Job], list[tuple[Path, str]]]:
    """A job per picture, by file name without suffix; files without a partner are skips (path, reason)."""
    for folder in (out, overlay, marginals):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; with a folder of pictures name a folder")
    check_apart([images, sources] if suffix == ".png" else [images], out, overlay)
    if suffix == ".npy":
        check_apart([sources], marginals)
    there = Names((path.name for path in sorted(sources.iterdir()) if path.suffix.lower() == suffix), str(sources))
    used: set[str] = set()
    jobs: list[Job] = []
    skips: list[tuple[Path, str]] = []
    seen: set[str] = set()
    for path in sorted(images.iterdir()):
        name = path.stem
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            if left_out(path):
                skips.append((path, NO_ENDING))
            continue
        if name in seen:
            skips.append((path, f"another picture is called {name}, too: both would be {name}.png"))
        elif (partner := there.find(f"{name}{suffix}", whole=True)) is None:
            skips.append((path, f"no {name}{suffix} in {sources}"))
        else:
            extra = overlay / f"{name}.png" if overlay is not None else None
            numbers = marginals / f"{name}.npy" if marginals is not None else None
            used.add(partner)
            jobs.append(Job(path, sources / partner, out / f"{name}.png", extra, numbers))
        seen.add(name)
    skips += [(sources / one, f"no picture of this name in {images}") for one in there.files if one not in used]
    if not jobs and not skips:
        raise DataError(f"--image {images}: holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return jobs, skips


def left_out(path: Path) -> bool:
    """Whether ``path``, without a picture's ending, is to be named: it may be a picture."""
    return path.is_file() and not path.name.startswith(".") and may_be_picture(path.name)


def check_targets(job: Job) -> None:
    """No input may be overwritten, and suffixes must fit the content. Raises ``DataError``."""
    if job.out.suffix.lower() != ".png":
        raise DataError(f"--out {job.out}: a mask is a .png file (--image names one picture)")
    if job.overlay is not None and job.overlay.suffix.lower() not in PICTURE_SUFFIXES:
        raise DataError(f"--overlay {job.overlay}: name a .png or .jpg file")
    if job.marginals is not None and job.marginals.suffix.lower() != ".npy":
        raise DataError(f"--marginals {job.marginals}: name an .npy file")
    check_apart([job.image, job.source], job.out, job.overlay, job.marginals)
    folders: dict[str, Path | None] = {}
    for name, path in (("out", job.out), ("overlay", job.overlay), ("marginals", job.marginals)):
        if path is not None and path.is_dir():
            raise DataError(f"--{name} {path}: is a folder; name a file (--image names one picture)")
        folders[name] = path.parent if path is not None else None
    check_writable(**folders)


def check_writable(**folders: Path | None) -> None:
    """Raise ``DataError`` for a folder (by its option) in which no file can be made; it need not exist yet."""
    from artifacts.cache import atomic

    for option, folder in folders.items():
        if folder is not None:
            atomic.check_writable(option, folder)


def check_apart(read: Sequence[Path], *written: Path | None) -> None:
    """Raise ``DataError`` where a file or folder is written that is read too, or is written twice."""
    targets = [path for path in written if path is not None]
    for path in targets:
        for other in [*read, *(one for one in targets if one is not path)]:
            if path.resolve() == other.resolve():
                raise DataError(f"{path}: would be overwritten, but it is {'read' if other in read else 'another'}")
