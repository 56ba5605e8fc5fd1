"""`anomaly-bench score model=DIR images=DIR out=DIR`: a fitted model scores any folder of images.

    out/scores.csv              file, score: each image's path below `images` and its raw score, higher = more anomalous
    out/maps/<image>.npy        its anomaly map, float32 (H, W) of the model's input (within the crop, if it has one)
    out/overlays/<image>.png    the map's heat over the image

An image is read as a run reads it: grey repeated, alpha dropped, 16 bits scaled to 8, resized and cropped as when
the model was fitted. The same files in the same batches score the same to the last bit. One scale of colours holds
for the whole folder (`common_scale`, or the key `scale`), so overlays are drawn at the end, from the maps on the disk:
what is held in memory is two batches of images, the names and the scores. No torch at the top: a wrong folder is said
at once.
"""

from __future__ import annotations

import contextlib
import csv
import heapq
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.config.settings import folder, input_size, new_folder, truth, whole
from anomaly_bench.console import Reporter, log_file
from anomaly_bench.data import decoding
from anomaly_bench.data.anomaly_maps import map_names, write_about
from anomaly_bench.data.dataset import Source
from anomaly_bench.data.geometry import centred
from anomaly_bench.data.overlays import common_scale, overlay
from anomaly_bench.errors import DataError, UsageError
from anomaly_bench.files import image_files, relative, tree
from anomaly_bench.hardware import sharing
from anomaly_bench.hardware.devices import cores
from anomaly_bench.protocol import to_tensor

if TYPE_CHECKING:
    import torch

    from anomaly_bench.protocol import Method

SHOWN = 5  # images on the screen, those with the highest scores
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """The keys of `score model=DIR`, checked."""

    model: Path
    images: Path
    out: Path
    weights: str | None
    save_maps: bool
    save_overlays: bool
    scale: tuple[float, float] | None
    device: str
    threads: int
    batch_size: int


def score(values: Mapping[str, Any]) -> bool:
    """Score every image of a folder; True: all of them could be read.

    Raises:
        UsageError: no model, no image, weights other than the model's, or `out` cannot be used.
    """
    wanted = read_wanted(values)
    files = [file for each in tree(wanted.images) for file in image_files(each)]
    if not files:
        raise UsageError(f"images={wanted.images}: no image in it or its sub-folders; expected png, jpg, tif, bmp, ...")
    from anomaly_bench.hardware import torch_setup
    from anomaly_bench.runs import saved_model

    about = saved_model.read_about(wanted.model)
    device = torch_setup.set_up(wanted.device, wanted.threads, about["precision"])
    method = saved_model.load_model(wanted.model, device, wanted.weights)
    new_folder(values, "out")
    reporter = Reporter()
    with sharing.computing(), log_file(wanted.out / "score.log"), ThreadPoolExecutor(wanted.threads) as pool:
        try:
            return Folder(wanted, files, about, reporter, pool).score(method, device)
        except OSError as error:  # of an image it would be a DataError
            raise UsageError(f"out={wanted.out}: cannot be written ({error.strerror or error})") from error


def read_wanted(values: Mapping[str, Any]) -> Wanted:
    """Check the keys; see `score`."""
    images = folder(values, "images", "a folder of images to score")
    if values["out"] is None:
        raise UsageError("out=DIR is missing: expected a new folder for scores.csv, maps and overlays")
    out = Path(str(values["out"])).expanduser()
    ours, theirs = out.resolve(), images.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours / "overlays"):
        raise UsageError(f"out={out} and images={images}: overlays would lie among the images; give out another folder")
    return Wanted(
        model=folder(values, "model", "a folder that save_model=true has written"),
        images=images,
        out=out,
        weights=None if values["weights"] is None else str(values["weights"]),
        save_maps=truth(values, "save_maps"),
        save_overlays=truth(values, "save_overlays"),
        scale=read_scale(values["scale"]),
        device=str(values["device"]),
        threads=cores() if values["threads"] is None else whole(values, "threads", 1),
        batch_size=whole(values, "batch_size", 1),
    )


def read_scale(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value)
    if not numbers or not value[0] < value[1]:
        raise UsageError(f"scale={value}: expected the lowest and the highest map value, as [0.5,12]")
    return float(value[0]), float(value[1])


class Folder:
    """A folder of images on its way through one model.

    Args:
        files: every image below `wanted.images`.
        about: the model's `model.yaml`.
        pool: decodes images and draws overlays.
    """

    def __init__(
        self,
        wanted: Wanted,
        files: Sequence[Path],
        about: Mapping[str, Any],
        reporter: Reporter,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.wanted, self.files, self.reporter, self.pool = wanted, files, reporter, pool
        backbone = about["backbone"]
        self.title = about["method"]["about"]["title"] + (f" on {backbone['about']['title']}" if backbone else "")
        self.input = about["input"]
        self.resize, self.crop = input_size(self.input)
        self.names = dict(zip(files, map_names([self.name(file) for file in files]), strict=True))
        self.failed = 0
        self.scored: list[tuple[float, str]] = []
        self.mapped: list[Path] = []  # the files of which there is a map
        self.ends: list[tuple[float, float]] = []  # the lowest and the highest value of each map

    def name(self, file: Path) -> str:
        """The path below `images`, with forward slashes."""
        return relative(file, self.wanted.images)

    def score(self, method: Method, device: torch.device) -> bool:
        """Everything that was asked for, into `out`; True: no image failed."""
        with self.maps_folder() as maps:
            self.score_images(method, device, maps)
            if self.wanted.save_overlays and self.mapped:
                self.draw(maps)
        if not self.mapped and self.scored:
            self.reporter.say(f"{self.title} makes no maps: there are scores only, and no overlays")
        print(
            f"{len(self.scored)} of {len(self.files)} images scored by {self.title}: {self.wanted.out / 'scores.csv'}"
        )
        for value, name in heapq.nlargest(SHOWN, self.scored):
            print(f"{value:12.6g}  {name.encode(errors='replace').decode()}")  # bytes that are no UTF-8 cannot be shown
        return not self.failed

    @contextlib.contextmanager
    def maps_folder(self) -> Iterator[Path]:
        """Where maps are written: for good, or until overlays are drawn."""
        if self.wanted.save_maps:
            yield self.wanted.out / "maps"
        else:
            with tempfile.TemporaryDirectory(prefix=".maps-", dir=self.wanted.out) as temporary:
                yield Path(temporary)

    def score_images(self, method: Method, device: torch.device, maps: Path) -> None:
        """All images, batch by batch, without the files that cannot be read."""
        from anomaly_bench.runs.evaluator import score_batch

        parts = chunks(self.files, self.wanted.batch_size)
        with self.rows() as write, self.reporter.stage("scoring", len(self.files)) as advance:
            for files, futures in ahead(self.pool, self.decode, parts):
                read: dict[Path, NDArray[np.uint8]] = {}
                for file, future in zip(files, futures, strict=True):
                    with self.failing():
                        read[file] = future.result()
                if read:
                    scores, found = score_batch(method, to_tensor(np.stack(list(read.values())), device))
                    for index, file in enumerate(read):
                        with self.failing():
                            self.keep(file, scores[index], None if found is None else found[index], maps)
                            write(self.scored[-1])
                advance(len(files))

    @contextlib.contextmanager
    def rows(self) -> Iterator[Callable[[tuple[float, str]], Any]]:
        """Writes `scores.csv` row by row; it has its name once all are in it: a part is never taken for the whole."""
        part = self.wanted.out / "scores.csv.part"
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("file", "score"))
            try:
                yield lambda scored: writer.writerow(reversed(scored))
            except BaseException:
                self.reporter.warn(f"{len(self.scored)} of {len(self.files)} scores are in {part}")
                raise
        os.replace(part, part.with_suffix(""))

    def decode(self, file: Path) -> NDArray[np.uint8]:
        """The (H, W, 3) pixels that the model sees.

        Raises:
            DataError: the file cannot be read, for whatever reason.
        """
        try:
            return centred(decoding.decode_image(Source(file), self.resize), self.crop)
        except DataError:
            raise
        except Exception as error:  # a damaged file makes PIL's readers fail in ways that they do not document
            raise DataError(f"{file}: cannot be decoded ({error!r}); replace the file or take it away") from error

    def keep(self, file: Path, score: np.float32, values: NDArray[np.float32] | None, maps: Path) -> None:
        """Take in one image's score, and its (H, W) map."""
        if not np.isfinite(score) or (values is not None and not np.isfinite(values).all()):
            raise DataError(f"{file}: its score or map is NaN or infinite; expected finite numbers of {self.title}")
        if values is not None:
            if self.wanted.save_maps or self.wanted.save_overlays:
                np.save(made_folder(maps / f"{self.names[file]}.npy"), values)
            if self.wanted.save_maps and not self.mapped:
                write_about(maps, self.title, self.input)
            self.ends.append((float(values.min()), float(values.max())))
            self.mapped.append(file)
        self.scored.append((float(score), self.name(file)))

    def draw(self, maps: Path) -> None:
        """All overlays, on one scale."""
        low, high = self.wanted.scale or common_scale(self.ends)

        def draw_one(file: Path) -> None:
            values = np.load(maps / f"{self.names[file]}.npy")
            path = made_folder(self.wanted.out / "overlays" / f"{self.names[file]}.png")
            overlay(file, values, low, high, self.resize, self.crop).save(path, compress_level=1)

        with self.reporter.stage("overlays", len(self.mapped)) as advance:
            for _, futures in ahead(self.pool, draw_one, chunks(self.mapped, self.wanted.batch_size)):
                for future in futures:
                    with self.failing():
                        future.result()
                    advance(1)
        self.reporter.say(f"overlays: in every image the colours go from {low:.4g} (dark) to {high:.4g} (light)")

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """An image that fails is named and counted; the others go on.

        Raises:
            OSError: `out` can no longer be written.
        """
        try:
            yield
        except DataError as error:
            self.failed += 1
            self.reporter.fail(str(error), error)


def made_folder(path: Path) -> Path:
    """A file's path, whose folder is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], Any], parts: Iterator[Sequence[T]]
) -> Iterator[tuple[Sequence[T], list[Future[Any]]]]:
    """Each part with its futures, while the next part is already at work; no more than two are."""
    waiting = None
    for part in parts:
        started = part, [pool.submit(work, item) for item in part]
        if waiting is not None:
            yield waiting
        waiting = started
    if waiting is not None:
        yield waiting
