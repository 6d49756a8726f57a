"""Do cells lie where they are taken to lie, at any side, in training and at test time?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.deeplab import DeepLab
from models.normalise import IMAGENET
from models.resample import resize, whole_cells
from tasks.training.augment import Augmentation, augment


@pytest.mark.parametrize("sides", [(30, 45), (32, 48), (17, 16), (5, 300)])
def test_the_share_of_resized_maps_is_the_whole_ones_cut(sides: tuple[int, int]) -> None:
    """Brute force: the maps resized to the pixels that their cells cover, the rest cut off."""
    height, width = sides
    images, share = whole_cells(torch.rand(2, 3, height, width), 16)
    cells = (images.shape[2] // 16, images.shape[3] // 16)
    assert cells == (-(-height // 16), -(-width // 16)) and share == (height / images.shape[2], width / images.shape[3])
    maps = torch.rand(2, 4, *cells, requires_grad=True)
    expected = F.interpolate(maps, size=images.shape[2:], mode="bilinear", align_corners=False)[..., :height, :width]
    found = resize(maps, sides, share)
    assert torch.allclose(found, expected, atol=1e-5)
    (one,) = torch.autograd.grad(found.square().sum(), maps)
    (other,) = torch.autograd.grad(expected.square().sum(), maps)
    assert torch.allclose(one, other, atol=1e-3)


class Means(nn.Module):
    """A backbone whose cells are the means of the pixels that they cover: channel 0 of them is their place."""

    output_stride = 8

    def forward(self, images_nchw: Tensor) -> Tensor:
        return F.avg_pool2d(images_nchw, 8, ceil_mode=True)

    def cells(self, side: int) -> int:
        return -(-side // 8)


class Plain(nn.Identity):
    def forward(self, images_nchw: Tensor) -> Tensor:
        return images_nchw


@pytest.mark.parametrize("side", [64, 65, 68, 71])
def test_a_ramp_stays_where_it_is(side: int) -> None:
    """Pixel x has the value x: so has the answer at x, but for the halves of cells at the border."""
    network = DeepLab(Means(), Plain(), (), IMAGENET)  # type: ignore[arg-type]
    network.normalise = Plain()  # type: ignore[assignment]
    ramp = torch.arange(side).float().expand(1, 3, 40, side)
    found = network.logits(ramp, (40, side))[0, 0, 20]
    inner = slice(4, 8 * (side // 8) - 4)
    assert torch.allclose(found[inner], ramp[0, 0, 0, inner], atol=1e-3)
    stretched = resize(network(ramp), (40, side))[0, 0, 20]
    assert torch.allclose(stretched[inner], ramp[0, 0, 0, inner], atol=1e-3) is (side % 8 == 0)


def test_a_crop_is_padded_behind_to_whole_cells() -> None:
    image = torch.full((40, 50, 3), 9, dtype=torch.uint8).numpy()
    labels = {"labels": torch.ones(40, 50, dtype=torch.uint8).numpy()}
    drawn = augment(Augmentation(33, cell=8, fill_rgb=(1, 2, 3)).build(), image, labels, seed=3)
    assert drawn.image.shape == (3, 40, 40) and drawn.labels["labels"].shape == (40, 40)
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[:33, :33] = True
    assert torch.equal(drawn.inside, inside)
    assert torch.equal(drawn.labels["labels"] == 1, inside) and bool((drawn.labels["labels"][~inside] == 255).all())
    assert drawn.image[:, -1, -1].tolist() == [1, 2, 3] and bool((drawn.image[:, inside] == 9).all())
