"""My dataset: the contract of all datasets, on a small example that the test writes."""

import numpy as np
import pytest
from my_dataset import my_dataset
from PIL import Image

from anomaly_bench.testing.dataset_checks import DATASET_CHECKS
from anomaly_bench.testing.setup import pictures


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Two categories of ten normal and two defective images."""
    root = tmp_path_factory.mktemp("example")
    for first, name in ((0, "first"), (100, "second")):
        for number, pixels in enumerate(pictures(12, first)):
            kind = "normal" if number < 10 else "defective"
            save(pixels, root / name / kind / f"{number:03}.png")
            if kind == "defective":
                save(np.eye(64, dtype=np.uint8) * 255, root / name / "masks" / f"{number:03}.png")
    return my_dataset("my_dataset", "My dataset", ["first", "second"], root)


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("check", DATASET_CHECKS, ids=lambda check: check.__name__)
def test_contract(check, example):
    check(example)


def test_counts(example):
    task = example.task("first")
    assert (len(task.fit), len(task.tests["test"])) == (8, 4)
    assert sum(sample.label is not None for sample in task.tests["test"]) == 2
