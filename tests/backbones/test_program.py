"""Programs: the same bits as the network, what is not recorded, and their files."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anomaly_bench.backbones import program
from anomaly_bench.backbones.backbone import Backbone
from anomaly_bench.cache import PROGRAMS, cache_root, listing

HALF = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
LITE = {"network": "tf_efficientnet_lite0", "modules": {"0": "blocks.0", "1": "blocks.1", "3": "blocks.4"}}
NETWORKS: dict[str, dict[str, Any]] = {
    "lite": LITE,
    "resnet": {"network": "resnet18", "modules": {"stem": "act1", "1": "layer1", "2": "layer2"}},
    "reflecting": {"network": "torchvision.vgg11", "modules": {"1": "features.3"}, "reflect": True},
    "squeeze": {"network": "tf_efficientnet_b0", "modules": {"1": "blocks.1", "2": "blocks.2"}},
    "alexnet": {"network": "torchvision.alexnet", "modules": {"1": "features.0", "2": "features.4"}},
}


def network(name: str = "lite") -> Backbone:
    """With random weights, and statistics of batch normalisation that are not those of a new network."""
    made = Backbone(**HALF, **NETWORKS[name], levels="all")
    generator = torch.Generator().manual_seed(0)
    for tensor in made.network.parameters():
        if tensor.ndim == 1:  # folded biases
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return made


def images(count: int, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def recorded(made: Backbone, side: int = 64) -> program.Program:
    found = program.record(made, (3, side, side))
    assert found is not None
    return found


@pytest.mark.parametrize("x86", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_has_the_bits_of_its_network(name, x86, monkeypatch):
    if x86 and not program.on_x86():
        pytest.skip("needs oneDNN on an x86 processor")
    monkeypatch.setattr(program, "on_x86", lambda: x86)
    made = network(name)
    found = recorded(made)
    assert found.about["shapes"] == made.shapes((64, 64))
    for count in (1, 3):
        for _ in range(2):  # a pass changes nothing
            for own, theirs in zip(found(images(count)), made(images(count)), strict=True):
                assert torch.equal(own, theirs)
                assert own.stride() == theirs.stride()


@pytest.mark.parametrize("side", [63, 64, 65, 66])
def test_paddings_are_joined_with_depthwise_convolutions_only(side):
    """TensorFlow's padding is uneven for some sides and even for others."""
    if not program.on_x86():
        pytest.skip("needs oneDNN on an x86 processor")
    made = network()
    found = recorded(made, side)
    paddings = [step.name for step in found.steps].count("constant_pad_nd.default")
    left = list(program.unpadded(found.steps, dict(found.constants)))
    assert [step.name for step in left].count("constant_pad_nd.default") == min(paddings, 1), (
        "the first is not depthwise"
    )
    for own, theirs in zip(found(images(2, side)), made(images(2, side)), strict=True):
        assert torch.equal(own, theirs)


def test_convolutions_are_fused_with_their_activations():
    found = recorded(network("resnet"))
    names = [step.name for step in program.fused(found.steps)]
    assert names.count(f"{program.CONVOLUTION}.default") == 5, "the stem, and the first of two in each of four blocks"
    assert names.count("relu_.default") == 4, "behind sums"


def test_a_transformer_is_not_recorded():
    made = Backbone("vit_tiny_patch16_224", **HALF, modules="blocks", levels=["block0"], options={"img_size": 32})
    assert program.record(made, (3, 32, 32)) is None


def test_a_network_that_depends_on_the_number_of_images_is_not_recorded(monkeypatch):
    made = network("resnet")
    made.network.layer1.register_forward_pre_hook(lambda module, inputs: inputs[0] + len(inputs[0]))
    assert program.record(made, (3, 64, 64)) is None


def test_a_network_with_a_tensor_that_is_no_weight_is_not_recorded():
    made = network("resnet")
    ones = torch.ones(1, device="meta")
    made.network.layer1.register_forward_pre_hook(lambda module, inputs: inputs[0] + ones)
    assert program.record(made, (3, 64, 64)) is None


def test_a_file_holds_the_whole_program(empty_cache):
    found = recorded(network())
    program.keep(found, "a" * 24)
    again = program.find("a" * 24)
    assert again is not None
    assert (again.steps, again.outputs, again.about) == (found.steps, found.outputs, found.about)
    for own, theirs in zip(again(images(2)), found(images(2)), strict=True):
        assert torch.equal(own, theirs)
    assert program.find("b" * 24) is None
    assert [name for name, *_ in listing()] == [PROGRAMS]


def test_a_damaged_file_is_deleted(empty_cache):
    program.keep(recorded(network()), "a" * 24)
    (file,) = (cache_root() / PROGRAMS).iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert program.find("a" * 24) is None
    assert not file.exists()


def test_large_networks_and_full_disks_leave_no_file(empty_cache, monkeypatch, caplog):
    found = recorded(network())
    monkeypatch.setattr(program, "LARGE", found.size - 1)
    program.keep(found, "a" * 24)
    assert not (cache_root() / PROGRAMS).exists()
    monkeypatch.setattr(program, "LARGE", found.size)
    monkeypatch.setattr(program, "write_atomically", full_disk)
    program.keep(found, "a" * 24)
    assert "No space left" in caplog.text


def full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")
