"""Does every pixel that several masks claim go to the right object, and is nothing else lost?"""

from __future__ import annotations

import dataclasses

import numpy as np

from artifacts.records import Box
from tasks import overlap
from tasks.boxes import lies_inside
from tasks.overlap import contested, from_middle, without_inner


def full(boxes):
    """Masks that fill boxes of whole pixels."""
    windows = {b.id: tuple(int(v) for v in b.xyxy) for b in boxes}
    return {i: (w, np.ones((w[3] - w[1], w[2] - w[0]), bool), False) for i, w in windows.items()}


def test_a_smaller_object_inside_is_not_part_of_the_larger():
    boxes = [Box(0, 1, 2, 1, 8, 7), Box(1, 2, 1, 2, 5, 4), Box(2, 2, 5, 1, 12, 7)]
    windows = [(2, 1, 8, 7), (1, 2, 5, 4), (5, 1, 12, 7)]
    found = {b.id: (w, np.ones((w[3] - w[1], w[2] - w[0]), bool), False) for b, w in zip(boxes, windows, strict=True)}
    cleared = without_inner(boxes, found)
    expected = np.ones((6, 6), dtype=bool)
    expected[1:3, 0:3] = False
    inside = lies_inside(boxes[1], boxes[0])
    assert not inside and cleared[0][1].all()
    closer = [boxes[0], dataclasses.replace(boxes[1], x0=1.8), boxes[2]]
    assert (without_inner(closer, found)[0][1] == expected).all()
    assert cleared[1][1].all() and cleared[2][1].all()  # a box beside it takes nothing
    assert found[0][1].all()  # what was found is left alone


def test_a_mask_of_which_nothing_is_left_stays():
    mask = np.zeros((9, 9), dtype=bool)
    mask[0, 0] = True
    boxes = [Box(0, 1, 0, 0, 9, 9), Box(1, 2, 0, 0, 3, 3)]
    found = {0: ((0, 0, 9, 9), mask, False), 1: ((0, 0, 3, 3), np.ones((3, 3), bool), False)}
    assert (without_inner(boxes, found)[0][1] == mask).all()


def test_a_contested_pixel_goes_to_the_nearest_middle_against_a_loop():
    boxes = [Box(0, 1, 0, 0, 8, 6), Box(1, 1, 5, 2, 15, 9), Box(2, 1, 3, 4, 9, 12)]
    rng = np.random.default_rng(0)
    found = {i: (w, rng.random(m.shape) < 0.8, fell) for i, (w, m, fell) in full(boxes).items()}
    settled = contested(boxes, found)
    middles = {0: (4, 3), 1: (10, 5.5), 2: (6, 8)}
    for y in range(12):
        for x in range(15):
            claims, kept = (
                [i for i, (w, m, _) in of.items() if w[0] <= x < w[2] and w[1] <= y < w[3] and m[y - w[1], x - w[0]]]
                for of in (found, settled)
            )
            nearest = sorted(claims, key=lambda i: (x + 0.5 - middles[i][0]) ** 2 + (y + 0.5 - middles[i][1]) ** 2)
            assert kept == nearest[:1], (x, y)
    assert sum(m.sum() for _, m, _ in settled.values()) < sum(m.sum() for _, m, _ in found.values())


def test_other_classes_and_inner_boxes_do_not_compete():
    boxes = [Box(0, 1, 0, 0, 8, 6), Box(1, 2, 5, 2, 15, 9), Box(2, 1, 1, 1, 4, 4)]
    assert lies_inside(boxes[2], boxes[0])
    assert all(mask.all() for _, mask, _ in contested(boxes, full(boxes)).values())
    rivals = [boxes[0], dataclasses.replace(boxes[1], class_id=1)]
    assert not all(mask.all() for _, mask, _ in contested(rivals, full(rivals)).values())


def test_an_object_that_would_lose_all_its_pixels_keeps_them():
    boxes = [Box(0, 1, 0, 0, 10, 10), Box(1, 1, 1, 1, 11, 11)]
    found = full(boxes)
    found[1][1][:] = False
    found[1][1][2, 2] = True  # nearer to the other's middle
    settled = contested(boxes, found)
    assert settled[1][1].sum() == 1 and settled[0][1].all()


def test_distances_by_hand():
    assert from_middle((0, 0, 4, 2), (1, 0, 4, 1)).tolist() == [[0.5, 0.5, 2.5]]


def test_thousands_of_boxes_cost_what_meets_and_no_more():
    """Counted, not timed: pairs that are looked at one by one."""
    boxes = [Box(i, 1, 10 * i, 0, 10 * i + 12, 9) for i in range(2000)]
    looked = sum(len(beside) for _, beside in overlap._meeting(boxes, full(boxes)))
    assert looked == 2000 * 3 - 2
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 30, (40, 2))
    some = [Box(i, 1, x, y, x + rng.integers(1, 9), y + rng.integers(1, 9)) for i, (x, y) in enumerate(corners)]
    windows = full(some)
    for box, beside in overlap._meeting(some, windows):
        assert beside == [b for b in some if overlap._common(windows[box.id][0], windows[b.id][0])]
