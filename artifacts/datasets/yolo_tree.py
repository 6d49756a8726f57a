"""The parts of a YOLO tree: class names, what ``data.yaml`` declares, the pictures of a split and their label files."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.datasets.find import Folder, Names, child
from artifacts.datasets.paths import Notes, image_ids
from artifacts.datasets.splits import (
    EVERYTHING,
    NO_LISTS,
    SplitRule,
    list_file,
    read_lines,
    read_names,
    read_text,
    select,
)
from artifacts.datasets.yolo_lines import TASKS, LineKind
from artifacts.plain_yaml import YamlFault, read_yaml
from artifacts.records import DataError

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Split -> its keys in ``data.yaml`` and ``obj.data``."""
LABELS = (".txt",)
MOST_LOOKED = 3
"""Folders of labels below the pictures' that a message names, at most."""


@dataclass(frozen=True)
class Declared:
    """What ``data.yaml`` (or darknet's ``obj.data``) says of the tree."""

    file: Path | None = None
    names: tuple[str, ...] = ()
    places: dict[str, list[str]] = field(default_factory=dict)
    """Split -> its folders and list files, as written."""
    base: str = ""
    """``path``: what they are relative to."""
    kind: LineKind = field(default_factory=LineKind)

    def of(self, split: str) -> list[str]:
        """Folders and list files of ``split``; of ``all``, every split's."""
        if split in EVERYTHING and self.places:
            wanted = [name for name in self.places if name != "test" or split == "all"]
            return list(dict.fromkeys(place for name in wanted for place in self.places[name]))
        return self.places.get(next((name for name, keys in SPLIT_KEYS.items() if split in keys), split), [])


def declared(root: Path) -> Declared:
    """What the tree's ``data.yaml`` declares. Raises :class:`DataError` for one that cannot be read."""
    path = next((root / name for name in YAML_FILES if (root / name).is_file()), None)
    if path is None:
        others = [p for p in sorted(root.glob("*.y*ml")) if p.is_file() and "names" in read_text(p)]
        path = others[0] if len(others) == 1 else None
    if path is None:
        return _darknet(root)
    try:
        content, _ = read_yaml(read_text(path), words=True)
    except YamlFault as error:
        raise DataError(f"{path}{f':{error.line}' if error.line else ''}: not YAML: {error.problem}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: names must be a list, or a mapping from 0, 1, 2, ... to names; found no mapping")
    places = {}
    for split, keys in SPLIT_KEYS.items():
        given: Any = next((content[key] for key in keys if content.get(key)), [])
        found = [given] if isinstance(given, str) else given
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise DataError(f"{path}: {split} must be a folder, a list file or a list of them, not {given!r}")
        if found := [one for one in found if one not in ("", "~", "null", "None")]:
            places[split] = found
    base = content.get("path") or ""
    return Declared(
        path, _yaml_names(path, content), places, base if isinstance(base, str) else "", _kind(path, content)
    )


def _kind(path: Path, content: dict[Any, Any]) -> LineKind:
    task = content.get("task") or ""
    if task not in ("", *TASKS):
        raise DataError(f"{path}: task is {task!r}; expected one of {', '.join(TASKS)}")
    if not (shape := content.get("kpt_shape")):
        if task == "pose":
            raise DataError(f"{path}: task: pose needs kpt_shape: [number of keypoints, 2 or 3]")
        return LineKind(None, task)
    good = isinstance(shape, list) and len(shape) == 2 and all(str(n).isdecimal() and len(n) < 6 for n in shape)
    if not good or int(shape[0]) < 1 or int(shape[1]) not in (2, 3):
        raise DataError(f"{path}: kpt_shape is {shape!r}; expected [number of keypoints, 2 or 3]")
    return LineKind((int(shape[0]), int(shape[1])), "pose")


def _yaml_names(path: Path, content: dict[Any, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if names is None:
        return ()
    if isinstance(names, dict) and set(names) == {str(i) for i in range(len(names))}:
        names = [names[str(i)] for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: names must be a list, or a mapping from 0, 1, 2, ... to names, not {names!r}")
    if (count := content.get("nc")) not in (None, "", str(len(names))):
        raise DataError(f"{path}: nc is {str(count)[:20]}, and there are {len(names)} names; correct one of them")
    return checked_names(names, path)


def _darknet(root: Path) -> Declared:
    """``obj.data``: lines ``train = data/train.txt``; ``Declared()`` without it."""
    path = root / "obj.data"
    if not path.is_file():
        return Declared()
    pairs = dict(re.split(r"\s*=\s*", line.strip(), maxsplit=1) for line in read_lines(path) if "=" in line)
    places = {split: [pairs[key]] for split, keys in SPLIT_KEYS.items() for key in keys if pairs.get(key)}
    return Declared(path, (), places)


def class_names(root: Path, said: Declared | None = None) -> tuple[str, ...]:
    """The class table of a YOLO tree, in the order of the numbers 0, 1, ... of its label files.

    Raises :class:`DataError` where there is none, and where two files disagree.
    """
    said = declared(root) if said is None else said
    found: dict[Path, tuple[str, ...]] = {}
    files = [child(root, "classes.txt"), root / "obj.names", root / "obj_train_data" / "classes.txt"]
    labels = child(root, "labels")
    files += sorted(labels.rglob("classes.txt")) if labels.is_dir() else []
    for path in files:
        if path.is_file():
            found[path] = checked_names(read_names(path), path)
    if said.file is not None and said.names:
        found[said.file] = said.names
    if not found:
        raise DataError(
            f"{root}: no class names; write {root / 'classes.txt'}, one name a line in the order 0, 1, 2, ..."
        )
    first, names = next(iter(found.items()))
    for path, other in found.items():
        if other != names:
            raise DataError(
                f"two class tables that disagree: {first} says {_short(names)}, {path} says {_short(other)}; correct or"
                " remove one of them, or give data.classes"
            )
    return names


def _short(names: Sequence[str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(names[:6])) + (", ..." if len(names) > 6 else "")


def checked_names(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """``names``, if there are any and all differ."""
    if not names or len(set(names)) != len(names):
        seen: set[str] = set()
        twice = sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
        raise DataError(f"{path}: {'these names stand there twice: ' + ', '.join(twice) if twice else 'no names'}")
    return tuple(names)


# --- pictures and label files


@dataclass
class Layout:
    """The pictures of one split."""

    chosen: list[tuple[Path, str, Path | None]] = field(default_factory=list)
    """(picture, image id, label file or ``None``)."""
    unusable: list[tuple[Path, str]] = field(default_factory=list)
    """(path, reason) of files whose name cannot be used."""
    missing: int = 0
    """Listed images that are not there."""
    looked: list[str] = field(default_factory=list)
    """Where label files were looked for."""
    real: set[str] = field(default_factory=set)
    """Pictures so far, links to their folders resolved: two places of ``data.yaml`` may name the same one."""


def find_layout(root: Path, images: Path | None, split: str, rule: SplitRule, said: Declared, notes: Notes) -> Layout:
    """The pictures of ``split``: as ``data.yaml`` declares it, else as folders and lists say."""
    layout = Layout()
    own = said.of(split) if images is None else []
    other = said.of(rule.val if split == rule.train else rule.train)
    if own and own == other and split not in EVERYTHING and list_file(root, split, rule):
        own = []  # one folder for both is no split, and the tree has lists
    if own:
        for text in own:
            _add_declared(layout, root, said, split, text, notes)
        return layout
    if images is None and other and not list_file(root, split, rule) and split in (rule.train, rule.val):
        raise DataError(
            f"{said.file} declares {', '.join(said.places)} and no {split}; add it there, write"
            f" {root / f'{split}.txt'}, or name a split that it has (data.train, data.val)"
        )
    top = images or _picture_folder(root, notes)
    _check_split_folders(root, top, split, rule)
    if images is None and child(root / split, "images").is_dir():
        folder = Folder(child(root / split, "images", notes))
        _add(layout, root, folder, range(len(folder.files)), f"{split}/", notes)
    elif images is None and (top / split).is_dir() and not list_file(root, split, rule):
        folder = Folder(top / split)
        _add(layout, root, folder, range(len(folder.files)), f"{split}/", notes)
    else:
        if not top.is_dir():
            raise DataError(f"no images in {top}; expected {root}/images, or yolo:PATH,IMAGES to name another folder")
        folder = Folder(top, leave_out=(child(root, "labels").name,) if top == root else ())
        if not folder.files:
            folder.say_left_out(notes)
            said_out = "".join(f"; {line}" for line in notes.lines())
            raise DataError(
                f"no images in {top}; expected {root}/images, or yolo:PATH,IMAGES to name another folder{said_out}"
            )
        selection = select(folder, split, rule, root)
        layout.missing = len(selection.unmatched)
        notes.add_all(f"image in {split}.txt that {top} does not hold", selection.unmatched)
        notes.add_all(NO_LISTS, selection.hashed)
        folder.say_respelled(notes)
        _add(layout, root, folder, selection.rows, "", notes)
    return layout


def _picture_folder(root: Path, notes: Notes) -> Path:
    """``images``, darknet's ``obj_train_data``, else the tree itself: labels may lie beside the pictures."""
    if (images := child(root, "images", notes)).is_dir():
        return images
    darknet = sorted(root.glob("obj_*_data"))
    return darknet[0] if len(darknet) == 1 else root


def _check_split_folders(root: Path, top: Path, split: str, rule: SplitRule) -> None:
    """With a folder for one split only, the other would be drawn from the first one's images: an error instead."""
    if split not in (rule.train, rule.val) or list_file(root, split, rule):
        return
    other = rule.train if split == rule.val else rule.val
    for wanted, theirs in ((top / split, top / other), (root / split / "images", root / other / "images")):
        if theirs.is_dir() and not wanted.is_dir():
            raise DataError(f"{theirs} exists but {wanted} does not; make it, or name the split that you have")


def _add_declared(layout: Layout, root: Path, said: Declared, split: str, text: str, notes: Notes) -> None:
    """The pictures of one folder or list file that ``data.yaml`` names."""
    place = _place(root, said, text)
    if place is None:
        raise DataError(
            f"{said.file}: {split}: {text!r} is not there: neither as written nor below {root}; correct it, or"
            " remove the line and write lists (train.txt, val.txt)"
        )
    if place.is_dir():
        folder = Folder(place)
        prefix = "/".join(part for part in place.relative_to(root).parts if part.lower() != "images")
        _add(layout, root, folder, range(len(folder.files)), f"{prefix}/" if prefix else "", notes)
        return
    top = _picture_folder(root, notes)
    folder = Folder(top, leave_out=(child(root, "labels").name,) if top == root else ())
    rows: list[int] = []
    places = {relative: row for row, relative in enumerate(folder.files)}
    for line in read_lines(place):
        found = folder.find(line, any_ending=True)
        if found is None:
            layout.missing += 1
            notes.add(f"image in {place.name} that {top} does not hold", folder.tried(line))
        else:
            rows.append(places[found])
    _add(layout, root, folder, sorted(set(rows)), "", notes)


def _place(root: Path, said: Declared, text: str) -> Path | None:
    """A folder or list file as written, else below the tree by the end of its path; never outside of the tree."""
    plain = [part.replace("\\", "/") for part in (said.base, text)]
    real = os.path.realpath(root)
    for full in (os.path.join(root, *plain), os.path.join(root, plain[1])):
        found = os.path.realpath(full)
        if os.path.exists(found) and (found == real or found.startswith(real + os.sep)):
            return root / os.path.relpath(found, real)
    parts = [part for part in PurePosixPath(plain[1]).parts if part not in ("..", ".", "/")]
    tails = (root.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((tail for tail in tails if tail.exists()), None)


def _add(layout: Layout, root: Path, folder: Folder, rows: Sequence[int], prefix: str, notes: Notes) -> None:
    """Pictures of a folder with their ids and label files."""
    top = Path(folder.where)
    folder.say_left_out(notes)
    layout.unusable += [(top / name, reason) for name, reason in folder.unusable]
    places = _label_folders(root, top, prefix, notes)
    layout.looked += [str(place) for place in places]
    labels = [(place, Folder(place, LABELS)) for place in places]
    plain = {name for file in folder.files for name in _label_names(folder, file)}
    every = Names({*plain, *(swapped for name in plain for swapped in _swapped(name))}, folder.where, LABELS)
    used: set[tuple[int, str]] = set()
    ids = image_ids(folder.files)
    chosen = set(rows)
    earlier = frozenset(layout.real)
    folders: dict[str, str] = {}
    inner: dict[str, None] = {}
    for row, relative in enumerate(folder.files):
        own = _label_names(folder, relative)
        found = _swapped_file(own, labels, every, top) or _label_file(own, labels, every)
        if found is not None:
            used.add(found)
        if row not in chosen:
            continue
        inside, _, name = relative.rpartition("/")
        if inside not in folders:  # one for each folder: a look at every part of every path takes seconds
            folders[inside] = os.path.realpath(top / inside)
        real = f"{folders[inside]}/{name}"
        if real in earlier:
            notes.add("picture that data.yaml names twice, taken once", str(top / relative))
            continue
        layout.real.add(real)
        label = None
        if found is not None:
            label = labels[found[0]][0] / found[1]
        else:
            inner |= {str(top / name.rpartition("/")[0]): None for name in _swapped(own[0])}
        layout.chosen.append((top / relative, prefix + ids[row], label))
    layout.looked += list(inner)[:MOST_LOOKED]
    for _, names in labels:
        names.say_respelled(notes)
    # In the tree itself and beside pictures lie other texts, in labels/ those of other folders.
    if labels and labels[0][0] not in (top, root, *([child(root, "labels")] if prefix else [])):
        strays = [name for name in labels[0][1].files if (0, name) not in used]
        said = (labels[0][0] / name for name in strays if name.rpartition("/")[2] != "classes.txt")
        notes.add_all("label file without an image", map(str, said))


def _label_folders(root: Path, top: Path, prefix: str, notes: Notes) -> list[Path]:
    """Where label files may lie: ``images`` in the path replaced by ``labels``, ``labels/``, beside the pictures."""
    inner = top.relative_to(root).parts if top.is_relative_to(root) else ()
    pictures = [i for i, part in enumerate(inner) if part.lower() == "images"]
    labels = child(root, "labels", notes)
    swapped = [functools.reduce(child, (*inner[:i], "labels", *inner[i + 1 :]), root) for i in pictures]
    places = [*reversed(swapped), labels / prefix, labels, top]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _label_names(folder: Names, relative: str) -> tuple[str, str]:
    """``sub/a.txt`` and ``sub/a.jpg.txt``."""
    return f"{folder.bare(relative)}.txt", f"{relative}.txt"


def _swapped(name: str) -> list[str]:
    """The names with ``labels`` for one folder ``images``, the last one first: ``a/images/1.txt``: a/labels/1.txt."""
    parts = name.split("/")
    places = [i for i, part in enumerate(parts[:-1]) if part.lower() == "images"]
    return ["/".join((*parts[:i], "labels", *parts[i + 1 :])) for i in reversed(places)]


def _swapped_file(
    own: Sequence[str], labels: Sequence[tuple[Path, Names]], every: Names, top: Path
) -> tuple[int, str] | None:
    """As :func:`_label_file`, where ``images`` lies below the picture folder ``top``, and so does ``labels``."""
    for number, (place, names) in enumerate(labels):
        for name in (swapped for one in own for swapped in _swapped(one)) if place == top else ():
            if (found := names.find(name, whole=True, of=every)) is not None:
                return number, found
    return None


def _label_file(own: Sequence[str], labels: Sequence[tuple[Path, Names]], every: Names) -> tuple[int, str] | None:
    """(number of the label folder, relative path in it) of a picture's label file; ``every``: the names of all."""
    for number, (_, names) in enumerate(labels):
        for name in own:
            if (found := names.find(name, whole=True, of=every)) is not None:
                return number, found
    return None
