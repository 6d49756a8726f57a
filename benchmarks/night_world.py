"""A folder of pictures that somebody works on between nights: the world of ``benchmarks.nights``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from artifacts.datasets.voc_writer import write_image_set

NEW_CLASS = "zebra"
SUFFIXES = {
    "JPEGImages": ".jpg",
    "Annotations": ".xml",
    "ScribbleSup": ".xml",
    "SegmentationClass": ".png",
    "SegmentationObject": ".png",
}
MOVED_PX = 3
"""By which a box shrinks whenever its picture's boxes are changed."""


@dataclass(frozen=True)
class Picture:
    """A picture of the folder: a drawn one, and what was done to it."""

    drawn: str
    """Id of the drawn picture that it shows."""
    moved: int = 0
    """How often its boxes were changed."""
    of_new_class: bool = False
    """Whether its objects are of :data:`NEW_CLASS`."""
    broken: bool = False
    """Half a file."""


class World:
    """A VOC tree at ``root`` with pictures of the tree ``drawn``; what is done to it is on disk after :meth:`write`."""

    def __init__(self, drawn: Path, root: Path, *, first: int, val: int) -> None:
        self._drawn, self.root = drawn, root
        lists = drawn / "ImageSets" / "Segmentation"
        self._waiting = (lists / "train.txt").read_text().split()
        self._val = (lists / "val.txt").read_text().split()[:val]
        self.classes = (drawn / "classes.txt").read_text().split()
        self.train: dict[str, Picture] = {}
        self.add(first)

    # -- what is done to it ----------------------------------------------------------------------------------------

    def add(self, count: int = 1, *, broken: bool = False) -> None:
        """New pictures."""
        for _ in range(count):
            drawn = self._waiting.pop(0)
            self.train[drawn] = Picture(drawn, broken=broken)

    def change(self, count: int = 1) -> None:
        """Other boxes in the first pictures."""
        for image_id in list(self.train)[:count]:
            self.train[image_id] = dataclasses.replace(self.train[image_id], moved=self.train[image_id].moved + 1)

    def remove(self) -> None:
        """The second picture goes."""
        del self.train[list(self.train)[1]]

    def rename(self) -> None:
        """The third picture gets another name, and is listed last."""
        name = list(self.train)[2]
        self.train[f"renamed {name}"] = self.train.pop(name)

    def mend(self) -> None:
        """Broken files are whole."""
        for image_id, picture in self.train.items():
            self.train[image_id] = dataclasses.replace(picture, broken=False)

    def add_class(self) -> None:
        """A new picture, of a new class."""
        self.add()
        self.classes.append(NEW_CLASS)
        name = list(self.train)[-1]
        self.train[name] = dataclasses.replace(self.train[name], of_new_class=True)

    # -- what is in it ---------------------------------------------------------------------------------------------

    def content(self, image_id: str, kind: str) -> object:
        """What a stage sees that reads ``kind`` of a picture; equal as long as nothing of it was changed."""
        picture = self.train.get(image_id) or Picture(image_id)
        match kind:
            case "image":
                return picture.drawn, picture.broken
            case "tags":
                return tuple(sorted(set(re.findall("<name>(.*?)</name>", self._annotation(picture)))))
            case "boxes":
                return self._annotation(picture)
            case "scribbles":
                return picture.drawn, picture.of_new_class
            case "truth" | "truth_objects":
                return picture.drawn
            case _:
                return None

    def write(self) -> None:
        """Bring the folder up to date; files that stay as they are are not touched."""
        pictures = self.train | {image_id: Picture(image_id) for image_id in self._val}
        wanted = {
            self.root / folder / f"{image_id}{suffix}": self._file(folder, image_id, picture)
            for folder, suffix in SUFFIXES.items()
            for image_id, picture in pictures.items()
        }
        for folder in SUFFIXES:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            for path in (self.root / folder).iterdir():
                if path not in wanted:
                    path.unlink()
        for path, data in wanted.items():
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)
        (self.root / "classes.txt").write_text("".join(f"{name}\n" for name in self.classes))
        for split, ids in (("train", list(self.train)), ("val", self._val)):
            write_image_set(self.root / "ImageSets" / "Segmentation" / f"{split}.txt", ids)

    def _file(self, folder: str, image_id: str, picture: Picture) -> bytes:
        if folder == "Annotations":
            return self._annotation(picture).replace(picture.drawn, image_id).encode()
        data = (self._drawn / folder / f"{picture.drawn}{SUFFIXES[folder]}").read_bytes()
        if folder == "ScribbleSup":
            text = data.decode().replace(picture.drawn, image_id)
            if picture.of_new_class:
                text = re.sub(f"<tag>({'|'.join(self.classes)})</tag>", f"<tag>{NEW_CLASS}</tag>", text)
            return text.encode()
        return data[: len(data) // 2] if folder == "JPEGImages" and picture.broken else data

    def _annotation(self, picture: Picture) -> str:
        text = (self._drawn / "Annotations" / f"{picture.drawn}.xml").read_text()
        if picture.of_new_class:
            text = re.sub("<name>.*?</name>", f"<name>{NEW_CLASS}</name>", text)
        return re.sub("<([xy]max)>(.*?)<", lambda m: f"<{m[1]}>{int(m[2]) - MOVED_PX * picture.moved}<", text)


@dataclass(frozen=True)
class Night:
    """What happened to the folder during the day, and to the night's run."""

    name: str
    day: Callable[[World], None]
    killed: bool = False


NIGHTS = (
    Night("the first night", lambda world: None),
    Night("new pictures", lambda world: world.add(2)),
    Night("nothing new", lambda world: None),
    Night("changed boxes", lambda world: world.change()),
    Night("a removed picture", World.remove),
    Night("a renamed picture", World.rename),
    Night("a broken picture", lambda world: world.add(broken=True)),
    Night("it is mended", World.mend),
    Night("killed, and run again", World.add, killed=True),
    Night("a new class", World.add_class),
)
