"""Nearest neighbours against brute force in float64."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anomaly_bench.components import neighbours
from anomaly_bench.components.neighbours import GROUP, nearest


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute(queries, bank):
    """(Q, M) squared distances in float64."""
    return (queries.double()[:, None] - bank.double()[None]).square().sum(-1)


def check(queries, bank, k, **options):
    found = nearest(queries, bank, k, **options)
    distances = brute(queries, bank)
    expected = distances.sort(dim=1).values[:, :k]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-4, atol=1e-30)
    assert (found.distances.diff(dim=1) >= 0).all()
    np.testing.assert_allclose(found.distances, distances.gather(1, found.indices), rtol=1e-5, atol=1e-30)
    assert all(len(row.unique()) == k for row in found.indices)


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("rows", [20, GROUP * 4, GROUP * 40 + 5])
@pytest.mark.parametrize("block_bytes", [1, 3000, None])
def test_matches_brute_force_for_every_block_size(k, rows, block_bytes):
    check(random(33, 12), random(rows, 12, seed=1), k, block_bytes=block_bytes)


@pytest.mark.parametrize("k", [1, 4])
def test_precision_far_from_the_origin(k):
    """In float32, 1e8 + 1 is 1e8: the matrix product alone would fail here."""
    bank = random(300, 8) + 1e4
    check(bank[::7] + 0.01 * random(43, 8, seed=1), bank, k)


def test_two_distant_clusters():
    """No offset brings both close to the origin."""
    bank = torch.cat([random(200, 6), random(200, 6, seed=1) + 3e4])
    check(bank[::9] + 0.1 * random(45, 6, seed=2), bank, 2)


def test_duplicate_has_distance_zero():
    bank = random(500, 100) * 50 + 1000
    found = nearest(bank[100:140], bank)
    assert found.distances.eq(0).all()
    assert found.indices[:, 0].tolist() == list(range(100, 140))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 9),
    st.integers(0, 10**6),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.sampled_from([0.0, 1.0, 1e3]),
    st.booleans(),
)
def test_random_banks_match_brute_force(rows, dimensions, seed, scale, offset, whole):
    bank, queries = (random(n, dimensions, seed=seed + n) * scale + offset for n in (rows, 7))
    if whole:  # many ties and copies
        bank, queries = bank.round(), queries.round()
    for k in {1, (rows + 1) // 2, rows}:
        check(queries, bank, k, block_bytes=600)


def test_norms_are_used_as_given():
    bank, queries = random(200, 5), random(10, 5, seed=1)
    assert nearest(queries, bank, norms=neighbours.squared_lengths(bank)).indices.equal(nearest(queries, bank).indices)


def test_results_do_not_depend_on_other_queries():
    bank, queries = random(1000, 30), random(64, 30, seed=1)
    together = nearest(queries, bank)
    alone = [nearest(query[None], bank) for query in queries]
    assert torch.equal(together.indices, torch.cat([each.indices for each in alone]))
    assert torch.allclose(together.distances, torch.cat([each.distances for each in alone]), rtol=1e-6)


@pytest.mark.parametrize("k", [0, 6])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k={k} nearest of 5 rows; expected 1 to 5"):
        nearest(random(2, 3), random(5, 3), k)


def test_full_distance_matrix_is_never_allocated():
    """2,000 x 10,000 distances are 80 MB; the largest array allocated is a fiftieth of that."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for each in result if isinstance(result, tuple) else (result,):
                if isinstance(each, torch.Tensor) and each.device.type == "cpu":
                    largest = max(largest, each.numel() * each.element_size())
            return result

    bank, queries = random(10_000, 3), random(2_000, 3, seed=1)
    with Watch():
        nearest(queries, bank, block_bytes=100_000)
    assert largest <= 1_600_000


def test_bank_of_any_size_is_loaded():
    class Bank(nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.register_buffer("rows", torch.zeros(rows, 3))

        def _load_from_state_dict(self, state, prefix, *rest):
            neighbours.take_row_counts(self, state, prefix)
            super()._load_from_state_dict(state, prefix, *rest)

    loaded = nn.Sequential(Bank(0))
    loaded.load_state_dict({"0.rows": torch.ones(4, 3)})
    assert loaded[0].rows.equal(torch.ones(4, 3))
    with pytest.raises(RuntimeError, match="size mismatch"):
        loaded.load_state_dict({"0.rows": torch.ones(4, 2)})


def test_rounding_does_not_hide_the_nearest_row():
    """For distant clusters the product's rounding exceeds the gaps between neighbours: such queries are rechecked."""
    fine = 0.05 * random(GROUP * 30, 4)
    shuffled = torch.randperm(GROUP * 60, generator=torch.Generator().manual_seed(2))
    check(0.05 * random(200, 4, seed=1) + 1000, torch.cat([fine + 1000, fine - 1000])[shuffled], 1)


@pytest.mark.parametrize("rows", [GROUP * 40, GROUP * 40 + 5])
def test_well_separated_rows_need_no_recheck(rows, monkeypatch):
    monkeypatch.setattr(neighbours, "by_differences", lambda *_: pytest.fail("compared with the whole bank"))
    check(random(50, 6), random(rows, 6, seed=1), 1, block_bytes=8 * GROUP * 50 * 4)


@pytest.mark.parametrize(("gap", "by_differences"), [(1e-3, 0), (1e-9, 1)])
def test_close_rows_are_multiplied_in_float64(gap, by_differences, monkeypatch):
    """Products in float32 cannot tell which of the codes of a plain background is nearest."""
    slow = Mock(wraps=neighbours.by_differences)
    monkeypatch.setattr(neighbours, "by_differences", slow)
    rows = torch.zeros(GROUP * 40, 64)
    rows[:, :2] = 1e4 * gap * random(GROUP * 40, 2, seed=1)
    centre = torch.zeros(64)
    centre[2:] = 1e4
    queries = torch.zeros(20, 64)
    queries[:, :2] = 1e4 * gap * random(20, 2, seed=2)
    expected = torch.cdist(queries, rows, compute_mode="donot_use_mm_for_euclid_dist").square().min(dim=1)
    found = nearest(queries + centre, rows + centre)
    torch.testing.assert_close(found.distances[:, 0], expected.values, rtol=1e-4, atol=0)
    assert slow.call_count == by_differences
