"""Augmentation: image and labels stay together, labels are never interpolated, samples depend on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.training.augment import Augmentation, Augmented, augment


def pair(transform: Augmentation, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and one label map of a sample."""
    drawn = augment(transform.build(), image, {"mask": mask}, seed=seed)
    return drawn.image, drawn.labels["mask"]


def picture(height: int, width: int, labels: tuple[int, ...] = (0, 3, 20, 255)) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of labels, and an image whose red is the row, green the column, blue the label."""
    rng = np.random.default_rng(height * 1000 + width)
    blocks = rng.choice(labels, (height // 8 + 1, width // 8 + 1)).astype(np.uint8)
    mask = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, mask], -1).astype(np.uint8), mask


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 90), st.integers(5, 90), st.integers(16, 64), st.floats(0.3, 2.0), st.integers(0, 2**31))
def test_labels_are_never_interpolated_and_have_the_crops_size(
    height: int, width: int, crop: int, scale: float, seed: int
) -> None:
    image, mask = picture(height, width)
    out_image, out_mask = pair(Augmentation(crop, (scale * 0.9, scale)), image, mask, seed)
    assert out_image.shape == (3, crop, crop)
    assert out_mask.shape == (crop, crop)
    assert out_image.dtype == out_mask.dtype == torch.uint8
    assert set(out_mask.unique().tolist()) <= {0, 3, 20, 255}


def test_padding_is_undecided_and_the_whole_image_is_kept() -> None:
    image, mask = picture(10, 20, (1, 2))
    out_image, out_mask = pair(Augmentation(32, fill_rgb=(9, 8, 7)), image, mask, 0)
    assert (out_mask != 255).sum() == 10 * 20
    assert out_image[:, out_mask == 255].unique(dim=1).flatten().tolist() == [9, 8, 7]


def test_without_scale_image_and_labels_move_together() -> None:
    image, mask = picture(60, 70)
    for seed in range(6):
        out_image, out_mask = pair(Augmentation(40), image, mask, seed)
        assert torch.equal(out_image[2], out_mask)
        rows, columns = out_image[0].long(), out_image[1].long()
        assert torch.equal(torch.from_numpy(mask)[rows, columns], out_mask)


@pytest.mark.parametrize("factor", [0.6, 1.4, 2.0])
def test_scaled_labels_lie_where_the_scaled_image_lies(factor: float) -> None:
    y, x = np.mgrid[:80, :80]
    image = np.stack([y, x, 0 * x], -1).astype(np.uint8)
    for axis in (0, 1):
        mask = (image[..., axis] >= 40).astype(np.uint8)
        side = round(80 * factor)
        out_image, out_mask = pair(Augmentation(side, (factor, factor), flip=False), image, mask, 3)
        # The label changes between 39 and 40, whose edge lies at 39.5 on the image's ramp.
        ramp = out_image[axis].float()
        assert ramp[out_mask == 1].min() >= 39.5 - 0.51 / factor - 0.5
        assert ramp[out_mask == 0].max() <= 39.5 + 0.51 / factor + 0.5
        assert abs(float(out_mask.float().mean()) - 0.5) <= 0.5 / side + 1e-6


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone() -> None:
    image, mask = picture(70, 80)
    transform = Augmentation(32, (0.5, 1.5))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = pair(transform, image, mask, 11)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    again = pair(transform, image, mask, 11)
    other = pair(transform, image, mask, 12)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_every_second_sample_is_mirrored_and_scales_fill_their_range() -> None:
    image, mask = picture(64, 64)
    out = [pair(Augmentation(64), image, mask, seed)[0] for seed in range(100)]
    mirrored = sum(int(sample[1, 0, 0]) > int(sample[1, 0, -1]) for sample in out)
    assert 30 < mirrored < 70
    sizes = [
        int((pair(Augmentation(128, (0.5, 1.5)), image, np.zeros_like(mask), s)[1] == 0).sum()) ** 0.5
        for s in range(60)
    ]
    assert 32 <= min(sizes) < 40 and 88 < max(sizes) <= 96


def test_colours_change_the_image_and_never_the_labels() -> None:
    image, mask = picture(40, 40)
    plain = pair(Augmentation(40, flip=False), image, mask, 4)
    coloured = pair(Augmentation(40, flip=False, colour=0.4), image, mask, 4)
    assert not torch.equal(plain[0], coloured[0])
    assert torch.equal(plain[1], coloured[1])


def test_sizes_that_differ_are_named() -> None:
    image = np.zeros((6, 5, 3), np.uint8)
    for labels, soft in (({"mask": np.zeros((5, 6), np.uint8)}, {}), ({}, {"mask": np.zeros((2, 5, 6))})):
        with pytest.raises(ValueError, match=r"^mask is \(5, 6\), its image \(6, 5\)"):
            augment(Augmentation(16).build(), image, labels, soft, seed=0)


def many(seed: int, side: int = 48, scale: tuple[float, float] = (0.6, 1.3)) -> Augmented:
    """Two label maps and two soft maps of one picture, all of which show where they are from."""
    image, mask = picture(60, 40)
    y, x = np.mgrid[:60, :40].astype(np.float32)
    transform = Augmentation(side, scale, colour=0.4).build()
    labels = {"mask": mask, "rows": y.astype(np.uint8)}
    return augment(transform, image, labels, {"edges": x / 40, "probs": np.stack([y, x]).astype(np.float16)}, seed=seed)


def test_every_map_sees_the_same_draw_whichever_others_there_are() -> None:
    image, mask = picture(60, 40)
    for seed in range(8):
        drawn = many(seed)
        alone = augment(Augmentation(48, (0.6, 1.3), colour=0.4).build(), image, {"mask": mask}, seed=seed)
        assert torch.equal(alone.image, drawn.image) and torch.equal(alone.labels["mask"], drawn.labels["mask"])
        assert torch.equal(alone.inside, drawn.inside)
        assert drawn.soft["edges"].shape == (48, 48) and drawn.soft["probs"].shape == (2, 48, 48)
        assert drawn.soft["edges"].dtype == drawn.soft["probs"].dtype == torch.float32
        # What a soft map says of a pixel's place is what the label map says of it, to a pixel of the source.
        at = drawn.inside
        assert float((drawn.soft["probs"][0] - drawn.labels["rows"].float())[at].abs().max()) <= 1.0
        torch.testing.assert_close(drawn.soft["edges"] * 40, drawn.soft["probs"][1], rtol=1e-4, atol=0.02)


def test_soft_maps_are_interpolated_and_have_no_colours() -> None:
    soft = {"edges": np.repeat(np.float32([[0.0, 1.0]]), 20, 1).repeat(40, 0)}
    image = np.zeros((40, 40, 3), np.uint8)
    same = augment(Augmentation(40, flip=False, colour=0.9).build(), image, {}, soft, seed=1)
    assert np.array_equal(same.soft["edges"].numpy(), soft["edges"])
    drawn = augment(Augmentation(60, (1.5, 1.5), flip=False).build(), image, {}, soft, seed=1)
    values = drawn.soft["edges"].unique()
    assert float(values.min()) >= 0.0 and float(values.max()) <= 1.0 and len(values) > 2
    assert float(drawn.soft["edges"].mean()) == pytest.approx(0.5, abs=1e-3)


def test_inside_is_the_picture_and_not_the_padding_even_where_labels_are_undecided() -> None:
    image = np.zeros((20, 10, 3), np.uint8)
    undecided = np.full((20, 10), 255, np.uint8)
    drawn = augment(Augmentation(32).build(), image, {"mask": undecided}, {"edges": np.ones((20, 10))}, seed=2)
    assert drawn.inside.dtype == torch.bool and int(drawn.inside.sum()) == 200
    assert torch.equal(drawn.soft["edges"] == 1.0, drawn.inside) and bool(
        (drawn.soft["edges"][~drawn.inside] == 0).all()
    )
    assert bool((drawn.labels["mask"] == 255).all())
    bare = augment(Augmentation(32).build(), image, seed=2)
    assert bare.labels == bare.soft == {} and torch.equal(bare.inside, drawn.inside)
