"""Pictures of the worst cases: the mask is outlined on the map."""

from __future__ import annotations

import numpy as np

from anomaly_bench.records import gallery


def test_mask_is_outlined_on_the_map(tmp_path):
    masks = np.zeros((2, 64, 64), bool)
    masks[1, 16:32, 8:40] = True
    maps, pixels = np.zeros((2, 64, 64), np.float32), np.zeros((2, 64, 64, 3), np.uint8)
    maps[0, 0, 0] = 1
    images = [
        {"file": "good/0.png", "defect": None, "score": 1.0},
        {"file": "bad/0.png", "defect": "cut", "score": 2.0},
    ]
    gallery.save_pictures(tmp_path, images, pixels, maps, masks, 2)
    side = gallery.PICTURE
    for kind, file in (("alarm", "good/0.png"), ("miss", "bad/0.png")):
        found = gallery.squares(tmp_path / gallery.picture_name(kind, 1, file))
        shown = np.all(np.asarray(found["map"]) == gallery.OUTLINE, axis=-1)
        assert shown.any() == (kind == "miss")
        if kind == "miss":
            rows, columns = np.nonzero(shown)
            edges = np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]) / side * 64
            assert np.abs(edges - (16, 32, 8, 40)).max() <= 1
            inside = shown[40:60, 20:76]  # well inside the rectangle, in pixels of the picture
            assert not inside.any()
