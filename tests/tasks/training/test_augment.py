"""Augmentation: image and labels stay together, labels are never interpolated, samples depend on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.training.augment import Augmentation, augment


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
    out_image, out_mask = augment(Augmentation(crop, (scale * 0.9, scale)).build(), image, mask, seed)
    assert out_image.shape == (3, crop, crop)
    assert out_mask.shape == (crop, crop)
    assert out_image.dtype == out_mask.dtype == torch.uint8
    assert set(out_mask.unique().tolist()) <= {0, 3, 20, 255}


def test_padding_is_undecided_and_the_whole_image_is_kept() -> None:
    image, mask = picture(10, 20, (1, 2))
    out_image, out_mask = augment(Augmentation(32, fill_rgb=(9, 8, 7)).build(), image, mask, 0)
    assert (out_mask != 255).sum() == 10 * 20
    assert out_image[:, out_mask == 255].unique(dim=1).flatten().tolist() == [9, 8, 7]


def test_without_scale_image_and_labels_move_together() -> None:
    image, mask = picture(60, 70)
    for seed in range(6):
        out_image, out_mask = augment(Augmentation(40).build(), image, mask, seed)
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
        out_image, out_mask = augment(Augmentation(side, (factor, factor), flip=False).build(), image, mask, 3)
        # The label changes between 39 and 40, whose edge lies at 39.5 on the image's ramp.
        ramp = out_image[axis].float()
        assert ramp[out_mask == 1].min() >= 39.5 - 0.51 / factor - 0.5
        assert ramp[out_mask == 0].max() <= 39.5 + 0.51 / factor + 0.5
        assert abs(float(out_mask.float().mean()) - 0.5) <= 0.5 / side + 1e-6


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone() -> None:
    image, mask = picture(70, 80)
    transform = Augmentation(32, (0.5, 1.5)).build()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = augment(transform, image, mask, 11)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    again = augment(transform, image, mask, 11)
    other = augment(transform, image, mask, 12)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_every_second_sample_is_mirrored_and_scales_fill_their_range() -> None:
    image, mask = picture(64, 64)
    out = [augment(Augmentation(64).build(), image, mask, seed)[0] for seed in range(100)]
    mirrored = sum(int(sample[1, 0, 0]) > int(sample[1, 0, -1]) for sample in out)
    assert 30 < mirrored < 70
    sizes = [
        int((augment(Augmentation(128, (0.5, 1.5)).build(), image, np.zeros_like(mask), s)[1] == 0).sum()) ** 0.5
        for s in range(60)
    ]
    assert 32 <= min(sizes) < 40 and 88 < max(sizes) <= 96


def test_colours_change_the_image_and_never_the_labels() -> None:
    image, mask = picture(40, 40)
    plain = augment(Augmentation(40, flip=False).build(), image, mask, 4)
    coloured = augment(Augmentation(40, flip=False, colour=0.4).build(), image, mask, 4)
    assert not torch.equal(plain[0], coloured[0])
    assert torch.equal(plain[1], coloured[1])


def test_sizes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(5, 6\).*\(6, 5\)"):
        augment(Augmentation(16).build(), np.zeros((6, 5, 3), np.uint8), np.zeros((5, 6), np.uint8), 0)
