"""Fixtures for all tests: a separate cache, small image folders, the real images if available."""

from __future__ import annotations

import copy
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_bench.config.settings import conf_folder
from anomaly_bench.hardware.devices import cores

os.environ.setdefault("SLURM_CPUS_PER_TASK", "1")  # read by `cores`: of small images, two threads waste most of the CPU
os.environ.pop("COLUMNS", None)  # which pytest-xdist sets: tables would be cut to the width of a terminal
torch.set_num_threads(cores())

SHARED = Path(os.environ.get("ANOMALY_BENCH_REAL", Path(__file__).parents[2] / "shared" / "data"))
LARGE = 30_000_000  # parameters of a network


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No test reads or fills the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ANOMALY_BENCH_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def remembered() -> Iterator[None]:
    """What takes a good part of a second and depends on its arguments alone is made once and copied."""
    from omegaconf import OmegaConf

    from anomaly_bench.backbones.backbone import Backbone
    from anomaly_bench.config import compose

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OmegaConf, "load", once(OmegaConf.load, own_file))
        patched.setattr(compose, "composed", once(compose.composed, own_words))
        patched.setattr(Backbone, "whole", once(Backbone.whole, architecture))
        patched.setattr(Backbone, "run_on_meta", once(Backbone.run_on_meta, truncated_architecture))
        yield


def once(make: Callable[..., Any], key: Callable[..., object]) -> Callable[..., Any]:
    """The same function, called once for arguments of the same key, unless that is None or the result is large."""
    made: dict[object, Any] = {}

    @functools.wraps(make)
    def remembering(*arguments: Any) -> Any:
        known = key(*arguments)
        if known is None:
            return make(*arguments)
        if known not in made:
            new = make(*arguments)
            if isinstance(new, torch.nn.Module) and sum(each.numel() for each in new.parameters()) > LARGE:
                return new
            made[known] = new
        return copy.deepcopy(made[known])

    return remembering


def own_file(file: Any) -> object:
    """The path of a YAML of this repository, opened; None for others, which may change."""
    name = str(getattr(file, "name", ""))
    return name if name.startswith(str(conf_folder())) else None


def own_words(primary: str, words: Sequence[str]) -> object:
    """None with a user's folder, which may change."""
    return None if any("searchpath" in word for word in words) else (primary, *words)


def architecture(backbone: Any) -> object:
    if torch.get_default_device().type == "meta":
        return None
    file = backbone.weights
    state = file and (str(file), file.stat().st_mtime_ns, file.stat().st_size)
    return backbone.network_name, repr(backbone.options), backbone.reflect, state


def truncated_architecture(backbone: Any, *size: object) -> object:
    return backbone.network_name, repr(backbone.options), backbone.reflect, tuple(backbone.paths), repr(size)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Also after a test of a run with more."""
    yield
    os.environ.pop("COLUMNS", None)  # which pytest-xdist sets: tables would be cut to the width of a terminal


torch.set_num_threads(cores())


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path / "empty-cache"))
    return tmp_path / "empty-cache"


def time_briefly(patch: pytest.MonkeyPatch) -> None:
    """Speeds are measured by two calls."""
    from anomaly_bench.hardware import timing

    patch.setattr(timing, "WARM_UP", 1)
    patch.setattr(timing, "LEAST_CALLS", 2)
    patch.setattr(timing.measure, "__defaults__", (0.0, lambda calls: None))


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of the real MVTec categories."""
    if not (SHARED / "mvtec" / "bottle").is_dir():
        pytest.skip("needs real MVTec images in ../shared/data/mvtec")
    return SHARED / "mvtec"


def picture(number: int, side: int = 48) -> np.ndarray:
    """(side, side, 3) uint8, different for each number."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[:side, :side]
    wave = 128 + 50 * np.sin((rows + columns) / 5)
    return (wave[..., None] + random.normal(0, 8, (side, side, 3))).clip(0, 255).astype(np.uint8)


def make_category(folder: Path, train: int = 6, good: int = 3, defects: int = 3, side: int = 48) -> Path:
    """A category in MVTec AD's layout with one kind of defect, "spot"."""
    for number in range(train):
        save(picture(number, side), folder / "train" / "good" / f"{number:03}.png")
    for number in range(good):
        save(picture(100 + number, side), folder / "test" / "good" / f"{number:03}.png")
    for number in range(defects):
        image, mask = picture(200 + number, side), np.zeros((side, side), np.uint8)
        image[10:22, 20:32], mask[10:22, 20:32] = (255, 0, 0), 255
        save(image, folder / "test" / "spot" / f"{number:03}.png")
        save(mask, folder / "ground_truth" / "spot" / f"{number:03}_mask.png")
    return folder


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A dataset of two small categories, "cog" and "mat"."""
    for name in ("cog", "mat"):
        make_category(tmp_path / "data" / name)
    return tmp_path / "data"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the console script's function in this process: exit status, stdout, stderr."""
    from anomaly_bench.cli.main import command

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = command(list(words))
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    """A headless Chromium that logs its messages and requests."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not chromium:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()
