"""LGSA's equations against sums written out, W in pieces against W whole, and what is kept in memory."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import lgsa


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def embeddings(batch: int = 2, channels: int = 3, pixels: int = 12) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(batch, channels, pixels, dtype=torch.float64, requires_grad=True),
        torch.randn(batch, channels, pixels, dtype=torch.float64, requires_grad=True),
    )


def target_by_hand(labels: list[int]) -> Tensor:
    """W_gt by equation 6 and the sentence after it; undecided pixels left out."""
    n = len(labels)
    w = [[float(labels[i] == labels[j] != 255) for j in range(n)] for i in range(n)]
    sums = [sum(w[i][j] for i in range(n)) for j in range(n)]
    return torch.tensor(
        [[w[i][j] / sums[j] if sums[j] else 0.0 for j in range(n)] for i in range(n)], dtype=torch.float64
    )


def target(labels_bn: Tensor) -> Tensor:
    return lgsa.target_affinity(labels_bn, lgsa.class_share(labels_bn))


def naive_loss(weights_bnn: Tensor, labels_bn: Tensor) -> Tensor:
    """Equation 7 with N x N matrices and autograd."""
    batch, n = labels_bn.shape
    total = torch.zeros((), dtype=weights_bnn.dtype)
    for b in range(batch):
        valid = (labels_bn[b] != 255).to(weights_bnn.dtype)
        error = (weights_bnn[b] - target_by_hand(labels_bn[b].tolist())) ** 2
        total = total + (error * valid[:, None] * valid[None, :]).sum() / n**2
    return total / batch


label_maps = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 20, 255]), min_size=6, max_size=6), min_size=1, max_size=3
).map(torch.tensor)


# Equation 4


def test_equation_4_by_hand() -> None:
    theta, phi = embeddings(1, 2, 3)
    w = lgsa.affinity(theta, phi).detach()
    for i in range(3):
        powers = [math.exp(sum(theta[0, c, i].item() * phi[0, c, j].item() for c in range(2))) for j in range(3)]
        for j in range(3):
            assert float(w[0, i, j]) == pytest.approx(powers[j] / sum(powers))


def test_rows_of_w_sum_to_1_and_columns_need_not() -> None:
    w = lgsa.affinity(*embeddings())
    torch.testing.assert_close(w.sum(2), torch.ones_like(w[:, :, 0]))
    assert (w.sum(1) - 1).abs().max() > 0.1


def test_one_row_is_the_same_row() -> None:
    theta, phi = embeddings()
    for pixel in (0, 7, 11):
        torch.testing.assert_close(lgsa.attention_row(theta, phi, pixel), lgsa.affinity(theta, phi)[:, pixel])


# Equations 5 and 8


def test_reweighting_by_hand_goes_from_the_last_index_to_the_first() -> None:
    w = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.25, 0.25, 0.5]]])
    values = torch.tensor([[[4.0, 8.0, 16.0]]])
    assert lgsa.reweight(w, values).tolist() == [[[8.0, 12.0, 11.0]]]


def test_the_walk_fixes_constant_maps_and_keeps_distributions() -> None:
    w = lgsa.make_affinity(*embeddings(2, 3, 12))
    constant = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).view(1, 3, 1, 1).expand(2, 3, 3, 4)
    torch.testing.assert_close(lgsa.random_walk(w, constant), constant)
    segments = torch.randn(2, 3, 3, 4, dtype=torch.float64).mul(5).softmax(1)
    walked = lgsa.random_walk(w, segments)
    torch.testing.assert_close(walked.sum(1), torch.ones(2, 3, 4, dtype=torch.float64))
    assert walked.min() >= 0
    assert (walked - segments).abs().max() > 0.05


def test_the_walk_keeps_each_pixel_at_its_place() -> None:
    """With a W that takes from the right neighbour, the map moves left by one, row-major."""
    n = 6
    shift = torch.full((n, n), -1e4).index_put((torch.arange(n), (torch.arange(n) + 1) % n), torch.tensor(1e4))
    w = lgsa.make_affinity(torch.eye(n)[None], shift.t().contiguous()[None].transpose(1, 2).contiguous())
    segments = torch.arange(6.0).view(1, 1, 2, 3)
    assert lgsa.random_walk(w, segments).tolist() == [[[[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]]]


def test_a_module_starts_as_the_identity_and_is_equation_5_afterwards() -> None:
    module = lgsa.SelfAttention(6, 4).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    assert torch.equal(module(x).features_bchw, x)
    nn.init.normal_(module.h.weight)
    nn.init.normal_(module.h.bias)  # type: ignore[arg-type]
    flat = x.flatten(2)

    def linear(layer: nn.Conv2d, values: Tensor) -> Tensor:
        assert layer.bias is not None
        return torch.einsum("oc,bcn->bon", layer.weight[:, :, 0, 0], values) + layer.bias[:, None]

    logits = torch.einsum("bcn,bcm->bnm", linear(module.theta, flat), linear(module.phi, flat))
    mixed = torch.einsum("bnm,bcm->bcn", logits.exp() / logits.exp().sum(2, keepdim=True), linear(module.g, flat))
    torch.testing.assert_close(module(x).features_bchw, (linear(module.h, mixed) + flat).view_as(x))


# Equation 6


def test_w_gt_of_a_2_by_2_map_by_hand() -> None:
    # 0 1
    # 1 1
    w_gt = target(torch.tensor([[0, 1, 1, 1]]))
    third = 1 / 3
    expected = [[1, 0, 0, 0], [0, third, third, third], [0, third, third, third], [0, third, third, third]]
    torch.testing.assert_close(w_gt[0], torch.tensor(expected))


@given(label_maps)
def test_w_gt_is_equation_6_and_its_rows_and_columns_both_sum_to_1(labels: Tensor) -> None:
    w_gt = target(labels).double()
    for b, row in enumerate(labels.tolist()):
        torch.testing.assert_close(w_gt[b], target_by_hand(row), rtol=1e-6, atol=1e-7)
    decided = (labels != 255).double()
    torch.testing.assert_close(w_gt.sum(1), decided, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(w_gt.sum(2), decided, rtol=1e-6, atol=1e-6)


def test_shares_count_each_image_alone() -> None:
    shares = lgsa.class_share(torch.tensor([[0, 0, 1, 255], [1, 1, 1, 1]], dtype=torch.uint8))
    assert shares.tolist() == [[0.5, 0.5, 1.0, 0.0], [0.25] * 4]


# Equation 7


def attention_loss(weights: Tensor, labels: Tensor) -> Tensor:
    return lgsa.attention_loss(weights, labels, lgsa.class_share(labels).double())


@settings(max_examples=30, deadline=None)
@given(label_maps)
def test_the_loss_and_its_gradient_are_the_naive_formulas(labels: Tensor) -> None:
    weights = torch.rand(*labels.shape, labels.shape[1], dtype=torch.float64).softmax(-1).requires_grad_()
    ours, naive = attention_loss(weights, labels), naive_loss(weights, labels)
    torch.testing.assert_close(ours, naive, rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad(3 * ours, weights)
    (expected,) = torch.autograd.grad(3 * naive, weights)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_the_loss_is_0_at_w_gt_alone() -> None:
    labels = torch.tensor([[0, 1, 1, 0]])
    assert attention_loss(target(labels).double(), labels).item() == 0.0
    assert attention_loss(torch.full((1, 4, 4), 0.25, dtype=torch.float64), labels).item() == pytest.approx(0.0625)


def test_undecided_pixels_take_no_part_in_the_loss() -> None:
    labels = torch.tensor([[0, 1, 255, 0]])
    weights = torch.rand(1, 4, 4, dtype=torch.float64).requires_grad_()
    loss = attention_loss(weights, labels)
    loss.backward()
    assert weights.grad is not None
    assert weights.grad[0, 2].abs().sum() == weights.grad[0, :, 2].abs().sum() == 0
    assert (weights.grad[0, :2, :2] != 0).all()
    changed = weights.detach().clone()
    changed[0, 2], changed[0, :, 2] = 9.0, 9.0
    assert attention_loss(changed, labels).item() == loss.item()
    assert attention_loss(weights, torch.full((1, 4), 255)).item() == 0.0


def test_alpha_belongs_to_the_papers_grid() -> None:
    assert lgsa.effective_alpha(5_000.0, 41 * 41) == 5_000.0
    assert lgsa.effective_alpha(1.0, 65 * 65) == pytest.approx((4225 / 1681) ** 2)
    # The same error a pixel pair, on a map with every pixel doubled in both directions: the product stays.
    labels = torch.tensor([[0, 1]])
    doubled = labels.repeat_interleave(4, 1)
    products = []
    for each in (labels, doubled):
        n = each.shape[1]
        w = torch.full((1, n, n), 1 / n, dtype=torch.float64)
        products.append(float(attention_loss(w, each)) * lgsa.effective_alpha(1.0, n))
    assert products[0] == pytest.approx(products[1])


# Equations 9 and 10


def test_equation_9_by_hand_with_its_floor() -> None:
    p = torch.tensor([[0.25, 0.0, 0.5, 0.1], [0.75, 1.0, 0.5, 0.9]]).view(1, 2, 2, 2)
    labels = torch.tensor([[[1, 0], [255, 0]]])
    expected = -(math.log(0.75 + 1e-7) + math.log(1e-7) + math.log(0.1 + 1e-7)) / 3
    assert float(lgsa.walked_cross_entropy(p, labels)) == pytest.approx(expected, rel=1e-6)
    assert lgsa.walked_cross_entropy(p, torch.full((1, 2, 2), 255)).item() == 0.0
    assert float(lgsa.walked_cross_entropy(p.half(), labels)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("p", [0.0, 1e-12, 1e-8])
def test_a_class_without_probability_still_learns(p: float) -> None:
    probabilities = torch.tensor([1 - p, p]).view(1, 2, 1, 1).requires_grad_()
    lgsa.walked_cross_entropy(probabilities, torch.ones(1, 1, 1, dtype=torch.uint8)).backward()
    assert probabilities.grad is not None
    assert probabilities.grad.flatten().tolist() == pytest.approx([0.0, -1 / (p + 1e-7)], rel=1e-5)


def test_equation_10() -> None:
    assert lgsa.total_loss(torch.tensor(2.0), torch.tensor(0.5), 10.0).item() == 7.0


# W in pieces


@pytest.mark.parametrize("piece", [1, 40, 100])
@pytest.mark.parametrize("guided", [True, False])
def test_pieces_of_w_give_what_the_whole_gives_and_its_gradients(piece: int, guided: bool) -> None:
    theta, phi = embeddings(2, 3, 12)
    values = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 12)) if guided else None
    if labels is not None:
        labels[0, 3] = 255
    weight = torch.randn(2, 5, 12, dtype=torch.float64)
    results = []
    for size in (10**9, piece):
        w = lgsa.make_affinity(theta, phi, size)
        assert (w.whole_bnn is None) is (size == piece)
        out, loss = lgsa.attend(w, values, labels, size)
        gradients = torch.autograd.grad((out * weight).sum() + 7 * loss, (theta, phi, values))
        results.append((out, loss, *gradients))
    for whole, pieced in zip(*results, strict=True):
        torch.testing.assert_close(pieced, whole)
    if labels is not None:
        torch.testing.assert_close(results[1][1], naive_loss(lgsa.affinity(theta, phi), labels), rtol=1e-6, atol=1e-9)


def test_half_precision_is_attended_in_float32() -> None:
    theta, phi = (e.detach().half() for e in embeddings())
    w = lgsa.make_affinity(theta, phi)
    assert w.whole_bnn is not None and w.whole_bnn.dtype == torch.float32
    assert lgsa.attend(w, theta)[0].dtype == torch.float32
    assert lgsa.attention_row(theta, phi, 0).dtype == torch.float32


class Memory(TorchDispatchMode):
    """Bytes of living tensors that were made inside, their peak, and the largest of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._living: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._living:
            return
        self._living.add(storage._cdata)
        size = storage.nbytes()
        self.now += size
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)
        weakref.finalize(storage, self._free, storage._cdata, size)

    def _free(self, key: int, size: int) -> None:
        self._living.discard(key)
        self.now -= size


@pytest.mark.parametrize(("side", "whole", "peak_gb"), [(41, True, 0.79), (65, False, 1.7)])
def test_a_modules_memory_at_the_papers_batch(side: int, whole: bool, peak_gb: float) -> None:
    """ResNet-101's features, batch 10, counted on tensors without storage: W is kept at 41 x 41, not at 65 x 65."""
    with FakeTensorMode():
        module = lgsa.SelfAttention(2048, 512)
        x = torch.empty(10, 2048, side, side, requires_grad=True)
        labels = torch.zeros(10, side * side, dtype=torch.uint8)
        with Memory() as memory:
            result = module(x, labels)
            held = memory.now
            (result.features_bchw.sum() + result.attention).backward()
    pixels = side**2
    # Z, then theta, phi, g and W g(X), then W.
    assert held == pytest.approx(4 * 10 * pixels * (2048 + 4 * 512 + (pixels if whole else 0)), rel=0.01)
    assert memory.peak <= peak_gb * 1e9
    assert memory.largest <= max(4 * lgsa.PIECE, 4 * 10 * 2048 * pixels)
