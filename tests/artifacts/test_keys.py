"""Does an address change exactly when what it stands for changes?"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import keys


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True)
class Params:
    steps: int = 3
    inner: Inner = Inner()
    workers: int = field(default=1, metadata=keys.OPERATIONAL)


def test_operational_params_leave_the_address_alone_and_semantic_ones_change_it() -> None:
    base = keys.address("cut", 1, Params())
    assert keys.address("cut", 1, Params(workers=8)) == base
    others = [
        keys.address("cut", 1, Params(steps=4)),
        keys.address("cut", 1, Params(inner=Inner(0.25))),
        keys.address("cut", 2, Params()),
        keys.address("cat", 1, Params()),
        keys.address("cut", 1, Params(), classes=("a",)),
        keys.address("cut", 1, Params(), upstream={"coarse": "x"}),
        keys.address("cut", 1, Params(), upstream={"dense": "x"}),
    ]
    assert len({base, *others}) == len(others) + 1


@dataclass(frozen=True)
class WithParts(Params):
    crf: Inner | None = field(default=None, metadata=keys.WHEN_SET)
    floor: float = field(default=1e-5, metadata=keys.WHEN_SET)
    test: Inner = field(default_factory=Inner, metadata=keys.WHEN_SET)


def test_an_optional_part_is_in_the_address_only_where_it_is_set() -> None:
    assert keys.canonical(WithParts()) == {**keys.canonical(Params()), "__params__": "WithParts"}
    assert keys.digest(WithParts(crf=None, floor=1e-5, test=Inner(0.5))) == keys.digest(WithParts())
    others = [WithParts(crf=Inner()), WithParts(crf=Inner(0.25)), WithParts(floor=1e-4), WithParts(test=Inner(0.25))]
    assert len({keys.digest(one) for one in [WithParts(), *others]}) == 5


def test_the_class_order_is_part_of_the_address() -> None:
    assert keys.address("cut", 1, Params(), classes=("a", "b")) != keys.address("cut", 1, Params(), classes=("b", "a"))


def test_an_absence_upstream_is_part_of_the_stamp() -> None:
    def stamp(output: str | None) -> str:
        return keys.image_stamp(image="i", labels={}, upstream={"coarse": output}, weights={})

    assert len({stamp(None), stamp("a"), stamp("b")}) == 3


def test_an_images_stamp_is_the_digest_of_its_parts() -> None:
    parts = {"image": "ü", "labels": {"tags": "2", "boxes": "1"}, "upstream": {"b": None, "a": "x"}, "weights": {}}
    assert keys.image_stamp(**parts) == keys.digest(parts)  # type: ignore[arg-type]


def test_a_fits_stamp_knows_members_not_their_order() -> None:
    def stamp(members: list[tuple[str, str]], seed: int = 0) -> str:
        return keys.fit_stamp(members=members, inputs={}, init=None, seed=seed)

    members = [("d/a", "1"), ("d/b", "2")]
    assert stamp(members) == stamp(members[::-1])
    assert len({stamp(members), stamp(members[:1]), stamp([("d/a", "1"), ("d/b", "3")]), stamp(members, seed=1)}) == 4


@pytest.mark.parametrize("value", [object(), np.float32(1), b"x", {1, object()}])
def test_what_has_no_stable_text_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="stable digest"):
        keys.digest(value)


def test_numbers_that_compare_equal_but_differ_in_type_are_told_apart() -> None:
    assert len({keys.digest(1), keys.digest(1.0), keys.digest(True), keys.digest("1")}) == 4
    assert keys.digest(float("nan")) != keys.digest(float("inf"))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.booleans())))
def test_the_order_of_a_mapping_does_not_matter(value: dict[str, object]) -> None:
    assert keys.digest(value) == keys.digest(dict(reversed(value.items())))


def test_array_digest_knows_dtype_shape_and_bytes_but_not_layout() -> None:
    a = np.arange(6, dtype=np.int32)
    digests = {keys.digest_array(x) for x in (a, a.reshape(2, 3), a.reshape(3, 2), a.astype(np.int64), a + 1)}
    assert len(digests) == 5
    assert keys.digest_array(np.asfortranarray(a.reshape(2, 3))) == keys.digest_array(a.reshape(2, 3))
    assert keys.digest_array(a.astype(">i4")) == keys.digest_array(a)
    assert keys.digest_array(np.zeros((0, 4), np.uint8)) != keys.digest_array(np.zeros((4, 0), np.uint8))


def test_digests_are_the_same_in_another_process() -> None:
    code = "from artifacts import keys; print(keys.digest({'a': [1, 2.5, None], 'b': frozenset({'x', 'y', 'z'})}))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {keys.digest({"a": [1, 2.5, None], "b": frozenset({"x", "y", "z"})}) + "\n"}


def test_digest_of_a_large_mask_follows_from_every_pixel() -> None:
    """Masks are digested by their runs where those are few; any single change must show all the same."""
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 4, (8, 8)), np.ones((10, 10))).astype(np.uint8)
    noise = rng.integers(0, 4, (80, 80)).astype(np.uint8)
    for mask in (smooth, noise, np.zeros((80, 80), np.uint8)):
        digests = {keys.digest_array(mask), keys.digest_array(mask.reshape(40, 160)), keys.digest_array(mask + 1)}
        positions = [0, 1, 79, 80, 3333, 6398, 6399]
        for position in positions:
            changed = mask.copy()
            changed.reshape(-1)[position] ^= 1
            digests.add(keys.digest_array(changed))
        assert len(digests) == 3 + len(positions)
        assert keys.digest_array(np.asfortranarray(mask)) == keys.digest_array(mask)
    assert keys.digest_array(smooth > 1) != keys.digest_array((smooth > 1).astype(np.uint8))
