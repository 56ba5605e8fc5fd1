"""What every method must do, checked on small images: `for check in CHECKS: check(Setup("padim"))`.

Your own method passes the same checks:

    from anomaly_bench.contract import CHECKS, Setup

    @pytest.mark.parametrize("check", CHECKS)
    def test_my_method(check):
        check(Setup("my_method", folders=[Path("my_conf")]))
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_bench.cli import compose
from anomaly_bench.errors import NotFittedError
from anomaly_bench.jobs import construct, find_weights, make_backbone
from anomaly_bench.protocol import Normals, Scores, to_tensor

SIDE, TRAINING, BATCH = 64, 24, 4  # pixels, images, images


@dataclass(frozen=True)
class Setup:
    """A method on a backbone. `overrides`: further keys, as on the command line; `folders`: of one's own YAML."""

    method: str
    backbone: str = "lite0"
    overrides: tuple[str, ...] = ()
    folders: Sequence[Path] = ()

    @functools.cached_property
    def config(self) -> Any:
        searched = ",".join(f"file://{folder.resolve()}" for folder in self.folders)
        words = [f"method={self.method}", f"backbone={self.backbone}", *self.overrides]
        return compose("config", words + ([f"hydra.searchpath=[{searched}]"] if searched else []))

    @functools.cached_property
    def network(self) -> Any:
        if not self.config["method"].get("uses_backbone", True):
            return None
        return make_backbone(self.config, find_weights(self.config))

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(C, h, w) of what `build` is told of the contract's images."""
        return [(3, SIDE, SIDE)] if self.network is None else self.network.shapes((SIDE, SIDE))

    def new(self) -> Any:
        """A fresh method."""
        network = {} if self.network is None else {"backbone": self.network}
        return construct(self.config["method"], "method", **network)

    def fitted(self, normals: Normals | None = None) -> Any:
        torch.manual_seed(0)
        method = self.new()
        method.fit(normals or Normals("contract", pictures(TRAINING)))
        return method.eval()

    @functools.cached_property
    def one(self) -> Any:
        """One fitted method that several checks look at."""
        return self.fitted()


def pictures(count: int, first: int = 0) -> NDArray[np.uint8]:
    """(count, SIDE, SIDE, 3): a soft grating with noise, another for each number."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    made = []
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        wave = np.sin((columns + rows / 3) / 4 + random.uniform(-0.2, 0.2)) * 40 + 128
        made.append(wave[..., None] + random.normal(0, 6, (SIDE, SIDE, 3)))
    return np.stack(made).clip(0, 255).astype(np.uint8)


def tests() -> Tensor:
    """(BATCH, 3, SIDE, SIDE) that no method was fitted on."""
    return to_tensor(pictures(BATCH, first=1000))


@torch.no_grad()
def score(method: Any, images: Tensor) -> Scores:
    result: Scores = method.score(images)
    return result


def check_shapes_and_values(setup: Setup) -> None:
    result = score(setup.one, tests())
    assert result.image.shape == (BATCH,), f"image scores {tuple(result.image.shape)}, expected ({BATCH},)"
    for part in result if result.map is not None else result[:1]:
        assert part is not None
        assert part.dtype == torch.float32, f"{part.dtype}, expected float32"
        assert part.isfinite().all(), "scores must be finite"
    if result.map is not None:
        assert result.map.shape == (BATCH, SIDE, SIDE), f"maps {tuple(result.map.shape)}, expected the image's size"


def check_alone_as_in_a_batch(setup: Setup) -> None:
    images = tests()
    together = score(setup.one, images)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(score(setup.one, images[order]), pick(together, order))
    for index in range(BATCH):
        chosen = torch.tensor([index])
        assert_close(score(setup.one, images[chosen]), pick(together, chosen))


def check_same_seed_same_bits(setup: Setup) -> None:
    assert_equal(score(setup.fitted(), tests()), score(setup.one, tests()))


def check_second_fit_forgets(setup: Setup) -> None:
    torch.manual_seed(0)
    method = setup.new()
    method.fit(Normals("other", 255 - pictures(TRAINING, first=500)))
    torch.manual_seed(0)
    method.fit(Normals("contract", pictures(TRAINING)))
    assert_close(score(method.eval(), tests()), score(setup.one, tests()))


def check_inputs_untouched(setup: Setup) -> None:
    pixels, images = pictures(TRAINING), tests()
    before = pixels.copy(), images.clone()
    score(setup.fitted(Normals("contract", pixels)), images)
    assert np.array_equal(pixels, before[0]), "fit changed its images"
    assert torch.equal(images, before[1]), "score changed its images"


def check_planted_defect_outscores_its_twin(setup: Setup) -> None:
    clean = tests()
    defective = clean.clone()
    defective[:, :, 24:40, 24:40] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    before, after = score(setup.one, clean), score(setup.one, defective)
    assert (after.image > before.image).all(), "a defect must raise the image score"
    if before.map is not None and after.map is not None:
        raised = (after.map - before.map)[:, 24:40, 24:40].mean(dim=(1, 2))
        assert (raised > 0).all(), "a defect must raise the map where it is"


def check_score_before_fit(setup: Setup) -> None:
    try:
        setup.new().score(tests())
    except NotFittedError:
        return
    raise AssertionError("score before fit must raise anomaly_bench.errors.NotFittedError")


def check_saved_and_loaded(setup: Setup) -> None:
    from safetensors.torch import load_file, save_file

    loaded = setup.new()
    loaded.build(setup.shapes)
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: value.contiguous() for name, value in setup.one.state_dict().items()}, f"{folder}/model")
        loaded.load_state_dict(load_file(f"{folder}/model"))
    assert_equal(score(loaded.eval(), tests()), score(setup.one, tests()))


def check_counts_without_data(setup: Setup) -> None:
    """`build` on the meta device has the parameters of the fitted method."""
    method = setup.new()
    with torch.device("meta"):
        method.build(setup.shapes)
    count = sum(parameter.numel() for parameter in method.parameters())
    assert count == sum(parameter.numel() for parameter in setup.one.parameters())


def pick(scores: Scores, order: Tensor) -> Scores:
    return Scores(scores.image[order], None if scores.map is None else scores.map[order])


def assert_equal(found: Scores, expected: Scores) -> None:
    """The same bits."""
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def assert_close(found: Scores, expected: Scores) -> None:
    """Within 1e-4 of the expected map's range (of the image scores' size where there is no map)."""
    span = expected.image.abs().max() if expected.map is None else expected.map.max() - expected.map.min()
    for a, b in zip(found, expected, strict=True):
        if a is not None and b is not None:
            assert (a - b).abs().max() <= 1e-4 * span, (
                f"differs by {float((a - b).abs().max() / span):.1e} of the range"
            )


CHECKS: tuple[Callable[[Setup], None], ...] = (
    check_shapes_and_values,
    check_alone_as_in_a_batch,
    check_same_seed_same_bits,
    check_second_fit_forgets,
    check_inputs_untouched,
    check_planted_defect_outscores_its_twin,
    check_score_before_fit,
    check_saved_and_loaded,
    check_counts_without_data,
)
