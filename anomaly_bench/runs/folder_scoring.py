"""Score a folder of images of any size with a fitted method: scores, maps and overlays. No torch here."""

from __future__ import annotations

import contextlib
import csv
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomaly_bench.config.settings import input_size, resize_filter, used_bits
from anomaly_bench.data import decoding, findings
from anomaly_bench.data.anomaly_maps import map_names, write_about
from anomaly_bench.data.dataset import RGB, Sample, Source
from anomaly_bench.data.geometry import centred
from anomaly_bench.data.overlays import common_scale, overlay
from anomaly_bench.errors import DataError, UsageError, shown
from anomaly_bench.files import relative, safe_cell, short_path
from anomaly_bench.metrics.thresholds import shortage, thresholds_of
from anomaly_bench.protocol import to_tensor
from anomaly_bench.runs.verdicts import Judge, summary, write_scores

if TYPE_CHECKING:
    import torch

    from anomaly_bench.console import Reporter
    from anomaly_bench.protocol import Method

MAX_FALSE_ALARMS = 0.05  # of calibrate=DIR, where neither the key nor the model says another
Item = TypeVar("Item")


@dataclass(frozen=True)
class Wanted:
    """The keys of `score model=DIR`, checked."""

    model: Path
    images: Path
    calibrate: Path | None
    out: Path
    weights: str | None
    save_maps: bool
    save_overlays: bool
    scale: tuple[float, float] | None
    device: str
    threads: int
    batch_size: int


class Folder:
    """A folder of images, scored by one model.

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
        on = f" on {backbone['about']['title']}" if backbone else ""
        self.title = shown(about["method"]["about"]["title"] + on)
        self.input = about["input"]
        (self.resize, self.crop), self.filter = input_size(self.input), resize_filter(self.input)
        self.bits = used_bits(self.input)
        self.thresholds: Mapping[str, Any] = about.get("thresholds") or {}
        self.held_out: Sequence[Mapping[str, Any]] = about.get("held_out") or ()
        names = map(short_path, map_names([self.name(file) for file in files]))
        self.names = dict(zip(files, names, strict=True))
        self.failed = 0
        self.scored: list[tuple[float, str]] = []
        self.mapped: list[Path] = []  # files with a map
        self.ends: list[tuple[float, float]] = []  # lowest and highest value of each map
        self.facts: dict[Path, findings.Facts] = {}  # of the files read

    def name(self, file: Path) -> str:
        """The path below `images`, with forward slashes."""
        return file.relative_to(self.wanted.images).as_posix()

    def score(self, method: Method, device: torch.device) -> bool:
        """Write all requested output to `out`; True: no image failed."""
        with self.maps_folder() as maps:
            self.score_images(method, device, maps)
            self.say_noticed("images", self.wanted.images, self.files)
            judge = Judge(self.thresholds, self.held_out)
            rows = judge.rows(self.scored)
            write_scores(self.wanted.out / "scores.csv", rows)
            self.part.unlink()
            if self.wanted.save_overlays and self.mapped:
                self.draw(maps)
        if not self.mapped and self.scored:
            self.reporter.say(f"{self.title} makes no maps: only scores are written")
        print(
            f"{len(self.scored)} of {len(self.files)} images scored by {self.title}: {self.wanted.out / 'scores.csv'}"
        )
        for line in summary(rows, judge):
            print(line)
        return not self.failed

    def calibrate(
        self, method: Method, device: torch.device, folder: Path, files: Sequence[Path], rate: float | None
    ) -> None:
        """Make thresholds from a folder of normal images, instead of those held out from the model's fit.

        Args:
            rate: the share of normal images above a threshold; None: the model's.
        """
        found = [
            {"score": float(score), "peak": None if values is None else float(values.max())}
            for _, score, values in self.scores(method, device, files, "calibrating")
        ]
        self.say_noticed("calibrate", folder, files)
        rate = rate or self.thresholds.get("max_false_alarms", MAX_FALSE_ALARMS)
        self.held_out, self.thresholds = found, thresholds_of(found, rate)
        if lack := shortage(len(found), rate):
            self.reporter.warn(f"calibrate={folder}: {lack}")

    def say_noticed(self, key: str, folder: Path, files: Sequence[Path]) -> None:
        """What was noticed about the images of a folder, as in a run."""
        read = [file for file in files if file in self.facts]
        samples = [Sample(relative(file, folder), None, (Source(file),)) for file in read]
        images = findings.ReadSet(samples, [self.facts.pop(file) for file in read], masks=[])
        found = findings.find(images, [], lambda sample: sample.id)
        findings.say(key, f"{len(read)} images", found, self.reporter.say, self.reporter.warn)

    @contextlib.contextmanager
    def maps_folder(self) -> Iterator[Path]:
        """Where maps are written; temporary unless they are to be saved."""
        if self.wanted.save_maps:
            yield self.wanted.out / "maps"
        else:
            with tempfile.TemporaryDirectory(prefix=".maps-", dir=self.wanted.out) as temporary:
                yield Path(temporary)

    def score_images(self, method: Method, device: torch.device, maps: Path) -> None:
        """Score all readable images and keep what is requested of each."""
        with self.rows() as write:
            for file, score, values in self.scores(method, device, self.files, "scoring"):
                self.keep(file, score, values, maps)
                write(self.scored[-1])

    def scores(
        self, method: Method, device: torch.device, paths: Sequence[Path], title: str
    ) -> Iterator[tuple[Path, np.float32, NDArray[np.float32] | None]]:
        """File, score and (H, W) map of all images that can be read and scored, batch by batch."""
        from anomaly_bench.runs.evaluator import score_batch

        with self.reporter.stage(title, len(paths)) as advance:
            for files, futures in ahead(self.pool, self.decode, chunks(paths, self.wanted.batch_size)):
                read: dict[Path, NDArray[np.uint8]] = {}
                for file, future in zip(files, futures, strict=True):
                    with self.failing():
                        read[file] = future.result()
                if read:
                    scores, found = score_batch(method, to_tensor(np.stack(list(read.values())), device))
                    for index, file in enumerate(read):
                        values = None if found is None else found[index]
                        if self.finite(file, scores[index], values):
                            yield file, scores[index], values
                advance(len(files))

    @property
    def part(self) -> Path:
        """The scores so far, without verdicts."""
        return self.wanted.out / "scores.csv.part"

    @contextlib.contextmanager
    def rows(self) -> Iterator[Callable[[tuple[float, str]], Any]]:
        """Write scores as they come, into `part`."""
        with self.part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("file", "score"))
            try:
                yield lambda scored: writer.writerow((safe_cell(scored[1]), scored[0]))
            except BaseException:
                self.reporter.warn(f"{len(self.scored)} of {len(self.files)} scores are in {self.part}")
                raise

    def decode(self, file: Path) -> NDArray[np.uint8]:
        """The (H, W, 3) pixels that the model sees.

        Raises:
            DataError: the file cannot be read, for any reason.
        """
        try:
            sample = Sample(str(file), None, (Source(file),))
            found = decoding.decode_sample(sample, (RGB,), self.resize, self.filter, self.bits)
            self.facts[file] = {kind: fact for kind, fact in found.facts.items() if kind != "pixels"}
            return centred(found.values, self.crop)
        except DataError:
            raise
        except Exception as error:  # PIL raises undocumented errors on damaged files
            raise DataError(f"{file}: cannot be decoded ({error!r}); replace or remove the file") from error

    def finite(self, file: Path, score: np.float32, values: NDArray[np.float32] | None) -> bool:
        """Whether score and map are finite; if not, the image has failed."""
        if np.isfinite(score) and (values is None or np.isfinite(values).all()):
            return True
        with self.failing():
            raise DataError(f"{file}: its score or map is NaN or infinite; expected finite numbers from {self.title}")
        return False

    def keep(self, file: Path, score: np.float32, values: NDArray[np.float32] | None, maps: Path) -> None:
        """Store one image's score and its (H, W) map."""
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
        threshold = self.thresholds.get("pixel")

        def draw_one(file: Path) -> None:
            values = np.load(maps / f"{self.names[file]}.npy")
            path = made_folder(self.wanted.out / "overlays" / f"{self.names[file]}.png")
            overlay(file, values, low, high, self.resize, self.crop, threshold, self.bits).save(path, compress_level=1)

        with self.reporter.stage("overlays", len(self.mapped)) as advance:
            for _, futures in ahead(self.pool, draw_one, chunks(self.mapped, self.wanted.batch_size)):
                for future in futures:
                    with self.failing():
                        future.result()
                    advance(1)
        self.reporter.say(f"overlays: all on one colour scale, from {low:.4g} (dark) to {high:.4g} (light)")
        if self.thresholds:
            count, rate = self.thresholds["images"], self.thresholds["max_false_alarms"]
            where = "no outlines" if threshold is None else f"outlines at {threshold:.4g}"
            why = shortage(count, rate) or f"at most {100 * rate:g}% false alarms, by {count} held-out normal images"
            self.reporter.say(f"overlays: {where} ({why})")

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Report and count an image that fails; the others continue.

        Raises:
            OSError: `out` can no longer be written.
        """
        try:
            yield
        except DataError as error:
            self.failed += 1
            self.reporter.fail(str(error), error)


def thresholds_at(about: Mapping[str, Any], max_false_alarms: float | None) -> dict[str, Any]:
    """The thresholds of a model's `model.yaml`, at another rate if one is given; empty: it was fitted without any.

    Raises:
        UsageError: a rate is given, and there is nothing to make thresholds from.
    """
    if max_false_alarms is None:
        return about.get("thresholds") or {}
    if not about.get("held_out"):
        raise UsageError(
            f"max_false_alarms={max_false_alarms:g}: the model was fitted without held-out images; fit it with "
            "holdout=0.2 save_model=true"
        )
    return thresholds_of(about["held_out"], max_false_alarms)


def made_folder(path: Path) -> Path:
    """Create the folder of a path; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Any], parts: Iterator[Sequence[Item]]
) -> Iterator[tuple[Sequence[Item], list[Future[Any]]]]:
    """Each part with its futures, while the next part is already being processed; at most two at a time."""
    waiting = None
    for part in parts:
        started = part, [pool.submit(work, item) for item in part]
        if waiting is not None:
            yield waiting
        waiting = started
    if waiting is not None:
        yield waiting
