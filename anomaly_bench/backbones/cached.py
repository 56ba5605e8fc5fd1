"""Feature cache: jobs on the same images run a frozen network once and then read its features from disk (`cache=on`).

Cached features are bit-identical to those of the method's own forward pass. They are therefore used only for batches
that the runner made from a whole fit or test set (`ExtractionLog.announce`), from a pass over that set with the same
batch size, machine and versions (`CachedBackbone.key`). Everything else goes through the network: rotated or resized
images, parts of a set, and everything that is timed.

    <cache>/features/<dataset>/<key>/<level>.f32    one level of all images, (N, h, w, C) float32
    <cache>/features/<dataset>/<key>/pass.json      shapes, checksums, seconds; written last, invalid without it

A pass stores the levels that its method reads and those of strides 4 to 32, which most methods read. `SELDOM` levels
are three quarters of an EfficientNet's bytes, so they are stored only for a method that reads them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly_bench.backbones.backbone import Backbone
from anomaly_bench.backbones.feature_store import (
    INDEX,
    CachedPass,
    DamagedError,
    NoRoomError,
    Writer,
    drop,
    lock_file,
    temporary,
)
from anomaly_bench.backbones.recorded import RecordedBackbone
from anomaly_bench.cache import turn
from anomaly_bench.errors import ran_out
from anomaly_bench.files import digest
from anomaly_bench.hardware import devices, memory, timing
from anomaly_bench.protocol import to_tensor

if TYPE_CHECKING:
    from anomaly_bench.backbones.feature_store import FeatureCache
    from anomaly_bench.protocol import Advance

logger = logging.getLogger(__name__)
FEATURES_REVISION = 1  # increase when the stored content changes
SELDOM = ("stem", "0", "head")  # levels
PACKAGES = ("torchvision", "timm", "pillow")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """All images of a fit or test set.

    Attributes:
        name: name of the task.
        dataset: name of its dataset.
        pixels: (N, H, W, 3) uint8.
        about: what determines the pixels: the images' sha256 and preprocessing.
    """

    name: str
    dataset: str
    pixels: NDArray[np.uint8]
    about: Mapping[str, Any]


class BatchInfo(NamedTuple):
    """A batch made by the runner, and which rows it contains."""

    images: Tensor
    version: int  # of the tensor: torch counts in-place changes
    rows: ImageSet
    start: int
    batch: int  # images per batch, except the last


@dataclass
class ExtractionCost:
    """Feature extraction cost of a job; two networks count each image twice.

    Attributes:
        images: images this job ran through a network, including passes that fill the cache.
        computed: seconds a method waited for its network.
        read: seconds the stored passes originally took, in proportion to their images read.
        spent: seconds used by the cache itself: filling, writing, reading, waiting for other jobs.
        cached: whether any features were read from the cache.
    """

    images: int = 0
    computed: float = 0.0
    read: float = 0.0
    spent: float = 0.0
    cached: bool = False

    def facts(self, device: torch.device) -> dict[str, Any]:
        """For the record. GPU calls return before the work is done, so on a GPU only whole passes are timed."""
        known = device.type == "cpu" or not self.computed
        return {"images": self.images, "s": self.computed + self.read if known else None, "cached": self.cached}


@dataclass
class ExtractionLog:
    """Shared by a run's networks: the batch that a method was given last, and the cost so far."""

    device: torch.device
    announced: BatchInfo | None = None
    work: ExtractionCost = field(default_factory=ExtractionCost)

    def announce(self, rows: ImageSet, images: Tensor, start: int, batch: int) -> None:
        """Declare that `images` is the set's batch that begins at row `start`."""
        self.announced = BatchInfo(images, images._version, rows, start, batch)

    def find(self, images: Tensor) -> BatchInfo | None:
        """The announced batch if it is this very tensor, unchanged since."""
        batch = self.announced
        return batch if batch is not None and images is batch.images and images._version == batch.version else None

    @contextlib.contextmanager
    def stopwatch(self) -> Iterator[Callable[[], float]]:
        """Like `timing.stopwatch`, but measures the time the block would take without a cache.

        The cache's own time is excluded; features read count as the time that their pass took.
        """
        before = replace(self.work)
        with timing.stopwatch(self.device) as elapsed:
            yield lambda: elapsed() - (self.work.spent - before.spent) + (self.work.read - before.read)


@dataclass(frozen=True)
class Store:
    """What a network needs to store its features.

    Attributes:
        shelf: the cache.
        identity: what its features depend on: its arguments, revision, weights and precision.
        modules: from its YAML: level -> path of the module.
        make: creates the same network read at other levels, on the same device.
        stage: creates a progress bar.
        fills: whether passes that are missing are stored.
    """

    shelf: FeatureCache
    identity: Mapping[str, Any]
    modules: Mapping[str, str] | str
    make: Callable[[list[str]], Any]
    stage: Callable[[str, int], contextlib.AbstractContextManager[Advance]]
    fills: bool


class CachedBackbone:
    """Wraps a frozen network for methods: measures its work and reads announced batches from the cache.

    Args:
        inner: the network; all attributes are forwarded to it.
        ledger: the run's extraction log.
        store: None: nothing is read from or written to the cache.
    """

    def __init__(self, inner: Any, ledger: ExtractionLog, store: Store | None) -> None:
        self.inner, self.ledger = inner, ledger
        has_levels = isinstance(inner, (Backbone, RecordedBackbone))  # other types do not define them
        self.store = store if has_levels else None
        self.current: tuple[ImageSet, int] | None = None  # the set and batch size of `stored`
        self.stored: CachedPass | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while being copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def to(self, device: torch.device | str) -> CachedBackbone:
        """Move in place."""
        self.inner.to(device)
        return self

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) images in [0, 1] -> one float32 (B, C, h, w) per level."""
        batch = self.ledger.find(images)
        levels = None if batch is None or self.store is None else self.read(self.store, batch)
        if levels is not None:
            return levels
        begin = timing.clock()
        computed: list[Tensor] = self.inner(images)
        self.ledger.work.computed += timing.clock() - begin
        self.ledger.work.images += len(images)
        return computed

    def read(self, store: Store, batch: BatchInfo) -> list[Tensor] | None:
        """The levels of an announced batch from the cache, filled first if needed; None: not possible."""
        work = self.ledger.work
        with timing.stopwatch(self.ledger.device) as elapsed:
            if self.current != (batch.rows, batch.batch):
                self.current, self.stored = (batch.rows, batch.batch), self.open(store, batch.rows, batch.batch)
            levels = None if self.stored is None else self.levels(self.stored, batch.start)
        work.spent += elapsed()
        if levels is None or self.stored is None:
            return None
        slowest = max(self.stored.levels[path].seconds for path in self.inner.paths)
        work.read += slowest * len(levels[0]) / self.stored.images
        work.cached = True
        return levels

    def levels(self, stored: CachedPass, start: int) -> list[Tensor] | None:
        """The levels of one batch; None: a file is damaged or missing, and the rest of the set uses the network."""
        try:
            return [stored.read(path, start, self.ledger.device) for path in self.inner.paths]
        except (DamagedError, OSError) as error:
            logger.warning("%s: recomputing the features", error)
            drop(stored.folder)
            self.stored = None
            return None

    def open(self, store: Store, rows: ImageSet, batch: int) -> CachedPass | None:
        """The stored pass over a set, with the levels that are read; None: none exists or can be stored."""
        folder = store.shelf.folder(rows.dataset, self.key(store, rows, batch))
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with turn(lock_file(folder), f"{folder.name}/.tmp-*"):
                stored = CachedPass.load(folder, len(rows.pixels), batch)
                if not stored.levels.keys() >= set(self.inner.paths):
                    if not store.fills:
                        return None
                    stored = self.fill(store, rows, stored)
                os.utime(folder / INDEX)
                return stored
        except NoRoomError as error:
            logger.info("%s: features are not cached: %s", rows.name, error)
        except Exception as error:  # the disk's, or torch's RuntimeError when memory runs out; others are raised
            if not isinstance(error, OSError) and not ran_out(error):
                raise
            logger.warning("%s: the cache %s failed (%s): features are not cached", rows.name, folder.parent, error)
        return None

    def fill(self, store: Store, rows: ImageSet, stored: CachedPass) -> CachedPass:
        """Run the network over the whole set once and store the missing levels.

        Raises:
            NoRoomError: see `FeatureCache.reserve`.
            TooLarge: reading this many levels at once needs more memory than is free.
        """
        network = self.whole(store, stored)
        new = [path for path in dict.fromkeys(network.paths) if path not in stored.levels]
        shapes, most = network.infer_shapes(rows.pixels.shape[1:3])
        sizes = dict(zip(network.paths, (4 * math.prod(shape) for shape in shapes), strict=True))
        memory.require(most * min(stored.batch, stored.images), self.ledger.device, "a pass for the cache", "cache=off")
        for leftover in stored.folder.glob(".tmp-*"):  # from a job that was killed or stands still, as it is our turn
            leftover.unlink(missing_ok=True)
        store.shelf.reserve(stored.folder, {temporary(path): stored.images * sizes[path] for path in new})
        writer, seconds = Writer(stored, new), 0.0
        with store.stage(f"{rows.name}: backbone, for all methods", stored.images) as advance, writer.open() as write:
            for start in range(0, stored.images, stored.batch):
                images = to_tensor(rows.pixels[start : start + stored.batch], self.ledger.device)
                with timing.stopwatch(self.ledger.device) as elapsed:
                    levels = dict(zip(network.paths, network(images), strict=True))
                seconds += elapsed()
                self.ledger.work.images += len(images)
                write([levels[path] for path in new])
                advance(len(images))
        return writer.finish(seconds)

    def whole(self, store: Store, stored: CachedPass) -> Any:
        """A network that reads all levels to store; for a transformer, where any block is a level, the method's own.

        Stored levels are read again only if that takes no new network.
        """
        if not isinstance(store.modules, Mapping):
            return self.inner
        usual = {path for name, path in store.modules.items() if name not in SELDOM}
        wanted = (usual | set(self.inner.paths)) - stored.levels.keys()
        if wanted <= set(self.inner.paths):
            return self.inner
        return store.make([name for name, path in store.modules.items() if path in wanted])

    def stored_bytes(self, size: tuple[int, int]) -> int:
        """Bytes of an (H, W) image's levels in the cache."""
        if self.store is None or not self.store.fills:
            return 0
        network = self.whole(self.store, CachedPass(Path(), 0, 0, {}))
        return sum(4 * math.prod(shape) for shape in network.shapes(size))

    def key(self, store: Store, rows: ImageSet, batch: int) -> str:
        """24 hex digits hashed over everything that the exact features may depend on."""
        return digest(
            {
                "revision": FEATURES_REVISION,
                "images": rows.about,
                "batch": batch,
                "network": store.identity,
                "memory_format": "channels_last",
                "threads": torch.get_num_threads(),
                "device": devices.device_name(str(self.ledger.device)),
                "instructions": torch.backends.cpu.get_cpu_capability(),
                "versions": versions(),
            }
        )[:24]


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that affect features; torch's includes its build."""
    return {"torch": torch.__version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}
