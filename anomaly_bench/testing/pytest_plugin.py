"""pytest plugin for `pytest --pyargs anomaly_bench.testing.contract --method NAME`: its options and list of checks.

Every pytest run loads it if anomaly-bench is installed: it does and imports nothing unless the contract is run.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from anomaly_bench.errors import UsageError

_T = TypeVar("_T")
CHECKS_KEY = pytest.StashKey[dict[str, Callable[[], None]]]()


def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Add the options if the contract is among the arguments."""
    if not any(re.search(r"anomaly_bench[./\\]testing[./\\]contract", argument) for argument in args):
        return
    early_config.stash[CHECKS_KEY] = {}
    group = parser.getgroup("anomaly-bench")
    group.addoption("--method", help="check this method on --backbone")
    group.addoption("--backbone", help="check this backbone, and --method on it (default for --method: lite0)")
    group.addoption("--dataset", help="check this dataset")
    group.addoption("--metric", help="check this metric")
    group.addoption("--data-root", help="folder of the dataset")
    group.addoption("--config-dir", type=Path, help="folder of your own YAML files")
    group.addoption("--override", action="append", default=[], metavar="KEY=VALUE", help="as for anomaly-bench")
    group.addoption("--device", default="cpu", help="device for methods and backbones: cpu, cuda, mps")
    group.addoption("--side", type=int, default=64, help="image side in pixels; some transformers need another")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Collect the checks here, so that a wrong name gives a one-line error."""
    if CHECKS_KEY not in session.config.stash:
        return
    try:
        session.config.stash[CHECKS_KEY] = dict(checks(session.config))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each check is one test."""
    wanted = metafunc.config.stash.get(CHECKS_KEY, None)
    if wanted is not None and metafunc.module.__name__ == "anomaly_bench.testing.contract":
        metafunc.parametrize("check", list(wanted.values()), ids=list(wanted))


def checks(config: pytest.Config) -> Iterator[tuple[str, Callable[[], None]]]:
    """The requested checks: names and calls.

    Raises:
        UsageError: nothing is requested, or something unknown.
    """
    from anomaly_bench.config.compose import compose
    from anomaly_bench.data.dataset import open_dataset
    from anomaly_bench.hardware.torch_setup import find_device
    from anomaly_bench.testing.contract import BACKBONE_CHECKS, CHECKS
    from anomaly_bench.testing.dataset_checks import DATASET_CHECKS
    from anomaly_bench.testing.metric_checks import METRIC_CHECKS, find
    from anomaly_bench.testing.setup import READS_ALL, Setup

    parts = ("--method", "--backbone", "--dataset", "--metric")
    method, backbone, dataset, metric = (config.getoption(name) for name in parts)
    if not (method or backbone or dataset or metric):
        raise UsageError("nothing to check: give --method, --backbone, --dataset or --metric and a NAME")
    folders = [folder] if (folder := config.getoption("--config-dir")) else []
    make = functools.partial(
        Setup,
        folders=folders,
        device=str(find_device(config.getoption("--device"))),
        side=config.getoption("--side"),
    )

    words = config.getoption("--override")
    of_dataset, of_backbone = (
        tuple(word for word in words if word.lstrip("+~").startswith(group)) for group in ("dataset.", "backbone.")
    )
    if backbone:
        setup = make(READS_ALL, backbone, of_backbone)
        setup.shapes()  # fails early on wrong weights
        yield from label(backbone, BACKBONE_CHECKS, setup)
    if method:
        setup = make(method, backbone or "lite0", tuple(word for word in words if word not in of_dataset))
        setup.new()  # fails early on wrong settings
        yield from label(method, CHECKS, setup)
    if dataset:
        node = compose("config", [f"dataset={dataset}", *of_dataset], folders)["dataset"]
        opened = open_dataset(node, config.getoption("--data-root"))
        yield from label(dataset, DATASET_CHECKS, opened)
    if metric:
        yield from label(metric, METRIC_CHECKS, find(metric, folders))


def label(name: str, run: Iterable[Callable[[_T], None]], subject: _T) -> Iterator[tuple[str, Callable[[], None]]]:
    """A title and an argument-free call for each check."""
    for check in run:
        yield f"{name}-{check.__name__.removeprefix('check_')}", functools.partial(check, subject)
