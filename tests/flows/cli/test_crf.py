"""``maskmill crf`` for pictures at hand, and the CRF at test time in a flow: both students scored and shown."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import cv2
import numpy as np
import pytest
from crf_pictures import cam_like, scene
from flow_runs import ROOT, Done, copy_of, demo_tree, maskmill, run_cfs
from PIL import Image

import models.crf
from artifacts.cache.atomic import TEMPORARY_PREFIX
from artifacts.datasets.voc_writer import voc_palette, write_class_mask
from artifacts.export.voc import DEVKIT
from flows.cfs import CFSFlowParams
from tasks.crf.dense_crf import PRESETS, CRFParams, dense_crf, from_labels, from_probabilities, resize_probabilities
from tasks.stage import CRF_MASK, MapHandle


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, its probabilities at a quarter of its size, and a partial label map."""
    monkeypatch.chdir(tmp_path)
    image, labels = scene(60, 80, 1)
    Image.fromarray(image).save("a.png")
    np.save("p.npy", probabilities(labels))
    partial = np.full(labels.shape, 255, np.uint8)
    partial[::5, ::5] = labels[::5, ::5]
    write_class_mask(Path("l.png"), partial)
    return tmp_path


def probabilities(labels: np.ndarray) -> np.ndarray:
    return np.exp(-cam_like(labels))[:, ::4, ::4].astype(np.float16)


def crf(*arguments: str) -> Done:
    return maskmill(Path(), "crf", *arguments)


def mask(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


def expected(params: CRFParams) -> np.ndarray:
    unary = from_probabilities(resize_probabilities(np.load("p.npy"), (60, 80)))
    return dense_crf(np.asarray(Image.open("a.png")), unary, params)


# One picture


def test_one_line_makes_the_mask_that_python_makes(here: Path) -> None:
    done = crf("--image", "a.png", "--probs", "p.npy", "--out", "m.png")
    assert (done.code, done.stdout) == (0, "mask: m.png\n"), done.stderr
    np.testing.assert_array_equal(mask("m.png"), expected(CRFParams()).argmax(0))


def test_a_set_and_single_parameters_by_name(here: Path) -> None:
    options = ("--preset", "rrm-test", "--iterations", "3", "--bilateral-srgb", "20", "--normalisation", "after")
    assert crf("--image", "a.png", "--probs", "p.npy", "--out", "m.png", *options, "--marginals", "q.npy").code == 0
    params = CRFParams(3, bilateral_sxy=83, bilateral_srgb=20, bilateral_compat=4, normalisation="after")
    np.testing.assert_array_equal(np.load("q.npy"), expected(params))
    np.testing.assert_array_equal(mask("m.png"), expected(params).argmax(0))


def test_labels_with_unknown_pixels(here: Path) -> None:
    assert crf("--image", "a.png", "--labels", "l.png", "--gt-prob", "0.9", "--out", "m.png").code == 0
    numbers, places = np.unique(mask("l.png"), return_inverse=True)
    places = np.where(mask("l.png") == 255, 255, places.reshape(60, 80))
    q = dense_crf(np.asarray(Image.open("a.png")), from_labels(places, len(numbers) - 1, 0.9))
    np.testing.assert_array_equal(mask("m.png"), numbers[q.argmax(0)])
    assert 255 not in mask("m.png")


def test_the_overlay_is_a_picture_of_the_pictures_size(here: Path) -> None:
    assert crf("--image", "a.png", "--probs", "p.npy", "--out", "m.png", "--overlay", "o.jpg").code == 0
    assert cv2.imread("o.jpg").shape == (60, 80, 3)
    assert np.abs(cv2.imread("o.jpg").astype(int) - cv2.imread("a.png")).mean() > 5


def test_a_class_has_the_same_colour_in_mask_and_overlay(here: Path) -> None:
    """Whoever lays the two files side by side takes equal colours for equal classes."""
    Image.fromarray(np.full((60, 80, 3), 128, np.uint8)).save("grey.png")
    labels = np.zeros((60, 80), np.uint8)
    labels[:30, :40], labels[:30, 40:], labels[30:, 40:] = 1, 3, 15
    write_class_mask(Path("all.png"), labels)
    line = ("--image", "grey.png", "--labels", "all.png", "--gt-prob", "0.99", "--iterations", "0")
    assert crf(*line, "--out", "m.png", "--overlay", "o.png").code == 0
    shown, found = np.asarray(Image.open("o.png")).astype(float), mask("m.png")
    assert set(np.unique(found)) == {0, 1, 3, 15}
    colours = np.asarray(Image.open("m.png").convert("RGB")).astype(float)
    np.testing.assert_array_equal(colours[0, 0], voc_palette()[1])
    for y, x in ((15, 20), (15, 60), (45, 60)):
        assert np.abs(shown[y, x] - (0.42 * 128 + 0.58 * colours[y, x])).max() <= 1, (y, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "a.png", "--out", "m.png"), "give --probs, --labels or --boxes, one of them"),
        (("--image", "a.png", "--out", "m.png", "--probs", "p.npy", "--labels", "l.png"), "one of them"),
        (("--image", "a.png", "--out", "m.jpg", "--probs", "p.npy"), "a mask is a .png file"),
        (
            ("--image", "a.png", "--out", "l.png", "--labels", "l.png"),
            "l.png: would be overwritten, but it is read",
        ),
        (("--image", "a.png", "--out", "a.png", "--probs", "p.npy"), "a.png: would be overwritten"),
        (
            ("--image", "a.png", "--out", "m.png", "--overlay", "m.png", "--probs", "p.npy"),
            "two outputs of this command have this place",
        ),
        (("--image", "a.png", "--out", "m.png", "--overlay", "o.gif", "--probs", "p.npy"), "name a .png or .jpg"),
        (("--image", "a.png", "--out", "m.png", "--marginals", "q.txt", "--probs", "p.npy"), "name an .npy file"),
        (
            ("--image", "a.png", "--out", "m.png", "--probs", "p.npy", "--gaussian-sxy", "0"),
            "--gaussian-sxy must be 0.01..10000, not 0.0",
        ),
        (("--image", "a.png", "--out", "m.png", "--probs", "p.npy", "--threads", "0"), "--threads 0"),
        (("--image", "a.png", "--out", "m.png", "--probs", "p.npy", "--floor", "0"), "--floor 0.0: give a number"),
        (("--image", "a.png", "--out", "m.png", "--labels", "l.png", "--gt-prob", "nan"), "--gt-prob nan: give"),
        (("--image", "no.png", "--out", "m.png", "--probs", "p.npy"), "--image no.png: no such file"),
        (("--image", "a.png", "--out", "m.png", "--probs", "no.npy"), "--probs no.npy: no such file"),
        (("--image", "a.png", "--out", "m.png", "--labels", "no.png"), "--labels no.png: no such file"),
        (("--image", "a.png", "--out", "m.png", "--probs", "."), "--image a.png is a file, . is a folder"),
        (("--image", "a.png", "--out", "m.png", "--probs", "a.png"), "a.png: not an .npy file of plain numbers"),
        (("--image", "a.png", "--out", "m.png", "--probs", "logits.npy"), "are these logits?"),
        (("--image", "a.png", "--out", "m.png", "--probs", "last.npy"), "labels last? array.transpose(2, 0, 1)"),
        (("--image", "a.png", "--out", "m.png", "--probs", "hwk.npy"), "sums up to 1 along its last axis"),
        (("--image", "a.png", "--out", "m.png", "--probs", "nan.npy"), "holds nan at label 1, row 2, column 3"),
        (("--image", "a.png", "--out", "m.png", "--labels", "small.png"), "small.png"),
        (("--image", "a.png", "--out", "m.png", "--labels", "open.png"), "every pixel is 255"),
        (("--image", "p.npy", "--out", "m.png", "--probs", "p.npy"), "p.npy"),
        (("--image", "a.png", "--out", "m.png", "--probs", "p.npy", "--preset", "rrm"), "rrm"),
    ],
)
def test_wrong_usage_is_told_and_writes_nothing(here: Path, arguments: tuple[str, ...], message: str) -> None:
    np.save("logits.npy", np.full((2, 4, 4), 7.0))
    np.save("last.npy", np.full((60, 80, 2), 0.5))
    np.save("hwk.npy", np.full((9, 8, 5), 0.2))
    holed = np.full((2, 4, 4), 0.5)
    holed[1, 2, 3] = np.nan
    np.save("nan.npy", holed)
    write_class_mask(Path("small.png"), np.zeros((4, 4), np.uint8))
    write_class_mask(Path("open.png"), np.full((60, 80), 255, np.uint8))
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    done = crf(*arguments)
    assert (done.code, message in done.printed) == (2, True), done.printed
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


# Folders


@pytest.fixture
def folders(here: Path) -> Path:
    """Three good pictures, one without probabilities, one with broken ones, probabilities without a picture."""
    (here / "images").mkdir()
    (here / "probs").mkdir()
    for seed, name in enumerate(("x", "y", "z", "alone", "broken")):
        image, labels = scene(30 + seed, 40, seed)
        Image.fromarray(image).save(here / "images" / f"{name}.png")
        np.save(here / "probs" / f"{name}.npy", probabilities(labels))
    (here / "probs" / "alone.npy").unlink()
    np.save(here / "probs" / "broken.npy", np.full((2, 5, 5), np.nan))
    np.save(here / "probs" / "nobody.npy", np.full((2, 5, 5), 0.5))
    (here / "images" / "notes.txt").write_text("no picture")
    (here / "images" / "text.png").write_text("no picture")
    shutil.copy(here / "probs" / "x.npy", here / "probs" / "text.npy")
    return here


def test_a_folder_is_done_by_threads_and_what_is_skipped_is_listed(folders: Path) -> None:
    outs = {}
    for threads in ("1", "3"):
        out = folders / f"masks{threads}"
        done = crf(
            "--image", "images", "--probs", "probs", "--out", str(out), "--overlay", f"o{threads}", "--threads", threads
        )
        assert done.code == 3
        assert "masks: 3, skipped: 4" in done.printed
        for line in (
            "skipped images/alone.png: no alone.npy in probs",
            "skipped images/broken.png: probs/broken.npy: holds nan at label 0, row 0, column 0",
            "skipped probs/nobody.npy: no picture of this name in images",
            "skipped images/text.png: not an image file that Pillow knows",
        ):
            assert line in done.printed
        assert sorted(path.name for path in (folders / f"o{threads}").iterdir()) == ["x.png", "y.png", "z.png"]
        outs[threads] = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(outs["1"]) == ["x.png", "y.png", "z.png"] and outs["1"] == outs["3"]


def test_a_folder_of_good_pictures_ends_with_0_one_of_bad_with_1(folders: Path) -> None:
    for name in ("alone", "broken", "text"):
        (folders / "images" / f"{name}.png").unlink()
    for name in ("broken", "nobody", "text"):
        (folders / "probs" / f"{name}.npy").unlink()
    done = crf("--image", "images", "--probs", "probs", "--out", "masks", "--quiet")
    assert (done.code, done.stdout, done.stderr) == (0, "masks: 3, skipped: 0\n", "")
    for path in (folders / "probs").iterdir():
        path.unlink()
    assert crf("--image", "images", "--probs", "probs", "--out", "masks").code == 1


def test_two_pictures_of_one_name_are_not_written_over_each_other(folders: Path) -> None:
    shutil.copy("images/x.png", "images/x.bmp")
    done = crf("--image", "images", "--probs", "probs", "--out", "masks")
    assert done.code == 3 and "another picture is called x, too" in done.printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "images", "--probs", "p.npy", "--out", "masks"), "is a folder, p.npy is none"),
        (("--image", "images", "--probs", "probs", "--out", "p.npy"), "p.npy is a file"),
        (("--image", "images", "--labels", "images", "--out", "images"), "would be overwritten"),
        (("--image", "images", "--probs", "probs", "--out", "masks", "--marginals", "probs"), "would be overwritten"),
        (("--image", "empty", "--probs", "empty", "--out", "masks"), "holds no pictures"),
        (("--image", "images", "--probs", "nowhere", "--out", "masks"), "--probs nowhere: no such file or folder"),
        (("--image", "images", "--probs", "probs", "--out", "masks", "--floor", "2"), "--floor 2.0: give a number"),
        (("--image", "images", "--labels", "labels", "--out", "masks", "--gt-prob", "1"), "--gt-prob 1.0: give a"),
        (("--image", "images", "--probs", "probs", "--out", "p.npy/masks"), "--out p.npy/masks: p.npy is no folder"),
        (
            ("--image", "images", "--probs", "probs", "--out", "/proc/none/masks"),
            "--out /proc/none/masks: nothing can be written in /proc (No such file or directory); name another folder",
        ),
        (
            ("--image", "images", "--probs", "probs", "--out", "masks", "--overlay", "/proc/none"),
            "--overlay /proc/none: nothing can be written in /proc",
        ),
        (("--image", "images", "--probs", "probs", "--out", "masks", "--marginals", "gone"), "gone is no folder"),
        (("--image", "a.png", "--probs", "p.npy", "--out", "/proc/none/m.png"), "--out /proc/none: nothing can be"),
        (("--image", "a.png", "--probs", "p.npy", "--out", "folder.png"), "--out folder.png: is a folder"),
    ],
)
def test_wrong_folders_are_told_before_the_work(
    folders: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    for name in ("empty", "labels", "folder.png"):
        (folders / name).mkdir()
    (folders / "gone").symlink_to("nowhere")
    monkeypatch.setattr("flows.cli.crf.work", lambda *_: pytest.fail("the work began"))
    before = sorted(folders.rglob("*"))
    done = crf(*arguments)
    assert (done.code, message in done.printed) == (2, True), done.printed
    assert TEMPORARY_PREFIX not in done.printed and sorted(folders.rglob("*")) == before


def test_a_mask_that_cannot_be_written_is_named_once_and_not_by_its_temporary_file(folders: Path) -> None:
    (folders / "masks" / "x.png").mkdir(parents=True)
    done = crf("--image", "images", "--probs", "probs", "--out", "masks")
    assert done.code == 3 and "masks: 2, skipped: 5" in done.printed
    assert "skipped images/x.png: masks/x.png: cannot be written (Is a directory)" in done.printed


# Signals


def start_crf(*arguments: str) -> subprocess.Popen[str]:
    # Where the tests themselves run in the background, a shell has SIGINT ignored for all their children.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from flows.cli.main import main; sys.exit(main())"
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    return subprocess.Popen(
        [sys.executable, "-c", code, "crf", *arguments],
        # numpy's matrix products start no threads of their own: computing() counts threads
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "times", "code"), [("SIGINT", 1, 130), ("SIGINT", 5, 130), ("SIGTERM", 1, 143), ("SIGTERM", 5, 143)]
)
def test_a_signal_or_many_end_a_folder_at_once_with_whole_files(here: Path, number: str, times: int, code: int) -> None:
    """Threads that come back from C++ into an interpreter that ends made it abort: a core instead of an exit code."""
    for folder in ("images", "probs"):
        (here / folder).mkdir()
    image, labels = scene(200, 300, 1)
    Image.fromarray(image).save(here / "image.png")
    np.save(here / "probs.npy", probabilities(labels))
    for name in range(40):
        os.link(here / "image.png", here / "images" / f"{name}.png")
        os.link(here / "probs.npy", here / "probs" / f"{name}.npy")
    (here / "masks").mkdir()
    line = ("--image", "images", "--probs", "probs", "--out", "masks", "--marginals", "q", "--iterations", "60")
    process = start_crf(*line, "--threads", "2")
    until = time.monotonic() + 60
    while not list((here / "masks").glob("*.png")) and time.monotonic() < until:
        time.sleep(0.01)
    for _ in range(times):
        process.send_signal(signal.Signals[number])
        time.sleep(0.02)
    _, output = process.communicate(timeout=60)
    assert process.returncode == code, output
    written = sorted(path.stem for path in (here / "masks").iterdir())
    assert sorted(path.name for path in (here / "q").iterdir()) == [f"{name}.npy" for name in written]
    for name in written:
        assert mask(here / "masks" / f"{name}.png").shape == np.load(here / "q" / f"{name}.npy").shape[1:]
    kept = f"masks holds {len(written)} of 40 complete masks; the same command computes all of them again"
    assert f"stopped ({number}); {kept}" in " ".join(output.split()) and "cache" not in output


def test_a_signal_while_one_large_picture_is_computed_is_heard_at_once(here: Path) -> None:
    image, labels = scene(600, 800, 1)
    Image.fromarray(image).save("large.png")
    np.save("large.npy", probabilities(labels))
    process = start_crf("--image", "large.png", "--probs", "large.npy", "--out", "m.png", "--iterations", "1000")
    while process.poll() is None and not computing(process.pid):
        time.sleep(0.02)
    time.sleep(0.5)  # within the iterations
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=60)
    assert (process.returncode, time.monotonic() - began < 5) == (130, True), output
    assert "stopped (SIGINT); nothing was written" in output and not Path("m.png").exists()


def computing(pid: int) -> bool:
    """Whether the process has threads beside its first."""
    return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1


def test_without_the_compiled_lattice_it_ends_at_once_and_says_how_to_build_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(models.crf, "_lattice", raising=False)
    monkeypatch.setitem(sys.modules, "models.crf._lattice", None)
    for name in ("images", "probs"):
        Path(name).mkdir()
    for number in range(3):
        shutil.copy("a.png", f"images/{number}.png")
        shutil.copy("p.npy", f"probs/{number}.npy")
    for done in (
        crf("--image", "a.png", "--probs", "p.npy", "--out", "m.png"),
        crf("--image", "images", "--probs", "probs", "--out", "masks", "--quiet"),
    ):
        assert done.code == 1 and done.printed.count("make -B setup") == 1 and "skipped" not in done.printed
    assert not Path("m.png").exists() and not list(Path().glob("masks/*.png"))


# Start-up and help


def test_help_shows_every_parameter_and_its_default() -> None:
    output = crf("--help").printed
    for word in ("--image", "--probs", "--labels", "--out", "--overlay", "--threads", "ahn-kwak-cam: 80.0"):
        assert word in output
    for field in dataclasses.fields(CRFParams):
        assert f"--{field.name.replace('_', '-')}" in output


def test_it_starts_without_torch_and_prefect(here: Path) -> None:
    code = (
        "import sys; from flows.cli.main import main; code = main(sys.argv[1:])\n"
        "print(code, sorted({'torch', 'prefect', 'pydantic', 'h5py', 'jinja2', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, "crf", "--image", "a.png", "--probs", "p.npy", "--out", "m.png"],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines()[-1] == "0 []"


# At test time in a flow


def test_the_flows_choices_are_off_and_the_named_sets() -> None:
    assert set(get_args(get_type_hints(CFSFlowParams)["crf"])) == {"off", *PRESETS}
    done = run_cfs(Path("nowhere"), "--dry-run", "--set", "params.crf=deeplab")
    assert done.code == 2 and "deeplab-v2" in done.printed


@pytest.fixture(scope="module")
def with_crf(tiny: Done, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The tiny run again, with a CRF at test time: the fit is cached, the student predicts again."""
    done = run_cfs(copy_of(tiny, tmp_path_factory.mktemp("crf") / "run"), "--set", "params.crf=ahn-kwak-cam")
    assert done.code == 0, done.printed
    return done


def test_student_and_student_with_crf_are_scored_and_shown(tiny: Done, with_crf: Done) -> None:
    assert with_crf.computed == {"grabcut": 0, "deeplab": 0, "student": 8, "student-shown": 8}
    scores = json.loads((with_crf.out / "scores.json").read_text())
    assert set(scores) == {"masks (train)", "student (val)", "student + CRF (val)"}
    before = json.loads((tiny.out / "scores.json").read_text())
    assert set(before) == {"masks (train)", "student (val)"}
    assert scores["student (val)"] == before["student (val)"], "the CRF changes nothing of the mask without it"
    assert scores["student + CRF (val)"] != scores["student (val)"]
    assert scores["student + CRF (val)"]["images"] == 8
    assert "student + CRF (val)" in (with_crf.out / "index.html").read_text()
    assert "student + CRF (val)" in with_crf.printed
    sheets = [cv2.imread(str(done.out / "contact_sheet.png")) for done in (tiny, with_crf)]
    assert sheets[1].shape[1] > sheets[0].shape[1], "one panel more in each row"


def test_score_compares_without_and_with(tiny: Done, with_crf: Done, tmp_path: Path) -> None:
    score_json = tmp_path / "scores.json"
    cache = str(with_crf.out / "cache")
    done = maskmill(tmp_path, "score", "--cache", cache, "--stage", "student", "--json", str(score_json))
    assert done.code == 0, done.printed
    assert f"run {with_crf.manifest['run']} student" in done.printed and "student, with CRF" in done.printed
    assert "mIoU without CRF" in done.printed
    written = json.loads(score_json.read_text())
    scores = json.loads((with_crf.out / "scores.json").read_text())
    assert written == {"scores": scores["student (val)"], "scores_crf": scores["student + CRF (val)"]}
    plain = maskmill(
        tmp_path, "score", "--cache", str(tiny.out / "cache"), "--stage", "student", "--json", str(score_json)
    )
    assert plain.code == 0 and "CRF" not in plain.printed and list(json.loads(score_json.read_text())) == ["scores"]


def test_export_hands_on_the_students_masks_with_the_crf(with_crf: Done, tmp_path: Path) -> None:
    cache = ("--cache", str(with_crf.out / "cache"))
    for name, options in (("crf", ("--crf",)), ("plain", ("--stage", "student"))):
        done = maskmill(tmp_path, "export", *cache, "--to", str(tmp_path / name), *options)
        assert done.code == 0, done.printed
    found = {name: tmp_path / name / DEVKIT / "SegmentationClass" for name in ("crf", "plain")}
    ids = sorted(path.name for path in found["crf"].iterdir())
    assert len(ids) == 8 and ids == sorted(path.name for path in found["plain"].iterdir())
    assert any((mask(found["crf"] / one) != mask(found["plain"] / one)).any() for one in ids)
    score_json = tmp_path / "scores.json"
    data = ("--data", f"voc:{demo_tree(with_crf)}", "--json", str(score_json))
    done = maskmill(tmp_path, "score", *cache, "--masks", str(found["crf"]), *data)
    assert done.code == 0, done.printed
    expected = json.loads((with_crf.out / "scores.json").read_text())["student + CRF (val)"]
    assert json.loads(score_json.read_text())["scores"]["miou"] == expected["miou"]


def test_export_says_where_there_are_no_masks_with_a_crf(tiny: Done, with_crf: Done, tmp_path: Path) -> None:
    for run, options, message in (
        (tiny, (), "its stage 'student' keeps no masks with a CRF; run it with --set params.crf=NAME"),
        (
            with_crf,
            ("--stage", "grabcut"),
            "its stage 'grabcut' keeps no masks with a CRF; name one that does with --stage: student, student-shown",
        ),
        (with_crf, ("--stage", "nothing"), "no map stage 'nothing'; it has grabcut, student, student-shown"),
    ):
        where = ("--cache", str(run.out / "cache"), "--to", str(tmp_path / "out"))
        done = maskmill(tmp_path, "export", *where, "--crf", *options)
        assert (done.code, message in done.printed) == (2, True), done.printed
        assert not (tmp_path / "out").exists()


def test_with_a_crf_the_same_stages_run(tiny: Done) -> None:
    """Inside the prediction, not a stage more: one inference gives both masks."""
    from flows.configure import configure, load
    from flows.run_flow import read_sets
    from tasks.engine.runner import Runner

    job = configure("cfs", None, "demo-tiny", ("params.crf=deeplab-v2",), {})
    options = dataclasses.replace(job.options, cache=str(tiny.out / "cache"))
    page, *_ = load("cfs")
    with Runner(options, planning=True) as run:
        page(run, read_sets(job.data, options), job.params)
    outputs = {handle.label: handle.stage.outputs for handle in run.handles if isinstance(handle, MapHandle)}
    assert list(outputs) == ["grabcut", "student", "student-shown"]
    assert outputs["student"] == outputs["student-shown"] == ("mask_hw", CRF_MASK)
