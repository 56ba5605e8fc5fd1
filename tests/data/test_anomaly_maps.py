"""Names and sizes of anomaly maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_bench.data.anomaly_maps import addressed, map_names
from anomaly_bench.data.geometry import Frame
from anomaly_bench.errors import DataError


def test_names_are_stems_unless_two_images_share_one():
    assert map_names(["good/a.png", "spot/a.png", "spot/b.c.png"]) == ["good/a", "spot/a", "spot/b.c"]
    assert map_names(["a.png", "a.jpg", "b.png"]) == ["a.png", "a.jpg", "b"]
    assert map_names(["a.png", "A.jpg"]) == ["a.png", "A.jpg"], "one file on case-insensitive systems"
    assert map_names(["a.png", "a.jpg", "a.png.jpg"]) == ["a.png", "a.jpg", "a.png.jpg"]


FILES = st.builds("{}{}".format, st.sampled_from(["a", "A", "a.png", "b", "d/a"]), st.sampled_from([".png", ".jpg"]))


@given(st.lists(FILES, unique_by=str.casefold))
def test_no_two_images_have_one_name(files):
    names = map_names(files)
    assert len({name.casefold() for name in names}) == len(files)


@pytest.mark.parametrize(
    ("known", "alone", "written"),
    [
        ({"cog/test/good/0"}, False, "cog/test/good/0"),
        ({"test/good/0"}, True, "test/good/0"),
        ({"good/0"}, True, "good/0"),
        ({"good/0"}, False, None),
        ({"other/0"}, True, None),
        (set(), True, None),
    ],
)
def test_forms_of_an_image_name(known, alone, written):
    way = addressed("cog", ["test/good/0", "test/good/1"], known, alone)
    assert (way and way("test/good/0")) == written


def test_map_is_resized_to_the_comparison_size():
    """Half-pixel bilinear for upsampling, averaging for downsampling, and cropping."""
    ramp = np.array([[0, 1, 2, 3]], np.float32).repeat(4, axis=0)
    own, run, crop = Frame(None, None), Frame((4, 4), None), Frame((4, 4), (2, 2))
    assert own.map(ramp, (4, 4)) is ramp
    assert run.map(ramp, (9, 9)) is ramp
    assert own.map(ramp, (4, 8))[0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert Frame((2, 2), None).map(ramp, (4, 4))[0] == pytest.approx([5 / 7, 16 / 7])  # weights 3, 3, 1 of a triangle
    assert crop.map(ramp, (9, 9)).tolist() == [[1, 2], [1, 2]]
    assert crop.map(ramp[:2, :2], (9, 9)).shape == (2, 2)
    assert crop.map(np.zeros((9, 9)), (9, 9)).shape == (2, 2)
    for frame, shape in ((crop, (3, 3)), (own, (8, 4)), (run, (8, 5))):
        with pytest.raises(DataError, match="a map of"):
            frame.map(np.zeros(shape), shape[::-1] if frame is not crop else (9, 9))
