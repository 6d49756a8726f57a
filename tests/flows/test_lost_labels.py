"""Lost labels stop a run before any work, with counts and reasons; pictures are not in both splits."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import pytest
from label_trees import LINES, coco, yolo

from artifacts.datasets import DataParams
from artifacts.records import DataError
from flows.cfs import CFSFlowParams, page
from flows.cli import console
from flows.cli.crf_files import pair_folders
from flows.cli.terminal import terminal
from flows.run_flow import Plan, plan_page, read_sets
from tasks.engine.options import RunParams

NAMES = tuple(f"p{number}" for number in range(1, 9))


def planned(tmp_path: Path, source: str, **options: object) -> Plan:
    run = RunParams(cache=str(tmp_path / "cache"), device="cpu")
    sets = read_sets(DataParams(source, **options), run)  # type: ignore[arg-type]
    return plan_page("cfs", page, sets, CFSFlowParams(proposals="box", student="none"), run)


def lists(root: Path) -> dict[str, str]:
    return {"train_txt": "".join(f"{name}\n" for name in NAMES[:6]), "val_txt": "p7\np8\n"}


def test_more_than_half_of_the_label_files_missing_is_an_error_that_counts(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", NAMES, **lists(tmp_path))
    assert planned(tmp_path, f"yolo:{root}").data == {
        "train": "6 of 6 images, 12 labels",
        "val": "2 of 2 images, 4 labels",
    }
    for name in NAMES[:3]:
        (root / "labels" / f"{name}.txt").unlink()
    assert planned(tmp_path, f"yolo:{root}").data["train"].startswith("6 of 6 images, 3 without a label file")
    (root / "labels" / "p4.txt").unlink()
    with pytest.raises(DataError, match=r"only 2 of 6 images have boxes.*min_labelled=0\.5.*looked in .*labels"):
        planned(tmp_path, f"yolo:{root}")
    assert planned(tmp_path, f"yolo:{root}", min_labelled=0.3).data
    assert planned(tmp_path, f"yolo:{root}", min_labelled=0).data


def test_more_than_half_of_the_labels_lost_is_an_error_with_the_first_reasons(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", NAMES, text=LINES + LINES.replace(".", ",") + "9 1 1 1 1\n", **lists(tmp_path))
    with pytest.raises(
        DataError, match=r"only 12 of 30 labels can be used as boxes.*18 x label line dropped.*p1.txt:3"
    ):
        planned(tmp_path, f"yolo:{root}")
    annotations = coco(
        tmp_path / "coco", ("p1.jpg", "p2.jpg", "p3.jpg"), annotation_image_id=lambda a: f"{a['image_id']}x"
    )
    with pytest.raises(DataError, match=r"only 0 of 1 images have boxes.*6 x annotation for an image that the file"):
        planned(tmp_path, f"coco:{annotations}/images,{annotations}/i.json", val_share=0.34)


def test_no_picture_is_trained_on_and_scored(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", NAMES, **lists(tmp_path))
    for train in ("all", "trainval"):
        with pytest.raises(DataError, match=rf"2 of 2 images of 'val' .* in '{train}' .*p7, p8.*train_on_val=true"):
            planned(tmp_path, f"yolo:{root}", train=train)
    assert planned(tmp_path, f"yolo:{root}", train="all", train_on_val=True).data
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: images\nval: images\n")
    assert planned(tmp_path, f"yolo:{root}").data["train"].startswith("6 of 6"), "the lists are the splits"
    for name in ("train.txt", "val.txt"):
        (root / name).unlink()
    with pytest.raises(DataError, match="8 of 8 images of 'val'"):
        planned(tmp_path, f"yolo:{root}")


def test_control_characters_reach_no_terminal() -> None:
    written = io.StringIO()
    shown = terminal(file=written, width=200)
    console.skips([{"path": "a\x1b[2J.jpg", "key": "", "reason": "b\x07\nc"}], "", shown)
    assert "\x1b" not in written.getvalue() and "\x07" not in written.getvalue()
    assert "a\\x1b[2J.jpg: b\\x07" in written.getvalue()


def test_crf_pairs_names_of_a_mac_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    for folder, names in (("images", ("é.jpg", "a.JPG", "b.xyz", "notes.txt")), ("probs", ("é.npy", "a.NPY"))):
        (tmp_path / folder).mkdir()
        for name in names:
            form = "NFC" if folder == "images" else "NFD"
            (tmp_path / folder / unicodedata.normalize(form, name)).touch()
    jobs, skips = pair_folders(tmp_path / "images", tmp_path / "probs", tmp_path / "out", None, None, ".npy")
    assert [(job.image.stem, job.source.suffix) for job in jobs] == [("a", ".NPY"), ("é", ".npy")]
    assert [path.name for path, _ in skips] == ["b.xyz"]
