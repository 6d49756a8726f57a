"""What the dense energy loss refuses, and what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.crf.energy import dense_energy_loss


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    probs = torch.randn(2, 3, 6, 8, generator=random).softmax(dim=1)
    images = torch.randint(0, 256, (2, 3, 6, 8), generator=random).float()
    return probs, images, torch.randint(0, 2, (2, 6, 8), generator=random)


def test_these_inputs_are_good() -> None:
    assert dense_energy_loss(*_inputs(), backend="exact").isfinite()


def _refused(match: str, **changes: Any) -> None:
    probs, images, reliable = _inputs()
    arguments = {"probs_nkhw": probs, "images_n3hw": images, "reliability_nhw": reliable, "backend": "exact"} | changes
    with pytest.raises(ValueError, match=match):
        dense_energy_loss(**arguments)


def test_values_that_are_not_finite() -> None:
    for bad in (math.nan, math.inf):
        probs, images, _ = _inputs()
        probs[1, 2, 3, 4] = bad
        images[0, 0, 0, 0] = bad
        _refused("probabilities hold NaN or infinity", probs_nkhw=probs)
        _refused("images hold NaN or infinity", images_n3hw=images)


def test_values_that_are_something_else() -> None:
    probs, images, reliable = _inputs()
    _refused(r"no probabilities \(softmax\?\)", probs_nkhw=probs.log())
    _refused("no probabilities", probs_nkhw=probs * 0.5)
    _refused(r"RGB 0\.\.255 expected, not normalised", images_n3hw=(images - 120) / 60)
    _refused(r"masks hold 0 to 255: 0 and 1 expected", reliability_nhw=reliable * 255)
    _refused("masks hold 0 to 2", inside_nhw=reliable * 2)


def test_shapes_and_dtypes() -> None:
    probs, images, reliable = _inputs()
    _refused(r"probabilities \(N, K, H, W\) expected", probs_nkhw=probs[0])
    _refused("floating probabilities", probs_nkhw=probs.long())
    _refused(r"images \(2, 3, 6, 8\) expected .* got \(2, 6, 8, 3\)", images_n3hw=images.permute(0, 2, 3, 1))
    _refused(r"images \(2, 3, 6, 8\) expected", images_n3hw=images[:1])
    _refused("images uint8 or floating", images_n3hw=images.long())
    _refused(r"reliability \(2, 6, 8\) expected", reliability_nhw=reliable[:, :5])
    _refused(r"inside \(2, 6, 8\) expected", inside_nhw=reliable[0])
    _refused("one device expected", images_n3hw=images.to("meta"))
    _refused("nothing is left", probs_nkhw=probs[:0], images_n3hw=images[:0], reliability_nhw=reliable[:0])
    _refused("nothing is left", scale=0.1)


def test_options_out_of_range() -> None:
    _refused("sigma_xy must be above 0", sigma_xy=0.0)
    _refused("sigma_rgb must be above 0", sigma_rgb=math.nan)
    _refused(r"scale must lie in \(0, 1\]", scale=1.5)
    _refused("weight must be 0 or more", weight=-1.0)
    _refused("threads must be 1 or more", threads=0)
    _refused("backend", backend="nonsense")
