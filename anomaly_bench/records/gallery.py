"""Pictures of the worst cases: a run writes them beside its record, the HTML report reads them. No torch here.

The worst cases of a test set are its false alarms (the normal images with the highest scores) and its misses (the
defective ones with the lowest). Rank 1 is the worst of its kind.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw

from anomaly_bench.files import safe_filename, write_atomically
from anomaly_bench.heatmap import heat
from anomaly_bench.mapped import stretches

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record

OUTLINE = (96, 255, 224)  # of masks on maps; unlike any heat map colour
PICTURE = 128  # pixels: side of each of a picture's three squares
SHOWN = (0.2, 0.8)  # of the range of maps: what is below is dark, what is above light, as N-pad's figures show them


def worst(defective: Sequence[bool], scores: Sequence[float] | NDArray[np.floating[Any]]) -> dict[str, list[int]]:
    """Indices of the images, worst first: "alarm" all normal ones, "miss" all defective ones."""
    values, labels = np.asarray(scores), np.asarray(defective, bool)
    rising, falling = np.argsort(values, kind="stable"), np.argsort(-values, kind="stable")
    return {"alarm": falling[~labels[falling]].tolist(), "miss": rising[labels[rising]].tolist()}


def picture_name(kind: str, rank: int, file: str) -> str:
    """'miss-1-test-broken_large-003.png', from an image's path in the dataset."""
    name = str(PurePosixPath(file).with_suffix("")).replace("/", "-")
    return f"{kind}-{rank}-{safe_filename(name, longest=200)}.png"


def save_pictures(
    folder: Path,
    images: Sequence[Mapping[str, Any]],
    pixels: NDArray[Any],
    maps: NDArray[np.float32] | None,
    masks: NDArray[np.bool_] | None,
    count: int,
) -> None:
    """Write pictures `alarm-1-*.png` (highest normal images) and `miss-1-*.png` (lowest defective ones).

    Each shows the image, its mask and its map side by side, with the mask outlined on the map; maps share the test
    set's scale, `SHOWN` of its range. `images`: those of a record.
    """
    cases = worst([image["defect"] is not None for image in images], [image["score"] for image in images])
    alarms = cases["alarm"][: (count + 1) // 2]
    misses = cases["miss"][: count - len(alarms)]
    low, high = (0.0, 0.0) if maps is None else limits(maps)
    low, high = (low + share * (high - low) for share in SHOWN)
    for kind, indices in (("alarm", alarms), ("miss", misses)):
        for rank, index in enumerate(indices, 1):
            squares = [visible(pixels[index])]
            if masks is not None:
                squares.append(np.repeat(masks[index][..., None], 3, axis=-1) * np.uint8(255))
            if maps is not None:
                squares.append(heat(maps[index], low, high))
            sheet, buffer = beside(squares), io.BytesIO()
            if maps is not None and masks is not None:
                left = PICTURE * (len(squares) - 1)
                draw_outlines(sheet, masks[index].astype(np.float32), 0.5, (left, 0, left + PICTURE, PICTURE))
            sheet.save(buffer, "PNG", compress_level=1)
            write_atomically(folder / picture_name(kind, rank, images[index]["file"]), buffer.getvalue())


def limits(maps: NDArray[np.float32]) -> tuple[float, float]:
    """The lowest and the highest value."""
    found = [(float(maps[part].min()), float(maps[part].max())) for part in stretches(maps)]
    return min(low for low, _ in found), max(high for _, high in found)


def visible(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, 3) 8-bit colours unchanged; of other (H, W, C) values three channels or one, scaled to 0-255."""
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return pixels
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    low, high = float(shown.min()), float(shown.max())
    return ((shown - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def beside(squares: Sequence[NDArray[np.uint8]]) -> PILImage.Image:
    """(H, W, 3) arrays side by side, each PICTURE pixels wide and high."""
    sheet = PILImage.new("RGB", (PICTURE * len(squares), PICTURE))
    for position, square in enumerate(squares):
        sheet.paste(PILImage.fromarray(square).resize((PICTURE, PICTURE)), (position * PICTURE, 0))
    return sheet


def draw_outlines(
    picture: PILImage.Image, values: NDArray[np.floating[Any]], level: float, box: tuple[int, int, int, int]
) -> None:
    """Lines around what is above `level` in (H, W) values that cover the (left, top, right, bottom) of a picture."""
    from skimage.measure import find_contours

    if not (values > level).any():
        return
    outside = 2 * level - float(values.max())  # closes lines at the edge
    lines = find_contours(np.pad(values, 1, constant_values=outside), level)  # (V, 2) rows and columns of pixel centres
    if sum(map(len, lines)) > values.size / 4:
        return  # specks: their outlines would hide the map
    left, top, right, bottom = box
    sides, pen = np.array([bottom - top, right - left]), ImageDraw.Draw(picture)
    for line in lines:
        rows, columns = np.clip((line - 0.5) * (sides / values.shape), 0, sides - 1).T
        points = list(zip((left + columns).tolist(), (top + rows).tolist(), strict=True))
        pen.line(points, fill=OUTLINE, width=max(1, int(sides.max()) // 400))


@dataclass(frozen=True)
class Case:
    """One of the worst images of a record.

    Attributes:
        kind: "alarm" or "miss".
        file, defect: the image's path in the dataset, and its label, None if normal.
        score: of the image; rank: among all `images` of the test set, 1 for the highest score.
        crossed: how many of the `others` (images of the other label) are on the wrong side of it: defective ones that
            score no higher than a false alarm, normal ones that score no lower than a miss.
        picture: the file that `save_pictures` wrote, if it exists.
    """

    kind: str
    file: str
    defect: str | None
    score: float
    rank: int
    images: int
    crossed: int
    others: int
    picture: Path | None


def cases(record: Record, folder: Path, least: int = 3) -> Iterator[Case]:
    """The worst of each kind: those with a picture in `folder`, and at least `least`."""
    scores = np.array([image["score"] for image in record.images])
    defective = np.array([image["defect"] is not None for image in record.images], bool)
    for kind, indices in worst(defective.tolist(), scores).items():
        others = scores[defective if kind == "alarm" else ~defective]
        for place, index in enumerate(indices, 1):
            image, score = record.images[index], float(scores[index])
            picture = folder / picture_name(kind, place, image["file"])
            found = picture if picture.is_file() else None
            if found is None and place > least:
                break
            crossed = int((others <= score).sum() if kind == "alarm" else (others >= score).sum())
            rank = int((scores > score).sum()) + 1
            yield Case(kind, image["file"], image["defect"], score, rank, len(scores), crossed, len(others), found)


def squares(picture: Path) -> dict[str, PILImage.Image]:
    """ "image", and "mask" and "map" if drawn, from a file of `save_pictures`; empty if it is damaged."""
    try:
        with PILImage.open(picture, formats=("PNG",)) as opened:
            sheet = opened.convert("RGB")
    except (OSError, SyntaxError):  # a broken PNG raises either
        return {}
    side = sheet.height
    names = {1: ["image"], 2: ["image", "map"], 3: ["image", "mask", "map"]}.get(sheet.width // side, [])
    return {name: sheet.crop((side * place, 0, side * (place + 1), side)) for place, name in enumerate(names)}
