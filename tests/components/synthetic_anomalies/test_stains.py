"""Stains: how many, how large, and how opaque."""

from __future__ import annotations

import torch

from anomaly_bench.components.synthetic_anomalies.stains import stained


def test_stains_are_small_and_the_rest_stays():
    torch.manual_seed(0)
    patches = torch.rand(200, 3, 33, 33)
    found = stained(patches)
    changed = (found != patches).any(dim=1)
    counts = changed.sum(dim=(1, 2))
    assert counts.max() <= 3 * 9 * 9
    assert (counts > 0).float().mean() > 0.95
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(torch.where(changed[:, None], patches, found), patches)


def test_a_single_opaque_stain_has_one_colour():
    torch.manual_seed(0)
    black = torch.zeros(100, 3, 33, 33)
    for image in stained(black, most=1, sides=(6, 6)):
        place = image.any(dim=0)
        assert 5 <= place.sum() <= 49
        colours = image[:, place]
        torch.testing.assert_close(colours, colours[:, :1].expand_as(colours))


def test_colours_are_mixed_in_by_half_or_more():
    torch.manual_seed(0)
    dark, light = (stained(torch.full((500, 3, 9, 9), value), most=1, sides=(30, 30)) for value in (0.0, 1.0))
    assert float(dark.max()) <= 1
    assert 0.35 < float(dark.mean()) < 0.4  # half of the mean colour times 0.75
    assert 0.6 < float(light.mean()) < 0.65
