"""Where data comes from: one parameter class, one front for all readers.

``DataParams.source`` names a format and a place (``voc:PATH``, ``coco:IMAGES,JSON``, ...); :func:`read_split` reads
one of its splits into a ``RecordSet``; :func:`remember_dataset` keeps data set names unique in a cache.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from artifacts import keys
from artifacts.cache import sealed
from artifacts.cache.atomic import write_bytes_atomic
from artifacts.cache.runs import last_classes
from artifacts.datasets.check import check_set
from artifacts.datasets.corrections import with_corrections
from artifacts.datasets.joined import joined
from artifacts.datasets.without import only_classes, share_of, without_classes
from artifacts.inputs import InputFault, confined
from artifacts.records import DataError, MaskRef, RecordSet, numbered

DEMO_PREFIX = "demo"
DEFAULT_CACHE = "maskmill-cache"
READERS: Mapping[str, str] = MappingProxyType(
    {
        "voc": "artifacts.datasets.voc:read",
        "coco": "artifacts.datasets.coco:read",
        "yolo": "artifacts.datasets.yolo:read",
        "folder": "artifacts.datasets.folder:read",
    }
)
"""format -> ``"module:function"`` of ``def read(place: str, split: str, data: DataParams) -> RecordSet``."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class DataParams:
    """Which data, which splits, and how its labels are to be read."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    source: str = _option(
        "demo",
        "voc:PATH | coco:IMAGES,JSON | folder:PATH | yolo:PATH | demo | demo-tiny | demo-claims: format and place",
    )
    more: tuple[str, ...] = _option(
        (), "further sources, read with the same options: their images are added, classes of one meaning are one"
    )
    name: str = _option("", "the data set's name in the cache; empty: the folder's name")
    train: str = _option("train", "training split")
    val: str = _option("val", "evaluation split")
    classes: tuple[str, ...] = _option(
        (), "class table, number 1 first; empty: the format's own list, else the names found, sorted"
    )
    without: tuple[str, ...] = _option(
        (), "classes to leave out, now background, by any of their names; voc: the 20 of PASCAL VOC"
    )
    only: tuple[str, ...] = _option((), "classes to keep, by any of their names; all others are background")
    share: float = _option(1.0, "share of the training images, chosen by a hash of share_seed and the image's id")
    share_seed: int = _option(0, "another seed chooses other images for share")
    share_rest: bool = _option(False, "the other training images instead: those that share leaves out")
    difficult: bool = _option(True, "keep the boxes of objects marked difficult (tags always hold them)")
    include_crowd: bool = _option(False, "coco, folder: boxes of crowd regions too (their truth stays undecided)")
    val_share: float = _option(0.2, "share of images for val where the data has no lists (a hash of the name decides)")
    sbd: str = _option("", "voc: SBD folder (with cls/ and inst/); empty: SBD/ in or beside the tree, if there is one")
    tag_separator: str = _option(
        "", "what separates tags in a cell of tags.csv; empty: ';', else what is found (and said)"
    )
    min_labelled: float = _option(
        0.5, "least share of the images, and of the labels, that must be readable: with fewer, nothing is done"
    )
    train_on_val: bool = _option(False, "allow images that are in train and in val")
    only_undecided: bool = _option(False, "masks that hold only 0 and 255 are meant: 255 is undecided, not the object")
    follow_links: bool = _option(False, "follow links that lead out of the data set's folder")
    scribbles: bool = _option(True, "voc: read ScribbleSup/ if the tree has it")
    scribble_files: str = _option(
        "",
        "scribbles for data of any format: a folder of ScribbleSup files (.xml) or index masks (.png, 255: nothing"
        " drawn), named as the images; or a JSON of COCO-style polylines; empty: the tree's own",
    )
    scribble_origin: int = _option(0, "number of the first pixel in ScribbleSup files, 0 or 1")
    corrections: str = _option("", "folder of masks that people corrected, as `maskmill import` writes it; empty: none")
    aux: DataParams | None = field(
        default=None,
        metadata={"help": "auxiliary data: a data set with classes of its own, of which train is used; null: none"},
    )

    def __post_init__(self) -> None:
        _check_source("source", self.source)
        for source in self.more:
            _check_source("more", source)
        if self.more and (self.corrections or self.scribble_files):
            raise ValueError("more joins sets with labels of their own: leave out corrections and scribble_files")
        if any(c in self.name for c in "/\\\0"):
            raise ValueError(f"name {self.name!r} must not hold slashes")
        for split in ("train", "val"):
            if not getattr(self, split):
                raise ValueError(f"{split} must name a split, not {getattr(self, split)!r}")
        if len(set(self.classes)) != len(self.classes) or not all(self.classes):
            raise ValueError(f"classes must be different, non-empty names, not {self.classes}")
        if self.only and self.without:
            raise ValueError("only and without must not both be given: only names the classes that are left")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], not {self.share}")
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share must be in [0, 1), not {self.val_share}")
        if not 0 <= self.min_labelled <= 1:
            raise ValueError(f"min_labelled must be in [0, 1], not {self.min_labelled}")
        if self.scribble_origin not in (0, 1):
            raise ValueError(f"scribble_origin must be 0 or 1, not {self.scribble_origin}")
        if self.aux is not None and self.aux.aux is not None:
            raise ValueError("aux must have no auxiliary data of its own; leave out aux.aux")


def _check_source(option: str, source: str) -> None:
    known = (*READERS, DEMO_PREFIX)
    form, _, place = source.partition(":")
    if form not in READERS and form.partition("-")[0] != DEMO_PREFIX:
        hint = f"; did you mean {guess_format(source)}:{source}?" if os.path.exists(source) else ""
        raise ValueError(f"{option} must start with one of {', '.join(known)}, not {source!r}{hint}")
    if form in READERS and not place:
        raise ValueError(f"{option} {source!r} names no place; write {form}:PATH")


def placed(data: DataParams, folder: str) -> DataParams:
    """``data`` with its paths made absolute: what is relative lies below ``folder``."""

    def whole(path: str) -> str:
        return os.path.normpath(os.path.join(folder, os.path.expanduser(path)))

    def there(source: str) -> str:
        form, _, place = source.partition(":")
        if form not in READERS:
            return source
        several = form == "coco" or (form == "yolo" and not os.path.isdir(whole(place)))  # yolo:PATH,IMAGES
        return f"{form}:{','.join(map(whole, place.split(',') if several else [place]))}"

    source, more = there(data.source), tuple(map(there, data.more))
    aux = None if data.aux is None else placed(data.aux, folder)
    named = {name: getattr(data, name) for name in ("sbd", "scribble_files", "corrections")}
    paths: dict[str, Any] = {name: whole(path) if path else "" for name, path in named.items()}
    return replace(data, source=source, more=more, aux=aux, **paths)


def guess_format(path: str) -> str:
    """The format that the data at ``path`` most likely has, for error messages."""
    has = {name for name in ("JPEGImages", "labels", "data.yaml") if os.path.exists(os.path.join(path, name))}
    if "JPEGImages" in has or os.path.isdir(os.path.join(path, "VOC2012")):
        return "voc"
    if path.endswith(".json"):
        return "coco"
    return "yolo" if has else "folder"


# --- reading


def read_split(data: DataParams, split: str, *, cache: Path | None = None) -> RecordSet:
    """Read one split of ``data``.

    Args:
        data: what to read.
        split: the split's name in the data (``data.train``, ``data.val``, or any other that it has).
        cache: the cache folder: demo data is made there once, and class numbers follow its stored table. Default:
            ``maskmill-cache`` for demo data, else none.

    Raises:
        DataError: the place is not what the format expects, the split does not exist, nothing in it can be used; or
            ``data.corrections`` is no folder of corrections. What is wrong with single images is in ``skips`` and
            ``warnings`` of the result.
        OSError: the place cannot be read.
    """
    found = _read_labelled(data, split, cache)
    if data.corrections:
        other = partial(_ids, data, data.val if split == data.train else data.train, cache)
        found = with_corrections(found, Path(data.corrections).expanduser(), other, say_unused=split == data.train)
    if data.without:
        found = without_classes(found, data.without)
    if data.only:
        found = only_classes(found, data.only)
    if split == data.train and (data.share < 1 or data.share_rest):
        found = share_of(found, data.share, data.share_seed, rest=data.share_rest)
    return found


def _read_labelled(data: DataParams, split: str, cache: Path | None) -> RecordSet:
    """The split with all its labels, those that lie elsewhere among them; of several sources, joined."""
    if data.more:
        alone = [replace(data, source=source, more=(), name="") for source in (data.source, *data.more)]
        parts = [_read_labelled(one, split, cache) for one in alone]
        return joined(parts, data.name or "+".join(part.dataset for part in parts))
    if not data.scribble_files:
        return _read_source(data, split, cache)
    from artifacts.datasets.scribbles import with_scribbles

    own = _read_source(replace(data, scribbles=False), split, cache)
    form, _, place = data.source.partition(":")
    named = () if data.follow_links else (*_places(place, split, data), own.root, data.scribble_files)
    try:
        with confined(os.path.expanduser(name) for name in named):
            found = with_scribbles(own, data.scribble_files, origin=data.scribble_origin)
    except InputFault as error:
        raise DataError(str(error)) from error
    listed = data.classes or form != "folder" or (Path(place).expanduser() / "classes.txt").is_file()
    if listed or not any(isinstance(record.scribbles, MaskRef) for record in found):
        return found
    # Names that come from boxes or tags are sorted: the masks' author may have numbered them otherwise.
    meant = numbered(found.classes)
    said = f"{data.scribble_files}: no classes.txt in {place}, so the index masks' numbers are read as {meant}"
    return replace(found, warnings=(*found.warnings, said))


def _ids(data: DataParams, split: str, cache: Path | None) -> list[str]:
    """Image ids of a split; none where it cannot be read, which its own reader says."""
    try:
        return [record.image_id for record in _read_source(replace(data, scribbles=False), split, cache)]
    except (DataError, OSError):
        return []


def _read_source(data: DataParams, split: str, cache: Path | None) -> RecordSet:
    form, _, place = data.source.partition(":")
    if form in READERS:
        try:
            with confined(() if data.follow_links else _places(place, split, data)):
                found = _read(form, place, split, data, cache)
        except InputFault as error:
            raise DataError(str(error)) from error
        said = (*found.warnings, *check_set(found, only_undecided=data.only_undecided))
        return replace(found, warnings=said, counts=replace(found.counts, least=data.min_labelled))
    from artifacts.demo.data import prepare_demo

    cache = Path(os.path.abspath(cache or DEFAULT_CACHE))
    root = prepare_demo(form, cache / "demo-data")
    found = _read("voc", str(root), split, replace(data, name=data.name or form), cache)
    return replace(found, format=DEMO_PREFIX)


def _places(place: str, split: str, data: DataParams) -> list[str]:
    """The folders and files that the user has named: links may lead from one to the other, and nowhere else."""
    beside = [os.path.join(place, *up, "SBD") for up in ((), ("..",), ("..", ".."))]  # where VOC's SBD may lie
    named = [place, *place.split(","), data.sbd, *beside]
    paths = [os.path.expanduser(name.replace("{split}", split)) for name in named if name]
    paths = [path for path in paths if os.path.exists(path)]
    return [*paths, *(os.path.dirname(os.path.abspath(path)) for path in paths if os.path.isfile(path))]


def _read(form: str, place: str, split: str, data: DataParams, cache: Path | None) -> RecordSet:
    read = _reader(form)
    if cache is None or "known" not in inspect.signature(read).parameters:
        return read(place, split, data)
    # The reader decides the name (e.g. the folder's): it runs again only if the cache holds another class table.
    found = read(place, split, data)
    entry = _remembered(cache, found.dataset)
    known = tuple(entry["classes"]) if entry else ()
    if not known or found.classes[: len(known)] == known:
        return found
    return read(place, split, data, known=known)


@functools.cache
def _reader(form: str) -> Callable[..., RecordSet]:
    module, _, function = READERS[form].partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


# --- what a cache stores of a data set

KNOWN_IMAGES = 8
"""Images compared, and stored for each split, at most."""
MOST_IMAGES = 64


def remember_dataset(cache: Path, records: RecordSet) -> None:
    """Keep format, root, class table and a few image digests of ``records`` in ``<cache>/datasets/<name>.json``.

    Image keys begin with the data set's name, so a name belongs to one data set. Under another root, up to 8 images
    that the cache knows are compared by content: the same means that the data was moved (or copied), which is fine.

    Raises:
        DataError: another data set has this name in this cache; the message says how to name this one.
        OSError: the cache cannot be written, or an image of the sample not be read.
    """
    entry = _remembered(cache, records.dataset)
    images: dict[str, str] = dict(entry["images"]) if entry else {}
    paths = {record.image_id: record.image for record in records}
    sample = sorted(images.keys() & paths.keys())[:KNOWN_IMAGES]
    if entry and entry["format"] and (entry["format"], entry["root"]) != (records.format, records.root):
        if records.format == entry["format"] == DEMO_PREFIX:
            images, sample = {}, []  # another generator's tree: the cache's own, so the name is free
        else:
            _check_moved(cache, records, entry, {i: paths[i] for i in sample})
    if len(sample) < min(KNOWN_IMAGES, len(paths)):
        sample = list(paths)[:: -(-len(paths) // KNOWN_IMAGES)]
    if len(images) > MOST_IMAGES:
        images = {}
    images |= {i: digest for i in sample if (digest := _digest(paths[i])) is not None}
    fresh = {
        "name": records.dataset,
        "format": records.format,
        "root": records.root,
        "classes": list(records.own_classes or records.classes),
        "images": dict(sorted(images.items())),
    }
    if fresh != entry:
        write_bytes_atomic(_entry_path(cache, records.dataset), sealed.seal(fresh, indent=1))


def _check_moved(cache: Path, records: RecordSet, entry: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """Raise unless ``here`` (image id -> path) holds images that the cache knows, all with the content it knows."""
    differing = [image_id for image_id, path in here.items() if _digest(path) != entry["images"][image_id]]
    if here and not differing:
        return
    name = records.dataset
    why = f"image {differing[0]!r} differs there" if differing else "the cache knows none of these images"
    raise DataError(
        f"the data set name {name!r} stands for {entry['format']}:{entry['root']} in the cache {cache}, and"
        f" {records.format}:{records.root} is not the same ({why}). Give this one a name of its own:"
        f" --set data.name={name}-2 (or use another --cache)"
    )


def _digest(path: str) -> str | None:
    try:
        return keys.digest_file(Path(path))
    except OSError:
        return None


def _entry_path(cache: Path, dataset: str) -> Path:
    return Path(cache) / "datasets" / f"{dataset}.json"


def _remembered(cache: Path, dataset: str) -> dict[str, Any] | None:
    """The entry of ``dataset``; ``None`` if there is none. A damaged one is put aside and made again."""
    path = _entry_path(cache, dataset)
    try:
        entry = sealed.unseal(path.read_bytes())
        if entry.get("name") != dataset or not {"format", "root", "classes", "images"} <= entry.keys():
            raise ValueError("it is of another data set, or not whole")
        return entry
    except FileNotFoundError:
        return None
    except ValueError as error:
        aside = sealed.put_aside(path, error)
    # Class numbers stay as they were: the runs know the table. Where the data lie, the next run notes.
    entry = {"name": dataset, "format": "", "root": "", "classes": last_classes(cache, dataset), "images": {}}
    if aside is not None:
        write_bytes_atomic(path, sealed.seal(entry, indent=1))
    return entry
