"""One task, from files to records: fit, score, metrics, sizes, speed."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly_bench import mapped
from anomaly_bench.backbones.build import identify, make_backbone, make_method, make_network
from anomaly_bench.backbones.cached import CachedBackbone, ExtractionCost, ExtractionLog, ImageSet, Store
from anomaly_bench.backbones.feature_store import FeatureCache
from anomaly_bench.backbones.tiling import require_tiles
from anomaly_bench.config.instantiate import networks
from anomaly_bench.config.parts import without_target
from anomaly_bench.data import findings
from anomaly_bench.hardware import devices, memory, sharing, timing
from anomaly_bench.hardware.torch_setup import set_up
from anomaly_bench.metrics import thresholds
from anomaly_bench.metrics.metrics import all_equal, evaluate
from anomaly_bench.metrics.registry import metrics_of_run, stored_metrics
from anomaly_bench.protocol import Outcome, TrainingSet, to_tensor
from anomaly_bench.records import gallery
from anomaly_bench.records.provenance import provenance
from anomaly_bench.records.training_share import training_of
from anomaly_bench.runs import saved_model

if TYPE_CHECKING:
    from anomaly_bench.backbones.weights import Weights
    from anomaly_bench.config.settings import Settings
    from anomaly_bench.console import Reporter
    from anomaly_bench.data.dataset import Sample
    from anomaly_bench.protocol import Method
    from anomaly_bench.records.record import Record
    from anomaly_bench.runs.job import Job

LIBRARY_BYTES = 200_000_000  # libraries imported during a job, and allocator overhead; measured: 180 to 240 MB


@dataclass(frozen=True)
class Fitted:
    """A fitted method, the cost of its fit, and of feature extraction for it."""

    method: Any  # a torch.nn.Module that is a protocol.Method
    cost: dict[str, Any]
    training: dict[str, Any] | None
    work: ExtractionCost


class Evaluator:
    """Evaluates jobs of one configuration on one device, all with the same frozen backbone."""

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, Weights], settings: Settings, reporter: Reporter
    ) -> None:
        self.config, self.settings, self.reporter = config, settings, reporter
        holdout = settings.holdout > 0
        self.metrics = stored_metrics(holdout) | metrics_of_run(config, holdout)
        self.device = set_up(settings.device, settings.threads, settings.precision)
        self.ledger = ExtractionLog(self.device)
        self.weights = weights
        self.networks: list[CachedBackbone] = []  # of the backbone
        made = make_backbone(config, weights, settings.precision, self.watched, recorded=True)
        self.backbone = made.to(self.device)

    def watched(self, name: str, network: Any) -> CachedBackbone:
        """Wrap one of the backbone's networks so that its features are read from the cache if possible."""
        node, weights, settings = networks(self.config["backbone"])[name], self.weights[name], self.settings
        store = None
        if settings.cache == "on" or (settings.cache in {"auto", "read"} and self.device.type == "cpu"):
            store = Store(
                FeatureCache(1e9 * settings.cache_gb),
                {**identify(without_target("backbone", node), self.weights), "precision": settings.precision},
                node.get("modules", ""),
                lambda levels: make_network(node, weights, settings.precision, levels, recorded=True).to(self.device),
                self.reporter.stage,
                fills=settings.cache != "read",
            )
        self.networks.append(CachedBackbone(network, self.ledger, store))
        return self.networks[-1]

    def new_method(self) -> Any:
        return make_method(self.config["method"], self.backbone)

    def evaluate(self, job: Job) -> list[Record]:
        """Fit on the task's normal images and make one record per test set; write maps and so on to `job.staging`.

        Raises:
            TooLarge: see `require_memory`.
            DataError: an image cannot be read. The method's own exceptions propagate.
        """
        with sharing.computing():
            timing.reset_peaks(self.device)
            self.require_memory(job)
            for images in filter(None, (job.task.fit, job.task.validation)):
                self.pixels(job, images, "training")
            with ThreadPoolExecutor(1) as apart:  # decodes test images while training images are in the backbone
                looking = apart.submit(self.look, job)
                if "epochs" in self.config["method"] or self.device.type == "cpu":
                    # nobody trains for an hour to read that a test image is damaged; and both would share the cores
                    looking.result()
                fitted = self.fit(job)
                noticed = looking.result()
            records = [replace(self.test(job, name, fitted), findings=noticed[name]) for name in job.task.tests]
        return self.timed(job, records, fitted.method) if self.settings.speed else records

    def look(self, job: Job) -> dict[str, dict[str, list[str]]]:
        """Decode what is not decoded yet and say what was noticed; by test set, kind -> files."""
        listed = job.noticed(list(job.task.tests))
        findings.say(job.task.name, job.task.counted, listed, self.reporter.say, self.reporter.warn)
        return {test: {each.kind: list(each.files) for each in job.noticed([test])} for test in job.task.tests}

    def require_memory(self, job: Job) -> None:
        """Reject a job that would not fit into memory, before decoding its images.

        The size of a memory bank is known only after its first batch: methods with one check it then.

        Raises:
            TooLarge: with the size, its parts, and how to reduce it.
        """
        size = self.settings.size
        for where, parts in self.needs(job):
            sizes = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in parts.items() if size >= 1e6)
            memory.require(
                sum(parts.values()),
                where,
                f"{job.task.name} at {size[1]}x{size[0]} pixels ({sizes})",
                "use a smaller input.resize or input.crop, batch_size or backbone, or fewer method dimensions",
            )

    def needs(self, job: Job) -> list[tuple[torch.device | None, dict[str, int]]]:
        """Bytes by purpose, on the device and (None) in main memory."""
        settings, tested = self.settings, max(map(len, job.task.tests.values()))
        stored, image = self.footprint(job.task.channels)
        batch = max(
            min(self.config["method"].get("batch", 1), len(job.task.fit)),
            settings.batch_size if settings.speed else min(settings.batch_size, tested),
        )
        scored = min(11 * tested * settings.size[0] * settings.size[1], 3 * mapped.LARGE)  # more is kept in files
        host = {"images": min(job.image_bytes, mapped.LARGE), "maps and metrics": scored, "libraries": LIBRARY_BYTES}
        host |= {"saved model": stored} if settings.save_model else {}
        device = {"statistics": stored, "a batch": image * batch}
        if hasattr(method := self.built(job.task.channels), "fit_bytes"):
            device["fitting"] = method.fit_bytes(len(job.task.fit))
        if self.device.type != "cpu":
            return [(self.device, device), (None, host)]
        whole = device | host
        del whole[min(("a batch", "maps and metrics"), key=lambda part: whole[part])]  # not needed at once
        return [(None, whole)]

    @functools.cache  # noqa: B019 (an evaluator lives as long as its run)
    def footprint(self, channels: int) -> tuple[int, int]:
        """Bytes of a fitted method's statistics and parameters, and of one image's pass through the backbone."""
        size, image = sizes(self.built(channels)), self.shapes(channels)[1]
        # each parameter has its value, its gradient, and two moments of the optimiser
        stored = round(1e6 * (4 * size["extra_mb"] + size["stored_mb"]))
        return stored, image + 2 * 4 * channels * self.settings.size[0] * self.settings.size[1]

    @functools.cache  # noqa: B019 (see `footprint`)
    def built(self, channels: int) -> Any:
        """The method without values."""
        shapes, _ = self.shapes(channels)
        with torch.device("meta"):
            method = self.new_method()
            method.build(shapes)
        return method

    @functools.cache  # noqa: B019 (see `footprint`)
    def shapes(self, channels: int) -> tuple[list[tuple[int, int, int]], int]:
        """(C, h, w) of the backbone's levels, and the peak bytes of one image's pass through it."""
        found: tuple[list[tuple[int, int, int]], int] = self.backbone.infer_shapes(self.settings.size, channels)
        if hasattr(self.backbone, "tiles") and self.config["method"]["about"].get("maps", True):
            require_tiles(self.config["backbone"]["name"], self.backbone, self.settings.size, channels)
        return found

    def fit(self, job: Job) -> Fitted:
        name = job.task.name
        pixels = self.pixels(job, job.task.fit, "training")
        validation = () if self.settings.holdout else job.task.validation  # no fit sees what thresholds are made from
        held_out = self.pixels(job, validation, "validation") if validation else None
        seed = zlib.crc32(f"{self.settings.seed}/{name}".encode())
        method = self.new_method()
        self.ledger.work = ExtractionCost()
        announce = functools.partial(self.ledger.announce, self.rows(job, job.task.fit, pixels))
        with self.reporter.stage(f"{name}: fitting", len(pixels)) as advance, self.ledger.stopwatch() as elapsed:
            stage, group = self.reporter.stage, job.task.group
            checkpoint = self.settings.results / job.checkpoint if self.settings.checkpoint else None
            normals = TrainingSet(name, pixels, self.device, advance, stage, checkpoint, group, announce)
            if held_out is not None:
                normals.validation = TrainingSet(name, held_out, self.device, group=group)
            normals.steps = self.config["method"].get("train_steps")
            fit_method(method, self.shapes(job.task.channels)[0], normals, seed)
        facts = dict(getattr(method, "facts", {}))
        training = training_of(facts.pop("training", None), self.config["method"])
        return Fitted(method, {"fit_s": elapsed(), **facts}, training, self.ledger.work)

    def test(self, job: Job, test: str, fitted: Fitted) -> Record:
        """Score one test set and make its record."""
        images = job.task.tests[test]
        pixels = self.pixels(job, images, "test")
        rows = self.rows(job, images, pixels)
        self.ledger.work = replace(fitted.work)
        if self.settings.oracle:
            fitted.method.oracle(self.batches(rows))
        held_out = self.held_out(job, test, fitted.method)
        with self.ledger.stopwatch() as elapsed:
            scores, maps = self.score(fitted.method, rows)
        cost = {**fitted.cost, "score_s": elapsed()}
        cost |= {"extraction": self.ledger.work.facts(self.device)} if self.networks else {}
        cost |= {"peak_ram_mb": timing.peak_ram_mb(), "peak_gpu_mb": timing.peak_gpu_mb(self.device)}
        cost |= {"device": devices.device_name(str(self.device)), "threads": self.settings.threads}
        masks = job.masks(images) if maps is not None else None
        labels = np.array([image.label is not None for image in images])
        limits = held_out.get("thresholds") or {}
        outcome = Outcome(labels, scores, maps, masks, limits.get("image"), limits.get("pixel"))
        if said := all_equal(outcome):
            self.reporter.warn(f"{job.task.name}: {said}: the method tells no image from another")
        result = evaluate(outcome, self.metrics)
        expected = job.expected[test]
        record = replace(
            expected,
            **held_out,
            metrics=result.entries,
            curves=result.curves,
            counts={**expected.counts, "maps": 0 if maps is None else len(maps), **job.region_counts(test)},
            images=[
                {"file": image.id, "defect": image.label, "score": float(score)}
                | ({"clip": image.clip} if image.clip else {})
                for image, score in zip(images, scores, strict=True)
            ],
            size=sizes(fitted.method),
            cost=cost,
            training=fitted.training,
            provenance=provenance(),
        )
        folder = self.settings.results / job.staging / record.path.stem
        if self.settings.gallery:
            gallery.save_pictures(folder, record.images, pixels, maps, masks, self.settings.gallery)
        if self.settings.save_maps and maps is not None:
            saved_model.save_maps(folder, maps)
        if self.settings.save_model:
            saved_model.save_model(folder, fitted.method, job, record)
        return record

    def held_out(self, job: Job, test: str, method: Method) -> dict[str, Any]:
        """A record's `thresholds` and the `held_out` images they are made from; nothing where none are held out."""
        images = job.held_out(test)
        if not images:
            return {}
        pixels = self.pixels(job, images, "held-out")
        scores, maps = self.score(method, self.rows(job, images, pixels))
        peaks = [None] * len(images) if maps is None else maps.max(axis=(1, 2)).tolist()
        found = [
            {"file": image.id, "score": float(score), "peak": peak}
            for image, score, peak in zip(images, scores, peaks, strict=True)
        ]
        rate = self.settings.max_false_alarms
        if lack := thresholds.shortage(len(images), rate):
            self.reporter.warn(f"{job.task.name}: {lack}")
        return {"held_out": found, "thresholds": thresholds.thresholds_of(found, rate)}

    def score(self, method: Method, rows: ImageSet) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Scores (N,) and maps (N, H, W) of all images, in batches; many maps are kept in a file."""
        scores: list[float] = []  # no arrays: small ones kept among large freed ones would cut up memory
        with self.reporter.stage(f"{rows.name}: scoring", len(rows.pixels)) as advance:

            def score_all() -> Iterator[NDArray[np.float32]]:
                for images in self.batches(rows):
                    image_scores, image_maps = score_batch(method, images)
                    scores.extend(image_scores.tolist())
                    if image_maps is not None:
                        yield image_maps
                    advance(len(image_scores))

            maps = mapped.gathered(score_all(), len(rows.pixels))
        return np.array(scores, np.float32), maps

    def batches(self, rows: ImageSet) -> Iterator[Tensor]:
        """(B, C, H, W) of `batch_size` images each, on the device, announced to the backbone."""
        step = self.settings.batch_size
        for start in range(0, len(rows.pixels), step):
            images = to_tensor(rows.pixels[start : start + step], self.device)
            self.ledger.announce(rows, images, start, step)
            yield images
            if rows.pixels.nbytes > mapped.LARGE:
                mapped.release(rows.pixels)

    def rows(self, job: Job, images: tuple[Sample, ...], pixels: NDArray[Any]) -> ImageSet:
        return ImageSet(job.task.name, job.dataset.name, pixels, job.pixels_identity(images))

    def add_speed(self, job: Job, records: list[Record]) -> list[Record]:
        """Fit again, with the same result, and add a speed entry of this machine to each record."""
        with sharing.computing():
            method = self.fit(job).method
        return self.timed(job, records, method)

    def timed(self, job: Job, records: list[Record], method: Method) -> list[Record]:
        """The records with a speed entry of this machine added, the same for all test sets."""
        entry = self.speed(job, records[0].test, method)
        return [replace(record, speed=[*record.speed, entry]) for record in records]

    def speed(self, job: Job, test: str, method: Method) -> dict[str, Any]:
        """A speed entry, timed on the first images of the test set (repeated if it is smaller than a batch).

        No other job runs on this machine meanwhile; if that was not possible, the entry says so.
        """
        name = job.task.name
        pixels = self.pixels(job, job.task.tests[test], "test")
        first = np.resize(np.arange(len(pixels)), self.settings.batch_size)
        waiting = functools.partial(self.reporter.say, f"{name}: other jobs are running here; timing waits for them")
        timed = {"": functools.partial(score_batch, method)} | ({"backbone_": self.backbone} if self.networks else {})
        with sharing.exclusive(waiting) as alone, self.reporter.stage(f"{name}: timing (%)", 100) as advance:
            entry = timing.measure(timed, to_tensor(pixels[first]), self.device, advance=advance)
        key = job.speed_key(devices.device_name(str(self.device)))
        return {**entry, **key, "alone": alone, "measured": timing.today()}

    def pixels(self, job: Job, images: tuple[Sample, ...], kind: str) -> NDArray[Any]:
        with self.reporter.stage(f"{job.task.name}: decoding {kind} images", len(images)) as advance:
            return job.pixels(images, advance)


def fit_method(method: Any, shapes: Sequence[tuple[int, int, int]], normals: TrainingSet, seed: int) -> None:
    """Build a method for features of these (C, h, w) shapes and fit it; the seed determines all random numbers."""
    torch.manual_seed(seed)
    method.build(shapes)
    method.to(normals.device).fit(normals)
    method.eval()


def score_batch(method: Method, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Scores (B,) and maps (B, H, W) of (B, C, H, W) images, on the host."""
    result = method.score(images)
    maps = None if result.map is None else result.map.detach().float().cpu().numpy()
    return result.image.detach().float().cpu().numpy(), maps


def sizes(method: nn.Module) -> dict[str, float]:
    """Extra parameters (without the backbone's) and stored statistics; MB = 10^6 bytes."""
    parameters = list(method.parameters())
    stored = [value for name, value in method.named_buffers() if name in method.state_dict()]
    return {
        "extra_params": sum(parameter.numel() for parameter in parameters),
        "extra_mb": sum(parameter.nbytes for parameter in parameters) / 1e6,
        "stored_mb": sum(buffer.nbytes for buffer in stored) / 1e6,
    }
