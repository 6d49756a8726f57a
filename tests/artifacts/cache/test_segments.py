"""Does a segment give back what was put in, or say that it cannot?"""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from artifacts import keys
from artifacts.cache import chunks, segments
from artifacts.cache.chunks import chunk_shape
from artifacts.cache.segments import CorruptSegment, Segment, StoreError, encode_segment
from artifacts.records import Skip

DTYPES = ["u1", "?", "<i4", "<i8", ">i2", "<f2", "<f4", "<f8"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40))
)


def written(folder: Path, items: list[Any], codec: str = "zstd", **meta: Any) -> Path:
    data, _ = encode_segment(items, address=folder.name, meta=meta, codec=codec)  # type: ignore[arg-type]
    path = folder / f"00000001-{keys.digest_bytes(data)[:8]}.h5"
    path.write_bytes(data)
    return path


def masks(count: int = 3) -> list[Any]:
    """80 x 80 label maps: 8 x 8 random classes, each 10 pixels wide."""
    classes = np.random.default_rng(0).integers(0, 3, (count, 8, 8)).astype(np.uint8)
    return [
        (f"set/{i}", f"stamp{i}", {"mask_hw": np.kron(classes[i], np.ones((10, 10), np.uint8))}) for i in range(count)
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["mask_hw", "ids_n", "probs_chw", "größe"]), ARRAYS), max_size=5),
    st.sampled_from(["zstd", "gzip"]),
)
def test_arrays_of_any_shape_and_type_come_back(tmp_path_factory: Any, images: list[Any], codec: str) -> None:
    items = [(f"a b/{i}/ü", f"{i}", arrays) for i, arrays in enumerate(images)]
    segment = Segment(written(tmp_path_factory.mktemp("s"), items, codec))
    for key, stamp, arrays in items:
        back = segment.read(key, stamp)
        assert set(back) == set(arrays)
        for name, array in arrays.items():
            assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype.newbyteorder("<"))
            np.testing.assert_array_equal(back[name], array)
        assert segment.content(key, stamp).output == keys.digest_arrays(arrays)  # type: ignore[union-attr]


def test_strided_arrays_come_back(tmp_path: Path) -> None:
    base = np.arange(20_000, dtype=np.int32).reshape(100, 200)
    segment = Segment(written(tmp_path, [("k", "s", {"a": base[::2, ::-1], "b": base.T})]))
    np.testing.assert_array_equal(segment.read("k", "s")["a"], base[::2, ::-1])
    np.testing.assert_array_equal(segment.read("k", "s", ["b"])["b"], base.T)


def test_small_arrays_lie_end_to_end_and_large_ones_on_their_own(tmp_path: Path) -> None:
    items = [(f"k{i}", "s", {"ids_n": np.arange(i), "mask_hw": np.full((100, 50 + i), i, np.uint8)}) for i in range(4)]
    path = written(tmp_path, items)
    with h5py.File(path) as file:
        assert file["arrays/ids_n"][()].tolist() == [0, 0, 1, 0, 1, 2]
        assert [file[f"arrays/mask_hw/{i}"].shape for i in range(4)] == [(100, 50 + i) for i in range(4)]
    first, again = Segment(path).read("k3", "s"), Segment(path).read("k3", "s")
    first["ids_n"][:] = 9  # the caller's own copy
    assert again["ids_n"].tolist() == [0, 1, 2]


def test_equal_items_give_equal_bytes() -> None:
    one, other = (encode_segment(masks(), address="a", meta={"stage": "x"}, codec="zstd")[0] for _ in range(2))
    assert one == other


def test_skips_and_meta_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path, [("k", "s", Skip("k", "a.jpg", "truncated"))], stage="grabcut", params={"iterations": 5})
    segment = Segment(path)
    assert segment.content("k", "s") == segments.Content("k", "s", None, "truncated", {})
    assert segment.header.meta == {"stage": "grabcut", "params": {"iterations": 5}}
    assert segment.content("k", "other") is None


@pytest.mark.parametrize("shape", [(5000,), (7, 900), (3, 5, 400), (1, 2, 5000)])
def test_arrays_beyond_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1500)
    monkeypatch.setattr(chunks, "_form", chunks._form.__wrapped__)
    monkeypatch.setattr(segments, "PACK_MEAN_BYTES", 0)
    array = np.random.default_rng(1).integers(0, 99, shape).astype(np.uint16)
    assert np.prod(chunk_shape(shape, 2)) * 2 <= 1500
    path = written(tmp_path, [("k", "s", {"a": array})])
    np.testing.assert_array_equal(Segment(path).read("k", "s")["a"], array)
    with h5py.File(path) as file:
        assert file["arrays/a/0"].id.get_num_chunks() > 1
        last = file["arrays/a/0"].id.get_chunk_info(file["arrays/a/0"].id.get_num_chunks() - 1)
    flip(path, last.byte_offset + last.size // 2)
    with pytest.raises(CorruptSegment, match="array a"):
        Segment(path).read("k", "s")


def test_a_mask_of_one_image_is_one_chunk_up_to_64_mb() -> None:
    assert chunk_shape((8000, 8000), 1) == (8000, 8000)
    assert chunk_shape((21, 4000, 6000), 2) == (1, 4000, 6000)


# -- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path, position: int, bit: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_no_flipped_byte_ever_gives_a_wrong_array(tmp_path: Path, codec: str) -> None:
    """Bytes all over the file, each 9th of a mask: the arrays are right or the damage is found; no third thing."""
    items = [(key, stamp, {**arrays, "ids_n": np.arange(5)}) for key, stamp, arrays in masks()]
    path = written(tmp_path, items, codec)
    whole = path.read_bytes()
    with h5py.File(path) as file:
        chunk = file["arrays/mask_hw/0"].id.get_chunk_info(0)
    found = {}
    in_chunk = range(chunk.byte_offset, chunk.byte_offset + chunk.size, 9)
    for position in {*range(0, len(whole), 67), *in_chunk}:
        path.write_bytes(whole)
        flip(path, position, 1 << position % 8)
        found[position] = 0
        try:
            segment = Segment(path)
        except CorruptSegment:
            found[position] = len(items)
            continue
        for key, stamp, arrays in items:
            try:
                back = segment.read(key, stamp)
            except CorruptSegment as error:
                assert str(path) in str(error) and key in str(error)
                found[position] += 1
            else:
                assert all(np.array_equal(back[name], array) for name, array in arrays.items())
    assert {found[position] for position in in_chunk} == {1}, "damage in a mask is found, and costs no other mask"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_segment_is_found_on_opening(tmp_path: Path, share: float) -> None:
    path = written(tmp_path, masks())
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(CorruptSegment, match=rf"{path.name}.*maskmill cache verify --repair"):
        Segment(path)


def test_what_is_no_hdf5_is_found_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "00000001-ab.h5"
    path.write_text("hello " * 1000)
    with pytest.raises(CorruptSegment, match="no segment at all"):
        Segment(path)


def test_hdf5_of_another_program_is_found_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "00000001-ab.h5"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(CorruptSegment, match="no segment at all"):
        Segment(path)


def test_a_segment_without_footer_is_told_to_be_computed_again(tmp_path: Path) -> None:
    path = written(tmp_path, masks())
    path.write_bytes(path.read_bytes()[: -segments.FOOTER.size])
    with pytest.raises(CorruptSegment, match="of an earlier layout, .*maskmill cache verify --repair"):
        Segment(path)


def test_bytes_behind_the_end_are_found(tmp_path: Path) -> None:
    path = written(tmp_path, masks())
    footer = path.read_bytes()[-segments.FOOTER.size :]
    with open(path, "ab") as file:
        file.write(footer)
    with pytest.raises(CorruptSegment, match=rf"it has {path.stat().st_size} bytes, not"):
        Segment(path)


def test_plain_h5py_sees_the_same_arrays(tmp_path: Path) -> None:
    items = [*masks(), ("set/9", "s", {"ids_n": np.arange(4), "mask_hw": np.zeros((0, 3), np.uint8)})]
    for content, arrays in Segment(written(tmp_path, items)).read_by_h5py():
        assert isinstance(arrays, dict)
        assert keys.digest_arrays(arrays) == content.output


def test_what_does_not_shrink_is_stored_as_it_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 9000).astype(np.uint8)
    for codec in ("gzip", "zstd"):
        segment = Segment(written(tmp_path, [("k", "s", {"a": noise, "b": noise[:1]})], codec))
        np.testing.assert_array_equal(segment.read("k", "s")["a"], noise)
        assert segment.read("k", "s")["b"] == noise[0]


def test_many_shapes_are_inflated_with_few_datasets_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "KEPT_DATASETS", 3)
    items = [(f"k{i}", "s", {"a": np.full((70 + i, 80), i, np.uint8)}) for i in range(8)]
    segment = Segment(written(tmp_path, items))
    for i in [*range(8), *range(8)]:
        np.testing.assert_array_equal(segment.read(f"k{i}", "s")["a"], items[i][2]["a"])
        assert len(chunks._scratch.datasets) <= 3


def test_a_missing_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Segment(tmp_path / "00000001-ab.h5")


def test_a_failing_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segment(written(tmp_path, masks()))

    def fail(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(segments.os, "pread", fail)
    for read in (lambda: Segment(segment.path), lambda: segment.read("set/0", "stamp0")):
        with pytest.raises(OSError, match="Input/output") as caught:
            read()
        assert caught.value.errno == errno.EIO


def test_bytes_as_written_that_cannot_be_inflated_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, masks())

    def fail(*_: Any) -> None:
        raise OSError("Can't synchronously read data (filter returned failure)")

    monkeypatch.setattr(chunks, "inflate", fail)
    with pytest.raises(StoreError, match="filter returned failure.*as written; install the locked") as caught:
        Segment(path).read("set/0", "stamp0")
    assert not isinstance(caught.value, CorruptSegment)


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(CorruptSegment(Path("a.h5"), "cut", "k")))
    assert (error.segment, error.what, error.key) == (Path("a.h5"), "cut", "k")


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_FORMAT", 3)
    path = written(tmp_path, masks())
    monkeypatch.setattr(segments, "SEGMENT_FORMAT", 2)
    with pytest.raises(StoreError, match="segment format 3; this Maskmill reads up to 2") as caught:
        Segment(path)
    assert not isinstance(caught.value, CorruptSegment)


def test_without_hdf5plugin_zstd_is_an_error_that_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstd, gzip = (written(tmp_path, masks(), codec) for codec in ("zstd", "gzip"))
    monkeypatch.setattr(chunks, "zstd_at_hand", lambda: False)
    assert segments.best_codec() == "gzip"
    with pytest.raises(StoreError, match=rf"{zstd.name}.*install the package hdf5plugin") as caught:
        Segment(zstd).read("set/0", "stamp0")
    assert not isinstance(caught.value, CorruptSegment)
    assert Segment(gzip).read("set/0", "stamp0")
    with pytest.raises(StoreError, match="hdf5plugin"):
        encode_segment(masks(), address="a", meta={}, codec="zstd")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.array(["x"])}, "array a has dtype <U1"),
        ({"a": np.array([object()])}, "dtype object"),
        ({"a/b": np.zeros(3)}, "'a/b' cannot name an array"),
        ({"": np.zeros(3)}, "cannot name"),
        ({".": np.zeros(3)}, "cannot name"),
    ],
)
def test_what_has_no_place_in_a_segment_is_refused(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_segment([("k", "s", arrays)], address="a", meta={}, codec="gzip")


def test_a_pair_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="same"):
        encode_segment([*masks(1), *masks(1)], address="a", meta={}, codec="gzip")
