"""Is the work of a stage cut such that nothing is lost, nothing done twice, and all workers end together?"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.records import Box, Record
from tasks.engine.image_task import ImageTask
from tasks.engine.work_unit import SEGMENT_IMAGES, cut


def job(number: int, boxes: int) -> ImageTask:
    found = tuple(Box(i, 1, 0, 0, 1, 1) for i in range(boxes))
    return ImageTask(f"d/{number}", "s", Record(str(number), "i", boxes=found))


def work(part: tuple[ImageTask, ...]) -> int:
    return sum(1 + len(one.record.boxes or ()) for one in part)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=300), st.integers(1, 8))
def test_every_job_is_in_one_unit_and_no_unit_is_larger_than_a_segment(boxes: list[int], workers: int) -> None:
    jobs = [job(i, count) for i, count in enumerate(boxes)]
    parts = cut(jobs, workers)
    assert sorted(one.key for part in parts for one in part) == sorted(one.key for one in jobs)
    assert all(1 <= len(part) <= SEGMENT_IMAGES for part in parts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(1, 8))
def test_taken_in_order_the_units_end_within_one_image_of_each_other(boxes: list[int], workers: int) -> None:
    ends = [0] * workers
    for part in cut([job(i, count) for i, count in enumerate(boxes)], workers):
        ends[ends.index(min(ends))] += work(part)
    assert max(ends) - sum(ends) / workers <= 1 + max(boxes)


def test_many_equal_images_fill_whole_segments_but_for_the_last_ones() -> None:
    sizes = [len(part) for part in cut([job(i, 0) for i in range(10_000)], 2)]
    assert sizes[:100] == [SEGMENT_IMAGES] * 100
    assert sizes[-1] == 1
    assert len(sizes) < 200, "10,000 images need 157 at least"
