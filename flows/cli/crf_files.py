"""Which files ``maskmill crf`` reads and writes: pairs by name, impossible requests are refused before the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from artifacts.cache.atomic import check_file_writable
from artifacts.datasets.find import Names
from artifacts.records import Box, DataError
from flows.cli.picture_files import (
    PICTURE_SUFFIXES,
    Skipped,
    check_apart,
    check_folders,
    no_pictures,
    of_one_name,
    pictures_in,
)


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
) -> tuple[list[Job], Skipped]:
    """A job per picture, by file name without suffix; files without a partner are skips (path, reason)."""
    check_folders(out, overlay, marginals)
    check_apart([images, sources] if suffix == ".png" else [images], out, overlay)
    if suffix == ".npy":
        check_apart([sources], marginals)
    there = Names((path.name for path in sorted(sources.iterdir()) if path.suffix.lower() == suffix), str(sources))
    used: set[str] = set()
    jobs: list[Job] = []
    seen: set[str] = set()
    pictures, skips = pictures_in(images)
    for path in pictures:
        name = path.stem
        if name in seen:
            skips.append((path, of_one_name(path)))
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
        raise no_pictures(images)
    return jobs, skips


def check_targets(job: Job) -> None:
    """No input may be overwritten, and suffixes must fit the content. Raises ``DataError``."""
    if job.out.suffix.lower() != ".png":
        raise DataError(f"--out {job.out}: a mask is a .png file (--image names one picture)")
    if job.overlay is not None and job.overlay.suffix.lower() not in PICTURE_SUFFIXES:
        raise DataError(f"--overlay {job.overlay}: name a .png or .jpg file")
    if job.marginals is not None and job.marginals.suffix.lower() != ".npy":
        raise DataError(f"--marginals {job.marginals}: name an .npy file")
    check_apart([job.image, job.source], job.out, job.overlay, job.marginals)
    for name, path in (("out", job.out), ("overlay", job.overlay), ("marginals", job.marginals)):
        check_file_writable(name, path)
