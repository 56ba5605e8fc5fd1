"""The generated dataset: layout, determinism, exact masks, and brightness that does not reveal defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anomaly_bench.data import synthetic

PAIRS = [(category, defect) for category, defects in synthetic.DEFECTS.items() for defect in defects]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic")
    for category in synthetic.CATEGORIES:
        synthetic.generate(category, path / category)
    return path


def read(folder: Path) -> NDArray[np.uint8]:
    """All images of a folder, by name."""
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def index(category: str, defect: str, number: int) -> int:
    return synthetic.NORMAL + synthetic.DEFECTS[category].index(defect) * synthetic.EACH + number


def test_categories_are_two_textures_then_two_objects() -> None:
    assert list(synthetic.CATEGORIES.values()) == ["textures", "textures", "objects", "objects"]
    assert list(synthetic.CATEGORIES) == list(synthetic.DEFECTS)


@pytest.mark.parametrize("category", synthetic.CATEGORIES)
def test_layout_and_counts(root: Path, category: str) -> None:
    defects = sorted(synthetic.DEFECTS[category])
    assert names(root) == sorted(synthetic.CATEGORIES)
    assert names(root / category) == ["ground_truth", "test", "train"]
    assert names(root / category / "train") == ["good"]
    assert names(root / category / "train/good") == [f"{number:03d}.png" for number in range(40)]
    assert names(root / category / "test") == sorted([*defects, "good"])
    assert names(root / category / "test/good") == [f"{number:03d}.png" for number in range(20)]
    assert names(root / category / "ground_truth") == defects
    for defect in defects:
        assert names(root / category / "test" / defect) == [f"{number:03d}.png" for number in range(5)]
        assert names(root / category / "ground_truth" / defect) == [f"{number:03d}_mask.png" for number in range(5)]


@pytest.mark.parametrize(("category", "defect"), PAIRS)
def test_masks_are_exact(root: Path, category: str, defect: str) -> None:
    images, masks = read(root / category / "test" / defect), read(root / category / "ground_truth" / defect)
    assert images.shape == (5, 256, 256, 3)
    assert masks.shape == (5, 256, 256)
    assert set(np.unique(masks)) == {0, 255}
    for number in range(5):
        twin, nothing = synthetic.render(category, "test", index(category, defect, number))
        change = np.abs(images[number].astype(int) - twin).max(axis=2)
        inside = masks[number] > 0
        assert not nothing.any()
        assert not change[~inside].any()
        assert 20 <= inside.sum() < 4000
        assert (change[inside] > 0).mean() > 0.9  # the rest are closed specks


@pytest.mark.parametrize("category", synthetic.CATEGORIES)
def test_image_depends_only_on_its_name(root: Path, category: str) -> None:
    defect = synthetic.DEFECTS[category][-1]
    image, mask = synthetic.render(category, "test", index(category, defect, 3), defect)
    assert np.array_equal(image, read(root / category / "test" / defect)[3])
    assert np.array_equal(mask, read(root / category / "ground_truth" / defect)[3] > 0)
    assert np.array_equal(synthetic.render(category, "train", 39)[0], read(root / category / "train/good")[39])


@pytest.mark.parametrize("category", synthetic.CATEGORIES)
def test_images_are_distinct(root: Path, category: str) -> None:
    contents = [file.read_bytes() for file in (root / category).rglob("*.png") if "ground_truth" not in file.parts]
    assert len(contents) == len(set(contents)) == 80


@pytest.mark.parametrize("category", synthetic.CATEGORIES)
def test_brightness_does_not_reveal_defects(root: Path, category: str) -> None:
    def means(folder: str) -> NDArray[np.float64]:
        return np.asarray(read(root / category / folder).mean(axis=(1, 2, 3)))

    good = means("test/good")
    bad = np.concatenate([means(f"test/{defect}") for defect in synthetic.DEFECTS[category]])
    usual = means("train/good").mean()
    for normal, defective in ((good, bad), (abs(good - usual), abs(bad - usual))):
        auroc = (normal[:, None] < defective).mean()  # no two means are equal
        assert 0.35 <= auroc <= 0.65  # neither brightness nor its deviation from the mean separates them


@pytest.mark.parametrize(
    ("category", "mean"), [("weave", 93.13), ("granite", 106.13), ("gear", 141.60), ("biscuit", 112.07)]
)
def test_images_match_the_revision(category: str, mean: float) -> None:
    """If this fails, raise IMAGES_REVISION and measure the published numbers again."""
    image, mask = synthetic.render(category, "test", 21, synthetic.DEFECTS[category][0])
    assert synthetic.IMAGES_REVISION == 2
    assert image[mask].mean() == pytest.approx(mean, abs=0.02)


def test_only_the_category_that_is_read_is_generated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path))
    dataset = synthetic.synthetic("synthetic", "Synthetic", None)
    assert dataset.available == list(synthetic.CATEGORIES)
    assert len(dataset.task("gear").fit) == synthetic.TRAIN
    assert names(dataset.root) == ["gear"]
    (dataset.root / "gear/train/good/003.png").unlink()
    assert len(dataset.task("gear").fit) == synthetic.TRAIN, "an incomplete category is made anew"
