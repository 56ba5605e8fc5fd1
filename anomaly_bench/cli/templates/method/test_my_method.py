"""My method: the contract of all methods, and one value computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from my_method import MyMethod

from anomaly_bench.protocol import TrainingSet
from anomaly_bench.testing.contract import CHECKS
from anomaly_bench.testing.setup import Setup

SETUP = Setup("my_method", folders=[Path(__file__).parent])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(SETUP)


def test_a_distance_computed_by_hand():
    normals = np.zeros((2, 4, 4, 3), np.uint8)
    normals[1] = 255  # the mean is 0.5 everywhere
    method = MyMethod(backbone=lambda images: [images])
    method.build([(3, 4, 4)])
    method.fit(TrainingSet("two", normals))
    scores = method.eval().score(torch.ones(1, 3, 4, 4))
    assert scores.image.item() == pytest.approx(0.5 * 3**0.5)
