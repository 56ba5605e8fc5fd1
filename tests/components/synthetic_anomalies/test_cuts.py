"""Cuts and scars: what is pasted is a part of the image, of the published sizes."""

from __future__ import annotations

import pytest
import torch

from anomaly_bench.components.synthetic_anomalies import cuts

IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain(monkeypatch):
    """Colours are not jittered, so that pixels can be found again."""
    monkeypatch.setattr(cuts, "JITTER", lambda image: image)
    torch.manual_seed(0)


def changed_box(pasted):
    """Rows and columns of what has changed, and which pixels of it have."""
    changed = (pasted != IMAGE).any(dim=0)
    rows, columns = (changed.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return box, changed[box]


def source_of(pasted, box):
    """The part of the image that begins with the box's first pixel."""
    first = pasted[:, box[0].start, box[1].start]
    ((top, left),) = (first[:, None, None] == IMAGE).all(dim=0).nonzero().tolist()
    height, width = (part.stop - part.start for part in box)
    return IMAGE[:, top : top + height, left : left + width]


def test_rectangles(plain):
    shares, aspects = [], []
    for _ in range(200):
        pasted = cuts.cut_paste(IMAGE)
        box, changed = changed_box(pasted)
        if not changed.all():  # a cut that went back to its row or column, or its place
            continue
        assert torch.equal(pasted[:, *box], source_of(pasted, box))
        height, width = changed.shape
        shares.append(height * width / IMAGE[0].numel())
        aspects.append(width / height)
    assert len(shares) > 190
    assert 0.018 < min(shares) < 0.03
    assert 0.13 < max(shares) < 0.155
    assert 0.27 < min(aspects) < 0.4
    assert 2.7 < max(aspects) < 3.6
    assert 80 < sum(aspect < 1 for aspect in aspects) < 120


def test_scars(plain, monkeypatch):
    """Without a turn, a rectangle of the image; with one, of about the same area in a box that is at most 30 high."""
    sizes, areas, boxes = [], [], []
    for turn in (0.0, None):
        if turn is None:
            monkeypatch.undo()
        else:
            monkeypatch.setattr(cuts, "uniform", lambda low, high: 0.0)
        for _ in range(150):
            pasted = cuts.scar(IMAGE)
            box, changed = changed_box(pasted)
            if turn is None:
                areas.append(int(changed.sum()))
                boxes.append(changed.shape)
            elif changed.all():
                assert torch.equal(pasted[:, *box], source_of(pasted, box))
                sizes.append(changed.shape)
    heights, widths = zip(*sizes, strict=True)
    assert (min(heights), max(heights)) == cuts.SCAR_LENGTH == (10, 25)
    assert (min(widths), max(widths)) == cuts.SCAR_WIDTH == (2, 16)
    assert max(max(box) for box in boxes) <= 30 < cuts.LARGEST_SCAR
    assert min(areas) >= 15
    assert max(areas) <= 420
    assert max(width / height for height, width in boxes) > 1, "some are turned by nearly 45 degrees"


def test_the_image_stays_and_colours_are_jittered():
    torch.manual_seed(0)
    grey, copy = torch.full((3, 64, 64), 0.5), IMAGE.clone()
    for change in (cuts.cut_paste, cuts.scar):
        assert all((change(IMAGE) != IMAGE).any() and torch.equal(IMAGE, copy) for _ in range(5))
        values = torch.cat([change(grey).flatten() for _ in range(40)])
        assert 0.44 < values.min() < 0.46
        assert 0.54 < values.max() < 0.56
    assert torch.equal(IMAGE, copy)


def test_the_smallest_image_has_room_for_every_scar():
    torch.manual_seed(0)
    image = torch.rand(3, cuts.LARGEST_SCAR, cuts.LARGEST_SCAR)
    for _ in range(200):
        assert cuts.scar(image).shape == image.shape
