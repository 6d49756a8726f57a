"""What the rounds of LPG say of the images that they have seen."""

from __future__ import annotations

from pathlib import Path

from artifacts.records import Record, RecordSet
from tasks.engine.options import RunParams
from tasks.engine.runner import Runner
from tasks.lpg import em


def test_an_image_that_cannot_be_read_is_none_that_was_learnt_from(tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(b"bytes")
    records = RecordSet(
        "set", "train", ("a",), tuple(Record(one, str(tmp_path / f"{one}.png")) for one in ("gone", "here"))
    )
    with Runner(RunParams(cache=str(tmp_path / "cache")), planning=True) as run:
        found = em.seen_images(run, records)
        assert found == {run.image_digest(records.records[1]): str(tmp_path / "here.png")}
