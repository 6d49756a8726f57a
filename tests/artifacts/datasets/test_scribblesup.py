"""Do strokes come back as they were written, and do they cover the pixels that they should?"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from artifacts.datasets.scribblesup import rasterize, read_scribbles, write_scribbles
from artifacts.datasets.voc_tree import VOC_CLASSES
from artifacts.records import DataError, Scribble

NUMBERS = {"cat": 1, "tv & <radio>": 2}
FINE = st.integers(-64, 64 * 600).map(lambda n: n / 64)  # exact in binary, so that +1 -1 loses nothing
STROKES = st.lists(
    st.tuples(st.sampled_from(["background", *NUMBERS]), st.lists(st.tuples(FINE, FINE), min_size=1, max_size=6)),
    max_size=4,
)


@given(strokes=STROKES, origin=st.sampled_from([0, 1]))
@settings(max_examples=40, deadline=None)
def test_strokes_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, strokes, origin: int) -> None:
    path = tmp_path_factory.getbasetemp() / "strokes ü.xml"
    write_scribbles(path, "a b.jpg", (480, 640), strokes, origin=origin)
    want = tuple(Scribble({"background": 0, **NUMBERS}[name], tuple(points)) for name, points in strokes)
    assert read_scribbles(path, NUMBERS, origin=origin) == want


def test_the_published_layout_and_both_origins(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        "<annotation><filename>a.jpg</filename><polygon><tag>cat</tag>"
        "<point><X>1</X><Y>5</Y></point><point><X>3</X><Y>5</Y></point></polygon>"
        "<polygon><tag>background</tag><point><X>2</X><Y>1</Y></point></polygon>"
        "<polygon><tag>cat</tag></polygon></annotation>"
    )
    cat, background = read_scribbles(path, {"cat": 7})
    assert cat == Scribble(7, ((1.0, 5.0), (3.0, 5.0)))
    assert background == Scribble(0, ((2.0, 1.0),)), "a polygon without points is nothing"
    assert read_scribbles(path, {"cat": 7}, origin=1)[0].points_xy == ((0.0, 4.0), (2.0, 4.0))


def test_the_annotators_names_of_vocs_classes_are_read_as_vocs(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    short = {"plane": 1, "bike": 2, "table": 11, "plant": 16, "monitor": 20}
    write_scribbles(path, "a.jpg", (9, 9), [(name, [(1.0, 1.0)]) for name in (*short, "motorbike")])
    voc = {name: number for number, name in enumerate(VOC_CLASSES, 1)}
    assert [stroke.class_id for stroke in read_scribbles(path, voc)] == [*short.values(), 14]
    own = {**voc, "plant": 99}
    assert [stroke.class_id for stroke in read_scribbles(path, own)] == [1, 2, 11, 99, 20, 14], "a class of that name"
    with pytest.raises(DataError, match="stroke 1 has the unknown class 'bike'; the classes are aeroplane, table"):
        read_scribbles(path, {"aeroplane": 1, "table": 2})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "<polygon><tag>dog</tag><point><X>1</X><Y>1</Y></point></polygon>",
            "the unknown class 'dog'.*cat",
        ),
        ("<polygon><tag>cat</tag><point><X>nan</X><Y>1</Y></point></polygon>", "stroke 0 .*'nan'.*not a finite number"),
        ("<polygon><tag>cat</tag><point><Y>1</Y></point></polygon>", "stroke 0 .*None.*not a finite number"),
        ("<polygon>", "broken XML"),
    ],
)
def test_bad_strokes_are_named(body: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation>{body}</annotation>")
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        read_scribbles(path, NUMBERS)


def by_brute_force(scribbles: tuple[Scribble, ...], size_hw: tuple[int, int], width: float) -> np.ndarray:
    """Each pixel against 2,001 points on each segment: slow, plain, no shared code."""
    mask = np.full(size_hw, 255, np.uint8)
    for wanted_background in (True, False):
        for stroke in scribbles:
            if (stroke.class_id == 0) != wanted_background:
                continue
            ends = stroke.points_xy if len(stroke.points_xy) > 1 else stroke.points_xy * 2
            for (ax, ay), (bx, by) in itertools.pairwise(ends):
                t = np.linspace(0, 1, 2001)
                px, py = ax + t * (bx - ax), ay + t * (by - ay)
                for y in range(size_hw[0]):
                    for x in range(size_hw[1]):
                        if np.min((px - x) ** 2 + (py - y) ** 2) <= (width / 2) ** 2:
                            mask[y, x] = stroke.class_id
    return mask


def test_rasterized_strokes_are_the_pixels_within_half_the_width() -> None:
    scribbles = (
        Scribble(3, ((2.0, 2.0), (8.25, 5.5), (8.25, 9.0))),
        Scribble(0, ((0.0, 4.0), (11.0, 4.0))),
        Scribble(1, ((10.0, 1.0),)),
        Scribble(2, ((-5.0, 9.0), (3.0, 9.0))),
        Scribble(2, ((40.0, 40.0), (50.0, 40.0))),
    )
    for width in (1.02, 2.1, 3.06, 4.6):  # no pixel lies just on the edge, where sampling would err
        assert np.array_equal(rasterize(scribbles, (11, 12), width), by_brute_force(scribbles, (11, 12), width)), width


def test_a_straight_stroke_is_as_wide_as_asked_and_objects_lie_over_background() -> None:
    line = Scribble(4, ((2.0, 4.0), (7.0, 4.0)))
    for width in (1, 3, 5):
        assert (rasterize([line], (9, 12), width)[:, 5] == 4).sum() == width
    crossing = Scribble(0, ((5.0, 0.0), (5.0, 8.0)))
    for order in ([line, crossing], [crossing, line]):
        mask = rasterize(order, (9, 12), 1)
        assert mask[4, 5] == 4 and mask[0, 5] == 0 and mask[0, 0] == 255
    with pytest.raises(ValueError, match="width must be at least 1 pixel, not 0"):
        rasterize([line], (9, 12), 0)


@given(x0=FINE, y0=FINE, x1=FINE, y1=FINE)
@example(x0=0.5, y0=0.5, x1=0.5, y1=0.5)
@example(x0=0.5, y0=0.5, x1=0.6, y1=0.5)
@settings(max_examples=25, deadline=None)
def test_the_thinnest_stroke_has_no_gap(x0: float, y0: float, x1: float, y1: float) -> None:
    size_hw = (600, 600)
    drawn = rasterize([Scribble(1, ((x0, y0), (x1, y1)))], size_hw, 1) == 1
    assert ndimage.label(drawn, structure=np.ones((3, 3)))[1] <= 1
    inside = all(0 <= v <= 599 for v in (x0, y0, x1, y1))
    assert not inside or drawn.any()
