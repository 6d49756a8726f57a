"""Is a bundle what was put into it, and is one that is not whole refused by its fault?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from artifacts.cache import sealed
from artifacts.export.bundle import (
    CARD,
    GENERATORS,
    IMAGES,
    check_bundle_target,
    part_name,
    read_bundle,
    write_bundle,
)
from artifacts.records import DataError

DETAILS: dict[str, Any] = {"classes": ["crab", "lamp"], "network": {"network": "tiny", "width": 4}, "licence": "free"}
DETAILS |= {"network_version": 2}


def weights(folder: Path, number: int) -> Path:
    path = folder / f"{number}.safetensors"
    save_file({"a.weight": np.full((2, 3), number, np.float32), "steps": np.array(number)}, path)
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", DETAILS, [weights(tmp_path, n) for n in (1, 2)], {"ff", "aa"})


def test_it_comes_back_as_it_was_from_another_place(made: Path, tmp_path: Path) -> None:
    moved = shutil.move(made, tmp_path / "elsewhere")
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    found = read_bundle(Path(moved))
    assert (found.rounds, found.classes, found.images) == (2, ("crab", "lamp"), {"aa", "ff"})
    assert found.card["licence"] == "free" and found.weights == tmp_path / "elsewhere" / GENERATORS
    tensors = load_file(found.weights)
    assert set(tensors) == {f"{part_name(n)}.{name}" for n in (1, 2) for name in ("a.weight", "steps")}
    assert (tensors["generator2.a.weight"] == 2).all()
    assert {path.name for path in found.path.iterdir()} == {CARD, GENERATORS, IMAGES}


def test_half_is_float16_where_that_can_hold_the_values(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    given = {"small": [1 + 2**-10, -2.0], "large": [1.0, 7e4], "none": []}
    save_file({**{name: np.array(x, np.float32) for name, x in given.items()}, "steps": np.array(70_000)}, path)
    tensors = load_file(write_bundle(tmp_path / "bundle", DETAILS, [path], {"aa"}, half=True) / GENERATORS)
    assert {name: str(array.dtype) for name, array in tensors.items()} == {
        "generator1.small": "float16",
        "generator1.large": "float32",
        "generator1.none": "float16",
        "generator1.steps": "int64",
    }
    assert tensors["generator1.small"].tolist() == given["small"] and tensors["generator1.steps"] == 70_000
    assert tensors["generator1.large"].tolist() == given["large"]


def test_equal_content_is_equal_bytes_and_not_written_again(made: Path, tmp_path: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.iterdir()}
    both = [weights(tmp_path, n) for n in (1, 2)]
    assert write_bundle(made, DETAILS, both, ["ff", "aa"]) == made
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.iterdir()} == before
    write_bundle(made, {**DETAILS, "licence": "other"}, both[:1], {"aa"})
    assert (read_bundle(made).card["licence"], read_bundle(made).rounds) == ("other", 1)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left beside it"


def test_what_lies_in_a_bundle_and_is_none_of_it_is_not_thrown_away(made: Path, tmp_path: Path) -> None:
    (made / "notes.txt").write_text("mine")
    for refuse in (check_bundle_target, lambda folder: write_bundle(folder, DETAILS, [weights(tmp_path, 1)], ())):
        with pytest.raises(DataError, match=r"bundle holds notes.txt, which no bundle has .* move it"):
            refuse(made)
    assert (made / "notes.txt").read_text() == "mine" and read_bundle(made).rounds == 2


def test_a_bundle_that_cannot_be_put_in_its_place_leaves_the_one_before(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Path) -> None:
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in made.iterdir()}
    monkeypatch.setattr("artifacts.export.bundle.publish_folder", full)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(made, DETAILS, [weights(tmp_path, 1)], ())
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    check_bundle_target(tmp_path / "mine")
    check_bundle_target(tmp_path / "new")
    (tmp_path / "mine" / "card.json").write_text("{}")
    for refuse in (check_bundle_target, lambda folder: write_bundle(folder, DETAILS, [], ())):
        with pytest.raises(DataError, match="mine exists and is no bundle of Maskmill; name another folder"):
            refuse(tmp_path / "mine")
    assert (tmp_path / "mine" / "card.json").read_text() == "{}"


def edit(**changes: Any) -> Callable[[Path], None]:
    """A card that was written so, its checksum with it."""

    def change(bundle: Path) -> None:
        card = sealed.unseal((bundle / CARD).read_bytes())
        (bundle / CARD).write_bytes(sealed.seal({**card, **changes}, indent=1))

    return change


def by_hand(old: str, new: str) -> Callable[[Path], None]:
    """A card that somebody has edited."""

    def change(bundle: Path) -> None:
        text = (bundle / CARD).read_text()
        assert old in text
        (bundle / CARD).write_text(text.replace(old, new))

    return change


def cut(bundle: Path) -> None:
    (bundle / GENERATORS).write_bytes((bundle / GENERATORS).read_bytes()[:-1])


def flip(bundle: Path) -> None:
    data = bytearray((bundle / GENERATORS).read_bytes())
    data[-5] ^= 1
    (bundle / GENERATORS).write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "does not exist; expected the folder that `maskmill lpg-learn` has left"),
        (lambda bundle: (bundle / CARD).unlink(), "is no bundle: it has no card.json"),
        (lambda bundle: (bundle / CARD).write_text("{"), "card.json: cannot be read"),
        (edit(kind="a cat"), "card.json: this is no card of a bundle"),
        (edit(format=99), "a bundle of format 99, this version reads 1"),
        (edit(classes="crab"), "classes missing or not what it should be; the bundle is damaged"),
        (edit(files={GENERATORS: {"bytes": 1, "sha256": ""}}), "files missing or not what it should be"),
        (edit(files={GENERATORS: {}, IMAGES: {}}), "files missing or not what it should be"),
        (edit(files={GENERATORS: 1, IMAGES: 2}), "files missing or not what it should be"),
        (edit(network_version=None), "network_version missing or not what it should be; the bundle is damaged"),
        (edit(rounds=0, classes=[1]), "rounds, classes missing or not what it should be"),
        (by_hand('"width": 4', '"width": 8'), "card.json: cannot be read .its checksum differs: it was changed after"),
        (by_hand('"crab",', ""), "its checksum differs"),
        (cut, "bytes that are not the .* of which card.json tells; the bundle is damaged or was changed"),
        (flip, "is damaged or was changed, copy it again"),
        (
            lambda bundle: (bundle / GENERATORS).unlink(),
            "generators.safetensors: No such file.*the bundle is not whole",
        ),
        (lambda bundle: (bundle / IMAGES).write_text("bb\n"), "images.txt: 3 bytes that are not the 6"),
    ],
)
def test_a_damaged_bundle_is_named_so(made: Path, harm: Callable[[Path], Any], message: str) -> None:
    harm(made)
    with pytest.raises(DataError, match=message):
        read_bundle(made)


def test_a_card_without_a_checksum_is_read_too(made: Path) -> None:
    card = sealed.unseal((made / CARD).read_bytes())
    (made / CARD).write_text(json.dumps(card))
    assert read_bundle(made).card == card, "cards were written so before"


def test_a_file_is_no_bundle(made: Path) -> None:
    with pytest.raises(DataError, match="is a file; expected the folder"):
        read_bundle(made / CARD)
