"""Does ``maskmill crf`` refuse what cannot be meant, say what it has lost, and take boxes as they are?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from crf_pictures import cam_like, scene
from flow_runs import Done, maskmill, run_cfs
from PIL import Image

from artifacts.datasets.voc_writer import write_annotation, write_class_mask, write_image_set
from tasks.crf.dense_crf import PRESETS, dense_crf
from tasks.crf.unary import from_box_prior


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``a.png`` 30 x 40, and the probabilities that fit it."""
    monkeypatch.chdir(tmp_path)
    image, labels = scene(30, 40, 1)
    Image.fromarray(image).save("a.png")
    np.save("good.npy", np.exp(-cam_like(labels)))
    return tmp_path


def crf(*arguments: str) -> Done:
    return maskmill(Path(), "crf", "--image", "a.png", "--out", "m.png", *arguments)


def mask(path: str = "m.png") -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.transpose(0, 2, 1), "transposed? array.transpose(0, 2, 1)"),
        (lambda p: p.transpose(0, 2, 1)[:, ::2, ::2], "transposed? array.transpose(0, 2, 1)"),
        (lambda p: p.transpose(1, 2, 0), "labels last? array.transpose(2, 0, 1)"),
        (lambda p: p.transpose(2, 1, 0), "labels last and transposed? array.transpose(2, 1, 0)"),
        (lambda p: p[None], "array[0] takes off the batch axis"),
        (lambda p: np.stack([p, p]), "one array an image: array[i]"),
        (lambda p: p[1], "np.stack([1 - array, array])"),
        (lambda p: p[1:2], "np.concatenate([1 - array, array])"),
        (lambda p: np.stack([p[0] * 0 + 0.9, p[1] * 0 + 0.8]), "do not sum to 1 (but to 1.7..1.7)"),
    ],
)
def test_arrays_that_cannot_be_meant_are_refused(here: Path, change: object, message: str) -> None:
    np.save("p.npy", change(np.load("good.npy")))  # type: ignore[operator]
    done = crf("--probs", "p.npy")
    assert (done.code, message in done.printed) == (2, True), done.printed
    assert "p.npy" in done.printed and not Path("m.png").exists()
    assert crf("--probs", "good.npy").code == 0


def test_what_does_not_sum_to_1_is_divided_or_kept_where_it_is_asked_for(here: Path) -> None:
    good = np.load("good.npy")
    sigmoid = good * np.random.default_rng(0).uniform(0.2, 0.9, good.shape[1:])
    np.save("p.npy", sigmoid)
    assert crf("--probs", "p.npy", "--sums", "divide", "--marginals", "q.npy").code == 0
    assert crf("--probs", "good.npy", "--marginals", "r.npy").code == 0
    np.testing.assert_allclose(np.load("q.npy"), np.load("r.npy"), atol=1e-3)
    assert crf("--probs", "p.npy", "--sums", "keep").code == 0
    np.save("p.npy", np.zeros((3, 30, 40)))
    assert crf("--probs", "p.npy", "--sums", "divide", "--iterations", "0", "--marginals", "q.npy").code == 0
    np.testing.assert_allclose(np.load("q.npy"), 1 / 3)


@pytest.mark.parametrize(("orientation", "turn"), [(6, "np.rot90(array, -1, axes=(1, 2))"), (8, "np.rot90(array, 1")])
def test_probabilities_of_the_picture_as_stored_are_refused_where_exif_turns_it(
    here: Path, orientation: int, turn: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open("a.png").save("a.png", exif=exif)
    done = crf("--probs", "good.npy")
    assert (done.code, turn in done.printed) == (2, True), done.printed
    np.save("p.npy", np.rot90(np.load("good.npy"), -1 if orientation == 6 else 1, axes=(1, 2)))
    assert crf("--probs", "p.npy").code == 0 and mask().shape == (40, 30)


def test_a_picture_upside_down_is_told(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open("a.png").save("a.png", exif=exif)
    assert crf("--probs", "good.npy").code == 0
    assert "a.png is shown turned (EXIF orientation 3): good.npy must be of the picture as it is shown" in caplog.text


def exif_turned(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open("a.png").save("a.png", exif=exif)


def test_labels_of_the_picture_as_stored_are_refused_or_told(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    rough = np.zeros((30, 40), np.uint8)
    rough[8:22, 8:30] = 1
    write_class_mask(Path("rough.png"), rough)
    exif_turned(6)
    done = crf("--labels", "rough.png")
    assert done.code == 2 and "EXIF orientation 6): turn it, too: np.rot90(array, -1)" in done.printed, done.printed
    write_class_mask(Path("turned.png"), np.rot90(rough, -1))
    assert crf("--labels", "turned.png").code == 0 and mask().shape == (40, 30) and "shown turned" not in caplog.text
    exif_turned(3)
    assert crf("--labels", "rough.png").code == 0 and "rough.png must be of the picture as it is shown" in caplog.text


def test_boxes_that_do_not_lie_in_the_picture(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A picture of 40 x 30 pixels; turned it is shown with 30 x 40."""
    Path("boxes.csv").write_text("image,class,x0,y0,x1,y1\nfolder\\A.png,cat,31,3,40,20\n")
    assert crf("--boxes", "boxes.csv").code == 0 and set(np.unique(mask())) == {0, 1} and not caplog.text
    exif_turned(6)
    done = crf("--boxes", "boxes.csv")
    said = "31,3,40,20 of a.png (30 x 40 pixels) lies outside of it; it is shown turned (EXIF orientation 6)"
    assert (done.code, said in done.printed) == (2, True), done.printed
    Path("boxes.csv").write_text("image,class,x0,y0,x1,y1\na.png,cat,3,3,20,20\n")
    assert crf("--boxes", "boxes.csv").code == 0 and "boxes.csv must hold its boxes as shown" in caplog.text
    Path("boxes.csv").write_text("image,class,x0,y0,x1,y1\na.png,cat,3,3,33,20\n")
    assert crf("--boxes", "boxes.csv").code == 0 and "sticks out by more than a pixel, clipped" in caplog.text
    Path("boxes.csv").write_text("image,class,x0,y0,x1,y1\na.png,cat,.1,.1,.4,.6\n")
    done = crf("--boxes", "boxes.csv")
    assert done.code == 2 and "shares of its size? Give pixels" in done.printed


def test_one_label_beside_255_is_refused(here: Path) -> None:
    for known, hint in ((0, True), (7, True), (None, False)):
        rough = np.full((30, 40), 3 if known is None else known, np.uint8)
        rough[10:20, 10:20] = 3 if known is None else 255
        write_class_mask(Path("rough.png"), rough)
        done = crf("--labels", "rough.png")
        assert done.code == 2 and "holds one label" in done.printed and ("255 means unknown" in done.printed) == hint


def test_the_default_keeps_two_labels_and_a_gt_prob_that_says_nothing_is_refused(here: Path) -> None:
    rough = np.zeros((30, 40), np.uint8)
    rough[8:22, 8:30] = 1
    Image.fromarray(np.where(rough[..., None] == 1, 200, 40).astype(np.uint8).repeat(3, 2)).save("a.png")
    write_class_mask(Path("rough.png"), rough)
    assert crf("--labels", "rough.png", "--preset", "deeplab-v2").code == 0
    assert (mask() == rough).mean() > 0.98
    done = crf("--labels", "rough.png", "--gt-prob", "0.5")
    assert done.code == 2 and "no likelier than the others; give more than 0.5, or leave it out" in done.printed


def test_a_mask_that_lost_every_label_of_its_input_says_so(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    rough = np.zeros((30, 40), np.uint8)
    rough[4:6, 4:6] = 3
    Image.new("RGB", (40, 30)).save("a.png")
    write_class_mask(Path("rough.png"), rough)
    assert crf("--labels", "rough.png", "--gt-prob", "0.6").code == 0 and not mask().any()
    assert "a.png: the mask has lost every label of the input (3): all is 0" in caplog.text
    caplog.clear()
    assert crf("--labels", "rough.png", "--iterations", "0").code == 0 and mask().any()
    assert "lost" not in caplog.text


# -- boxes -----------------------------------------------------------------------------------------------------------

BOXES = {"cat": (1, 3, 3, 20, 20), "ant": (2, 15, 10, 38, 28)}
TABLE = "image,class,x0,y0,x1,y1\na.png,cat,3,3,20,20\na.png,ant,15,10,38,28\n"


def expected(core: float = 0.2) -> np.ndarray:
    """ant is 1 and cat is 2 where names are sorted."""
    image = np.asarray(Image.open("a.png"))
    unary = from_box_prior([(3, 3, 20, 20), (15, 10, 38, 28)], [2, 1], (30, 40), 2, core)
    return dense_crf(image, unary, PRESETS["bbox-seg"]).argmax(0)


def test_boxes_of_a_picture_of_a_folder_and_of_a_data_set_give_one_mask(here: Path) -> None:
    Path("boxes.csv").write_text(TABLE)
    done = crf("--boxes", "boxes.csv")
    assert done.code == 0 and "classes: 0 background, 1 ant, 2 cat" in done.printed
    np.testing.assert_array_equal(mask(), expected())
    assert set(np.unique(mask())) == {0, 1, 2}
    assert crf("--boxes", "boxes.csv", "--core", "0").code == 0
    np.testing.assert_array_equal(mask(), expected(0))

    Path("images").mkdir()
    Path("a.png").rename("images/a.png")
    Image.new("RGB", (9, 9)).save("images/unlisted.png")
    Path("boxes.csv").write_text(TABLE + "nobody.png,cat,1,1,2,2\n")
    done = maskmill(Path(), "crf", "--image", "images", "--boxes", "boxes.csv", "--out", "masks", "--quiet")
    Path("images/a.png").rename("a.png")
    assert done.code == 3 and "no line in boxes.csv" in done.printed and "nobody.png: no picture" in done.printed
    np.testing.assert_array_equal(mask("masks/a.png"), expected())
    Path("images/unlisted.png").unlink()

    for source in ("images", "folder:images"):
        Path("images/boxes.csv").write_text(TABLE)
        Image.open("a.png").save("images/a.png")
        done = maskmill(Path(), "crf", "--boxes", source, "--out", "of-set", "--quiet")
        assert done.code == 0, done.printed
        np.testing.assert_array_equal(mask("of-set/a.png"), expected())


def test_boxes_of_a_voc_tree_by_split(here: Path) -> None:
    tree = here / "pets"
    (tree / "JPEGImages").mkdir(parents=True)
    for name in ("x", "y"):
        Image.open("a.png").save(tree / f"JPEGImages/{name}.png")
        objects = [(label, tuple(map(float, box[1:])), False) for label, box in BOXES.items()]
        write_annotation(tree / f"Annotations/{name}.xml", f"{name}.png", (30, 40), objects)  # type: ignore[arg-type]
        write_image_set(tree / f"ImageSets/Segmentation/{'train' if name == 'x' else 'val'}.txt", [name])
    done = maskmill(Path(), "crf", "--boxes", f"voc:{tree}", "--split", "val", "--out", "masks", "--quiet")
    assert done.code == 0 and [path.name for path in Path("masks").iterdir()] == ["y.png"]
    assert set(np.unique(mask("masks/y.png"))) == {0, 1, 2}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "--boxes boxes.csv: no such file"),
        ("image,class,x0,y0,x1,y1\nb.png,cat,1,1,2,2\n", "no line names a.png"),
        ("image,class,x0,y0,x1,y1\na.png,cat,1,1,one,2\n", "boxes.csv:2: could not convert"),
        ("image,class,x0,y0,x1,y1\na.png,cat,5,1,2,2\n", "boxes.csv:2: 5,1,2,2 is no box"),
        ("image,class,x0,y0,x1,y1\na.png,cat,nan,1,2,2\n", "is no box"),
        ("image,class,x0,y0,x1,y1\na.png,cat,1\n", "3 cells"),
        ("name,class,x0,y0,x1,y1\n", "no column image"),
    ],
)
def test_a_table_that_is_no_table_of_boxes(here: Path, table: str | None, message: str) -> None:
    if table is not None:
        Path("boxes.csv").write_text(table)
    done = crf("--boxes", "boxes.csv")
    assert (done.code, message in done.printed) == (2, True), done.printed
    assert not Path("m.png").exists()


def test_the_crf_of_boxes_as_proposals_of_the_flow(tmp_path: Path) -> None:
    sets = ("--set", "params.proposals=box-crf", "--until", "crf-boxes")
    done = run_cfs(tmp_path / "run", *sets)
    assert (done.code, done.computed) == (0, {"crf-boxes": 24}), done.printed
    assert "masks (train)" in done.stdout
