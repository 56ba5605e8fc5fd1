"""Backbone features on disk: jobs on the same images pass a frozen network once, and read what it gave (`cache=on`).

A method is given bit for bit what its own pass would give. So features are read only for the very batches that the
runner made of a whole fit or test set (`ExtractionLog.announce`), from a pass over that set in batches of the same
size, on the same machine with the same versions (`CachedBackbone.key`). All else goes through the network: rotated or
resized images, parts of a set, and everything that is timed.

    <cache>/features/<dataset>/<key>/<level>.f32    one level of all images, (N, h, w, C) float32
    <cache>/features/<dataset>/<key>/pass.json      shapes, checksums, seconds; written last, without it all is nothing

A pass stores the levels that its method reads and those of strides 4 to 32, which most methods read. `SELDOM` levels
are three quarters of an EfficientNet's bytes: they are stored by the pass of a method that reads them.
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
from filelock import FileLock
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
from anomaly_bench.errors import ran_out
from anomaly_bench.files import digest
from anomaly_bench.hardware import devices, memory, timing
from anomaly_bench.protocol import to_tensor

if TYPE_CHECKING:
    from anomaly_bench.backbones.feature_store import FeatureCache
    from anomaly_bench.protocol import Advance

logger = logging.getLogger(__name__)
FEATURES_REVISION = 1  # raised when what is stored changes
SELDOM = ("stem", "0", "head")  # names of levels
PACKAGES = ("torchvision", "timm", "pillow")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """All images of a fit or test set.

    Attributes:
        name: the task's; dataset: its dataset's.
        pixels: (N, H, W, 3) uint8.
        about: what decides the pixels: the images' sha256, and what was done to them.
    """

    name: str
    dataset: str
    pixels: NDArray[np.uint8]
    about: Mapping[str, Any]


class BatchInfo(NamedTuple):
    """A batch that the runner has made, and which rows it is."""

    images: Tensor
    version: int  # of the tensor: torch counts what is done to it in place
    rows: ImageSet
    start: int
    batch: int  # images in each batch but the last


@dataclass
class ExtractionCost:
    """What frozen networks did for a job; two networks count each image twice.

    Attributes:
        images: that this job put through a network, those of a pass that fills the cache too.
        computed: seconds of the calls in which a method waited for its network.
        read: seconds that passes took when they filled the cache, by the share of their images that was read.
        spent: seconds that the cache itself took: a filling pass, writing, reading, waiting for other jobs.
        cached: whether any features were read from the cache.
    """

    images: int = 0
    computed: float = 0.0
    read: float = 0.0
    spent: float = 0.0
    cached: bool = False

    def facts(self, device: torch.device) -> dict[str, Any]:
        """For the record. A GPU works on after a call has returned, so that its seconds are known of passes only."""
        known = device.type == "cpu" or not self.computed
        return {"images": self.images, "s": self.computed + self.read if known else None, "cached": self.cached}


@dataclass
class ExtractionLog:
    """Shared by a run's networks: the batch that a method has been given, and the work so far."""

    device: torch.device
    announced: BatchInfo | None = None
    work: ExtractionCost = field(default_factory=ExtractionCost)

    def announce(self, rows: ImageSet, images: Tensor, start: int, batch: int) -> None:
        """Say that `images` are made of the rows from `start` on, one of the batches into which the set is cut."""
        self.announced = BatchInfo(images, images._version, rows, start, batch)

    def find(self, images: Tensor) -> BatchInfo | None:
        """What was said of this very tensor, unless it has been changed since."""
        batch = self.announced
        return batch if batch is not None and images is batch.images and images._version == batch.version else None

    @contextlib.contextmanager
    def stopwatch(self) -> Iterator[Callable[[], float]]:
        """As `timing.stopwatch`, of the work that the block would have been without a cache.

        The cache's own time is left out, and what was read counts as long as its pass took.
        """
        before = replace(self.work)
        with timing.stopwatch(self.device) as elapsed:
            yield lambda: elapsed() - (self.work.spent - before.spent) + (self.work.read - before.read)


@dataclass(frozen=True)
class Store:
    """What a network needs to keep its features.

    Attributes:
        shelf: where.
        identity: what its features depend on: its arguments, revision, weights and precision.
        modules: of its YAML: level -> path of the module.
        make: the same network read at other levels, on the same device.
        stage: makes a bar.
    """

    shelf: FeatureCache
    identity: Mapping[str, Any]
    modules: Mapping[str, str] | str
    make: Callable[[list[str]], Any]
    stage: Callable[[str, int], contextlib.AbstractContextManager[Advance]]


class CachedBackbone:
    """A frozen network as methods see it: what it does is counted, and announced batches are read from the cache.

    Args:
        inner: the network; everything but calls goes to it.
        ledger: of the run.
        store: None: nothing is read or kept.
    """

    def __init__(self, inner: Any, ledger: ExtractionLog, store: Store | None) -> None:
        self.inner, self.ledger = inner, ledger
        self.store = store if isinstance(inner, Backbone) else None  # others do not say what a level is
        self.current: tuple[ImageSet, int] | None = None  # the set and batch that `stored` is of
        self.stored: CachedPass | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # of a copy that is being made
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
        """The levels of an announced batch from the cache, which is filled before if it must be; None: it cannot be."""
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
        """The levels of one batch; None: a file is damaged or gone, and the set's rest goes through the network."""
        try:
            return [stored.read(path, start, self.ledger.device) for path in self.inner.paths]
        except (DamagedError, OSError) as error:
            logger.warning("%s: the features are computed anew", error)
            drop(stored.folder)
            self.stored = None
            return None

    def open(self, store: Store, rows: ImageSet, batch: int) -> CachedPass | None:
        """The stored pass over a set, with the levels that are read; None: there is none and none can be kept."""
        folder = store.shelf.folder(rows.dataset, self.key(store, rows, batch))
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock_file(folder)):
                stored = CachedPass.load(folder, len(rows.pixels), batch)
                if not stored.levels.keys() >= set(self.inner.paths):
                    stored = self.fill(store, rows, stored)
                os.utime(folder / INDEX)
                return stored
        except NoRoomError as error:
            logger.info("%s: features are not kept: %s", rows.name, error)
        except Exception as error:
            if not isinstance(error, OSError) and not ran_out(error):
                raise
            logger.warning("%s: the cache %s failed (%s): features are not kept", rows.name, folder.parent, error)
        return None

    def fill(self, store: Store, rows: ImageSet, stored: CachedPass) -> CachedPass:
        """Pass the network over the whole set once, and store the levels that are not there.

        Raises:
            NoRoomError: see `FeatureCache.reserve`.
            TooLarge: reading so many levels at once would take more memory than is free.
        """
        network = self.whole(store, stored)
        new = [path for path in dict.fromkeys(network.paths) if path not in stored.levels]
        shapes, most = network.infer_shapes(rows.pixels.shape[1:3])
        sizes = dict(zip(network.paths, (4 * math.prod(shape) for shape in shapes), strict=True))
        memory.require(most * min(stored.batch, stored.images), self.ledger.device, "a pass for the cache", "cache=off")
        for left in stored.folder.glob(".tmp-*"):  # by a job that was killed: the lock is ours
            left.unlink(missing_ok=True)
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
        """The network that reads what is to be stored; of a transformer, any block of which is a level, the method's.

        Levels that are there already are read again only where the network exists already.
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
        if self.store is None:
            return 0
        network = self.whole(self.store, CachedPass(Path(), 0, 0, {}))
        return sum(4 * math.prod(shape) for shape in network.shapes(size))

    def key(self, store: Store, rows: ImageSet, batch: int) -> str:
        """24 hex digits over all that a bit of the features may depend on."""
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
    """Of what decodes, computes and describes the network; torch's own says how it was built, too."""
    return {"torch": torch.__version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}
