"""The losses, against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models.losses import cross_entropy, segmentation_loss, summed_loss
from models.resample import sample_labels


def test_cross_entropy_is_the_mean_over_decided_pixels() -> None:
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    labels = torch.tensor([[[0, 1], [255, 2]], [[255, 255], [1, 0]]], dtype=torch.uint8)
    terms = []
    for n in range(2):
        for y in range(2):
            for x in range(2):
                if labels[n, y, x] != 255:
                    pixel = logits[n, :, y, x].tolist()
                    total = math.log(sum(math.exp(v) for v in pixel))
                    terms.append(total - pixel[int(labels[n, y, x])])
    assert float(cross_entropy(logits, labels)) == pytest.approx(sum(terms) / 5, rel=1e-6)


@pytest.mark.parametrize("at", ["crop", "output"])
def test_all_undecided_is_zero_loss_and_zero_gradient(at: str) -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 16, 16), 255), at)  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and logits.grad.abs().max() == 0.0


def test_an_empty_batch_is_zero() -> None:
    assert segmentation_loss(torch.zeros(0, 3, 2, 2), torch.zeros(0, 16, 16, dtype=torch.long)).item() == 0.0


def test_loss_at_crop_upsamples_logits_and_loss_at_output_samples_labels() -> None:
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.randint(0, 3, (1, 32, 32))
    up = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmentation_loss(logits, labels, "crop"), F.cross_entropy(up, labels))
    # Each output cell covers 8 x 8 pixels; the one under its centre is at 4, 12, 20, 28.
    torch.testing.assert_close(
        segmentation_loss(logits, labels, "output"), F.cross_entropy(logits, labels[:, 4::8, 4::8])
    )


def test_sampled_labels_are_labels_that_were_there() -> None:
    labels = torch.tensor([[0, 255], [20, 0]], dtype=torch.uint8).repeat_interleave(33, 0).repeat_interleave(33, 1)
    sampled = sample_labels(labels[None], (7, 9))
    assert sampled.dtype == torch.uint8
    assert set(sampled.unique().tolist()) == {0, 20, 255}


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.full((1, 2, 300, 300), 0.0, dtype=torch.float16)
    loss = segmentation_loss(logits, torch.zeros(1, 300, 300, dtype=torch.long))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)


def test_multi_scale_outputs_each_have_a_loss() -> None:
    outputs = [torch.randn(1, 3, n, n) for n in (4, 4, 3, 2)]
    labels = torch.randint(0, 3, (1, 32, 32))
    torch.testing.assert_close(summed_loss(outputs, labels), sum(segmentation_loss(o, labels) for o in outputs))
