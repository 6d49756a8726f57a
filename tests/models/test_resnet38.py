"""Wide ResNet-38: is it the papers' network, and does the usual checkpoint fit it? At full size without numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models import deeplab, resnet38
from models.backbones import FrozenBatchNorm2d, convolutions
from models.groups import parameter_groups
from models.resnet38 import Bottleneck, ResNet38Backbone, Unit


@pytest.fixture(scope="module")
def full() -> ResNet38Backbone:
    with torch.device("meta"):
        return ResNet38Backbone()


def test_it_has_the_papers_convolution_weights_and_no_trained_norm(full: ResNet38Backbone) -> None:
    assert sum(convolution.weight.numel() for convolution in convolutions(full)) == 105_023_168
    # 2 x 3 + 2 x 3 + 2 x 6 + 2 x 3 + 2 x 3 in the branches and the first one; five shortcuts besides.
    branches = [name for name, _ in full.named_modules() if name.split(".")[-1].startswith("conv_branch2")]
    assert len(branches) + 1 == 37 and sum(".conv_branch1" in name for name, _ in full.named_modules()) == 6
    trained = {name for name, parameter in full.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.weight" for name, module in full.named_modules() if isinstance(module, nn.Conv2d)}
    assert all(isinstance(m, FrozenBatchNorm2d) for m in full.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(m.training for m in full.train().modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (9, 321), (375, 500)])
def test_the_output_stride_is_8_at_any_side(full: ResNet38Backbone, size: tuple[int, int]) -> None:
    found = full(torch.zeros(1, 3, *size, device="meta")).shape
    assert found == (1, 4096, -(-size[0] // 8), -(-size[1] // 8))
    assert tuple(found[2:]) == tuple(full.cells(side) for side in size)


def test_the_last_three_blocks_are_dilated_2_4_4(full: ResNet38Backbone) -> None:
    threes = {name: c for name, c in full.named_modules() if isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3)}
    dilation = {name: convolution.dilation[0] for name, convolution in threes.items()}
    assert all(c.padding == c.dilation for c in threes.values())
    assert {name for name, rate in dilation.items() if rate == 2} == {
        *("b5.conv_branch2b1", "b5_1.conv_branch2a", "b5_1.conv_branch2b1"),
        *("b5_2.conv_branch2a", "b5_2.conv_branch2b1"),
    }
    assert {name for name, rate in dilation.items() if rate == 4} == {"b6.conv_branch2b1", "b7.conv_branch2b1"}


def thin(monkeypatch: pytest.MonkeyPatch) -> ResNet38Backbone:
    """The same network with a 32nd of the channels (and a few of its constants)."""
    stages = tuple((n, u, h // 32, c // 32, s, d) for n, u, h, c, s, d in resnet38.STAGES)
    monkeypatch.setattr(resnet38, "STAGES", stages)
    monkeypatch.setattr(resnet38, "WIDEST", tuple((n, c // 32, d) for n, c, d in resnet38.WIDEST))
    torch.manual_seed(0)
    return ResNet38Backbone()


def checkpoint(network: nn.Module, heads: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """As the converted file has it: no counters, and a head that the backbone has not."""
    state = {name: torch.rand_like(tensor.float()) for name, tensor in network.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return {**state, **{head: torch.zeros(2, 2) for head in heads}}


def test_the_converted_checkpoint_is_read_under_its_own_names(full: ResNet38Backbone) -> None:
    names = {name for name in full.state_dict() if not name.endswith("num_batches_tracked")}
    assert {"conv1a.weight", "bn7.weight", "bn7.bias", "bn7.running_mean", "bn7.running_var"} <= names
    units = ["b2", "b2_1", "b2_2", "b3", "b3_1", "b3_2", "b4", *(f"b4_{i}" for i in range(1, 6))]
    units += ["b5", "b5_1", "b5_2", "b6", "b7"]
    parts = ("bn_branch2a.running_var", "conv_branch2a.weight", "bn_branch2b1.bias", "conv_branch2b1.weight")
    assert {f"{unit}.{part}" for unit in units for part in parts} <= names
    assert {f"{unit}.conv_branch2b2.weight" for unit in ("b6", "b7")} <= names
    assert {name for name in names if "conv_branch1." in name} == {f"b{i}.conv_branch1.weight" for i in range(2, 8)}
    assert {name.split(".")[0] for name in names} == {*units, "conv1a", "bn7"}


def test_every_number_of_the_file_arrives_and_heads_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    network = thin(monkeypatch)
    heads = ("linear1000.weight", "linear1000.bias", "fc8.weight", "fc8_seg_conv1.weight", "fc8_seg_conv2.bias")
    state = checkpoint(network, heads)
    deeplab.load_part(network, state, source="resnet38.pth")
    own = network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items() if name not in heads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b4_3.conv_branch2a.weight": None}, r"ilsvrc\.pth does not fit.*1 keys missing, first \['b4_3"),
        ({"b4_6.conv_branch2a.weight": torch.zeros(1)}, r"1 keys unknown to this network, first \['b4_6"),
        ({"bn7.bias": torch.zeros(3)}, r"bn7\.bias: file \(3,\), network \(128,\)"),
    ],
)
def test_a_file_of_another_network_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Tensor | None], message: str
) -> None:
    network = thin(monkeypatch)
    state = {name: t for name, t in {**checkpoint(network), **change}.items() if t is not None}
    with pytest.raises(ValueError, match=message):
        deeplab.load_part(network, state, source="ilsvrc.pth")


def test_a_small_one_gives_what_its_equations_say(monkeypatch: pytest.MonkeyPatch) -> None:
    network = thin(monkeypatch).eval()
    with torch.no_grad():
        found = network(torch.randn(2, 3, 21, 30))
    assert found.shape == (2, 128, 3, 4) and torch.isfinite(found).all() and found.min() == 0
    # A unit with zero convolutions is its shortcut; so is a bottleneck.
    unit, bottleneck = Unit(4, 2, 4, 1, 1, 1).eval(), Bottleneck(4, 8, 4, 0.5).eval()
    for convolution in (unit.conv_branch2b1, bottleneck.conv_branch2b2):
        nn.init.zeros_(convolution.weight)
    x = torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        assert torch.equal(unit(x), x)
        normed = torch.relu(x / (1 + 1e-5) ** 0.5)
        torch.testing.assert_close(
            bottleneck(x), torch.einsum("oi,nihw->nohw", bottleneck.conv_branch1.weight[..., 0, 0], normed)
        )


def test_dropout_is_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network = thin(monkeypatch)
    images = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        assert not torch.equal(network.train()(images), network(images))
        assert torch.equal(network.eval()(images), network(images))


def test_deeplab_on_it_has_the_groups_of_a_resnet() -> None:
    with torch.device("meta"):
        network = deeplab.build("resnet38", 21)
    groups = parameter_groups(network, network.rules, lr=1.0, weight_decay=0.0).groups
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("backbone", 1.0),
        ("head-weights", 10.0),
        ("head-biases", 20.0),
    ]
