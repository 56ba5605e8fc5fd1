"""Other devices and precisions: on real ones if available, else on mock devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mock_device import mock_device
from setups import FAMILIES, METHODS, SLOW_LEARNERS, setup

from anomaly_bench import records
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import torch_setup
from anomaly_bench.protocol import Scores
from anomaly_bench.testing.contract import CHECKS, check_planted_defect_outscores_its_twin
from anomaly_bench.testing.setup import Setup, assert_close, new_images

PRETENDED = ("cuda", "mps")
GRADIENTS = ("anogan", "cavga_ru", "gradcon", "kdad", "vae_grad", "vevae")  # taken by `score`
DEVICES = (
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple GPU")),
)
TEMPLATE = Path(__file__).parents[2] / "anomaly_bench" / "cli" / "templates" / "method"


def once(method: str, device: str = "cpu") -> Setup:
    """One epoch, for methods that train."""
    trains = "epochs" in setup(method).config["method"]
    return setup(method, device=device, words=("method.epochs=1",) if trains else ())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_whole_contract(device, method, check):
    if check is check_planted_defect_outscores_its_twin and method in SLOW_LEARNERS:
        pytest.skip(f"{method} detects a defect only after hundreds of steps")
    check(setup(method, device=device))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", DEVICES)
def test_scores_match_the_cpu(device, method):
    """Not bit by bit: the order of summation differs."""
    close(
        once(method, device).one.score(once(method, device).new_images()),
        once(method).one.score(once(method).new_images()),
        1e-2,
    )


def there(method: str, device: str) -> Any:
    """Fitted on a mock device, or moved there from the CPU if it trains, as autograd does not support that device."""
    made = replace(once(method), device=device)
    if "epochs" not in made.config["method"]:
        return made.one
    fitted = once(method).one
    moved = made.new(**getattr(fitted, "resolved", {}))
    moved.build(made.shapes())
    moved.load_state_dict(fitted.state_dict())
    return moved.to(device).eval()


def pairs() -> Iterator[Any]:
    """Slow beyond one method of each family on "mps", which rejects all that "cuda" does, and one on both."""
    for device, method in itertools.product(PRETENDED, METHODS):
        quick = method == "padim" or (device == "mps" and method in FAMILIES)
        yield pytest.param(device, method, id=f"{device}-{method}", marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("device", "method"), list(pairs()))
def test_no_method_mixes_devices(device, method):
    if method in GRADIENTS:
        pytest.skip(f"{method} takes gradients while scoring, which autograd does not support on that device")
    images = once(method).new_images()
    expected = once(method).one.score(images)
    with mock_device(device):
        found = there(method, device).score(images.to(device))
        assert {part.device.type for part in found if part is not None} == {device}
        found = Scores(*(None if part is None else part.cpu() for part in found))
    assert_close(found, expected, "the same arithmetic on the same CPU")


def test_template_method_mixes_no_devices(monkeypatch):
    monkeypatch.syspath_prepend(str(TEMPLATE))
    with mock_device("cuda"):
        setup = Setup("my_method", folders=[TEMPLATE], device="cuda")
        assert setup.one.score(setup.new_images()).map.device.type == "cuda"


@pytest.mark.parametrize("device", PRETENDED)
def test_whole_run_on_a_mock_device(device, tree, tmp_path, command, monkeypatch):
    monkeypatch.setattr(torch_setup, "find_device", torch.device)
    words = ["dataset=folder", f"data_root={tree}", f"results={tmp_path}", "category=cog", "input.resize=64"]
    words += [f"device={device}", "save_model=true", "save_maps=true", "speed=false", "method.dimensions=20"]
    with mock_device(device):
        status, _, err = command(*words)
    assert status == 0, err
    (record,) = records.load_all(tmp_path)[0]
    assert (record.cost["device"] == "Mock GPU") == (device == "cuda")
    assert np.isfinite([image["score"] for image in record.images]).all()


def test_mock_device_rejects_what_a_gpu_would_reject():
    with mock_device("mps"):
        there = torch.rand(3, device="mps")
        with pytest.raises(RuntimeError, match="add: expected all tensors on the same device"):
            there + torch.rand(3)
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert (there + torch.tensor(1.0) - 1).sub_(there).abs().cpu().numpy().max() < 1e-6
        assert there[[2, 0]].tolist() == there.cpu()[[2, 0]].tolist()
    with mock_device("cuda"):
        assert torch.zeros(3, dtype=torch.float64, device="cuda:0").device.type == "cuda"


def close(found: Scores, expected: Scores, share: float) -> None:
    """Within a fraction of the expected scores' magnitude."""
    for a, b in zip(found, expected, strict=True):
        if a is not None and b is not None:
            assert (a.cpu() - b.cpu()).abs().max() <= share * b.abs().max()


def computes_in(precision: str) -> bool:
    try:
        torch_setup.require_precision(torch.device("cpu"), precision)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["padim", pytest.param("mahalanobis_ad", marks=pytest.mark.slow)])
def test_half_precision_gives_nearly_the_same_scores(method, precision):
    if not computes_in(precision):
        pytest.skip(f"this CPU does not compute in {precision}")
    half, single = setup(method, words=(f"precision={precision}",)), setup(method)
    found, expected = half.one.score(new_images()), single.one.score(new_images())
    assert not torch.equal(found.image, expected.image), "the precision has no effect"
    close(found, expected, 0.05)
    assert all(part.dtype == torch.float32 for part in found if part is not None)
    assert all(value.dtype in (torch.float32, torch.int64) for value in half.one.state_dict().values())


@pytest.mark.parametrize("failure", [RuntimeError("no kernel for it\nand more"), None])
def test_unsupported_precision(failure, monkeypatch):
    """It raises, or autocast silently stays in float32."""

    def autocast(*_):
        if failure is not None:
            raise failure
        return torch.no_grad()

    monkeypatch.setattr(torch, "autocast", autocast)
    with pytest.raises(UsageError, match=r"precision=fp16: device cpu does not support it \([^\n]*\); use fp32"):
        torch_setup.require_precision(torch.device("cpu"), "fp16")
    torch_setup.require_precision(torch.device("cpu"), "fp32")


def test_fp32_is_not_tf32():
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    torch_setup.compute_exactly()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
