"""Confetti: what is drawn, and where it is too dark to be seen."""

from __future__ import annotations

import math

import pytest
import torch

from anomaly_bench.components.synthetic_anomalies import confetti


def test_confetti():
    torch.manual_seed(0)
    for _ in range(5):
        for coloured, chance in ((True, confetti.COLOURED), (False, confetti.GREY)):
            layer = confetti.blobs((64, 64), chance, coloured)
            assert (layer < 0).any()
            assert layer.min() >= -256
            assert coloured or set(layer.unique().tolist()) <= {0.0, -255.0}
        noise = confetti.confetti_noise((64, 64))
        assert noise.shape == (3, 64, 64)
        assert torch.equal(noise, noise.trunc())
        assert (noise <= 0).all()
        grey, black = torch.full((3, 64, 64), 0.5), torch.zeros(3, 64, 64)
        assert (confetti.spoiled(grey) - grey).min() < 0 <= (confetti.spoiled(black) - black).min()
        assert confetti.spoiled(black).max() > 0


def test_a_single_blob_is_a_turned_square(monkeypatch):
    """Its area is that of the square, its sides lie within the diagonal; without a turn it is the square itself."""
    drawn = torch.ones(96, 96)
    drawn[40, 50] = 0

    def one(*words, **keys):
        return drawn if words == ((96, 96),) else real(*words, **keys)

    real = torch.rand
    monkeypatch.setattr(torch, "rand", one)
    monkeypatch.setattr(torch, "randint", lambda *words, **keys: torch.tensor([12]))
    for angle in (0.0, 30.0):
        monkeypatch.setattr(confetti, "uniform", lambda low, high, angle=angle: angle)
        rows, columns = confetti.blobs((96, 96), 1e-5, coloured=False)[0].nonzero().T
        if angle == 0:
            assert (rows.min(), rows.max(), columns.min(), columns.max()) == (35, 46, 45, 56)
            assert len(rows) == 144
        assert len(rows) == pytest.approx(144, abs=12)
        assert rows.max() - rows.min() <= math.sqrt(2) * 12
