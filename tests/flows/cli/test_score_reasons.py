"""Does ``maskmill score`` say why nothing fits, and find a run's data where they are now?"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from flow_runs import maskmill

from artifacts.datasets.voc_writer import write_annotation, write_class_mask, write_image_set
from artifacts.records import MaskHW

TRUTH = np.kron(np.array([[0, 1], [1, 0]], np.uint8), np.ones((8, 8), np.uint8))


def tree(root: Path) -> Path:
    for name in ("p5", "p6", "t1"):
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"JPEGImages/{name}.png"), np.dstack([TRUTH * 200] * 3) + len(name))
        write_annotation(root / f"Annotations/{name}.xml", f"{name}.png", (16, 16), [("cat", (8, 0, 16, 8), False)])
        write_class_mask(root / f"SegmentationClass/{name}.png", TRUTH)
    write_image_set(root / "ImageSets/Segmentation/val.txt", ["p5", "p6"])
    write_image_set(root / "ImageSets/Segmentation/train.txt", ["t1"])
    (root / "classes.txt").write_text("cat\n")
    return root


@pytest.mark.parametrize(
    ("names", "mask", "message"),
    [
        (
            ("p5.PNG", "p6.PNG"),
            TRUTH,
            "2 no mask, and 0 cannot be used; expected masks/p5.png, the folder holds p5.PNG",
        ),
        (("p5.png.png", "p6.png.png"), TRUTH, "expected masks/p5.png, the folder holds p5.png.png"),
        (("val/p5.png",), TRUTH, "expected masks/p5.png, the folder holds val/p5.png"),
        (("other.png",), TRUTH, "expected masks/p5.png, the folder holds other.png"),
        ((), TRUTH, "expected masks/p5.png, the folder is empty"),
        (("p5.png", "p6.png"), TRUTH * 7, "2 cannot be used; p5: the prediction holds 7"),
        (("p5.png",), TRUTH[:8], "1 cannot be used; masks/p5.png"),
    ],
)
def test_why_no_mask_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], mask: MaskHW, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "VOC")
    Path("masks").mkdir()
    for name in names:
        write_class_mask(Path("masks") / name, mask)
    done = maskmill(tmp_path, "score", "--masks", "masks", "--data", "voc:VOC", "--split", "val")
    assert (done.code, message in done.printed) == (2, True), done.printed


def test_masks_of_0_and_255_are_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "VOC")
    Path("masks").mkdir()
    for name, factor in (("p5", 255), ("p6", 0)):
        write_class_mask(Path("masks") / f"{name}.png", TRUTH * factor)
    assert maskmill(tmp_path, "score", "--masks", "masks", "--data", "voc:VOC").code == 0
    assert "hold only 0 and 255" in caplog.text
    caplog.clear()
    write_class_mask(Path("masks/p6.png"), TRUTH)
    assert maskmill(tmp_path, "score", "--masks", "masks", "--data", "voc:VOC").code == 0
    assert "hold only" not in caplog.text


def test_a_run_is_scored_from_another_folder_and_where_its_data_were_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    tree(tmp_path / "work" / "VOC")
    monkeypatch.chdir(tmp_path / "work")
    line = ("cfs", "--data", "voc:VOC", "--set", "params.proposals=box", "--set", "params.student=none")
    done = maskmill(tmp_path, *line, "--cache", str(tmp_path / "cache"), "--quiet", "--workers", "0")
    assert done.code == 0, done.printed

    def score(*more: str) -> tuple[int, str]:
        scored = maskmill(tmp_path, "score", "--cache", str(tmp_path / "cache"), *more)
        return scored.code, scored.printed

    monkeypatch.chdir(tmp_path / "elsewhere")
    assert score()[0] == 0, "a relative --data means the folder in which the run was started"
    shutil.move(tmp_path / "work" / "VOC", tmp_path / "moved")
    code, printed = score()
    assert code == 2 and "run the flow again with --data voc:PATH --set data.name=" in printed, printed
    code, printed = score("--data", f"voc:{tmp_path}/moved")
    assert code == 0 and "mIoU" in printed, printed
    cv2.imwrite(str(tmp_path / "moved/JPEGImages/t1.png"), np.zeros((16, 16, 3), np.uint8))
    shutil.move(tmp_path / "moved", tmp_path / "again")
    code, printed = score("--data", f"voc:{tmp_path}/again")
    assert code == 2 and "is not the same" in printed, printed
