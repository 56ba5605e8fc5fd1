"""Training support: seeded epochs, progress bar, finite-loss check and checkpoints. Methods write the loop themselves:

loop = Loop(self, optimiser, normals, self.epochs)
for epoch in loop:
    for numbers in epoch.batches(len(features), self.batch):
        epoch.step(self.loss(features[numbers]))
self.facts = loop.facts
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import memory

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

logger = logging.getLogger(__name__)
REUSED = 2**27 - 1  # bytes: memory of smaller tensors is kept for reuse when freed


class Epoch:
    """One pass over the training set.

    Attributes:
        number: 0 in the first epoch.
        generator: on the CPU, seeded by the task's seed and `number`, so resuming does not change what is drawn.
    """

    def __init__(self, number: int, seed: int, optimisers: Sequence[Optimizer], clip: float | None) -> None:
        self.number, self.optimisers, self.clip = number, optimisers, clip
        self.generator = torch.Generator().manual_seed(seed)
        self.total, self.steps = torch.zeros(()), 0

    def batches(self, count: int, batch: int) -> Iterator[Tensor]:
        """Indices of all `count` images in random order, `batch` at a time; the last batch may be smaller."""
        yield from torch.split(torch.randperm(count, generator=self.generator), batch)

    def step(self, losses: Tensor | Iterable[Tensor], optimiser: Optimizer | None = None) -> None:
        """Take one optimiser step on a () loss, or on the sum of several, backpropagated one at a time.

        Args:
            optimiser: which one steps, if the loop has several; None: the only one.

        Raises:
            ValueError: the loop has several optimisers and none is given.
        """
        if optimiser is None:
            if len(self.optimisers) != 1:
                raise ValueError(
                    f"epoch.step(loss, optimiser): name one of the loop's {len(self.optimisers)} optimisers"
                )
            optimiser = self.optimisers[0]
        optimiser.zero_grad(set_to_none=True)
        for loss in [losses] if isinstance(losses, Tensor) else losses:
            loss.backward()
            self.total = self.total.to(loss.device) + loss.detach()  # read once per epoch: reading synchronises a GPU
        if self.clip is not None:
            parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip)
        optimiser.step()
        self.steps += 1

    @property
    def loss(self) -> float:
        """The mean loss of the steps so far, over all optimisers."""
        return float(self.total) / max(1, self.steps)


class Loop:
    """Iterates over epochs; checks and displays the loss after each, and saves a checkpoint if a file is set for it.

    Torch's global generator is reseeded before each epoch, so that a resumed run draws the same numbers.

    Args:
        module: the whole method: everything that training changes.
        optimiser: for the module's parameters; several for a GAN, passed to each step: `epoch.step(loss, optimiser)`.
        normals: provides the task's name, the progress bar and the checkpoint file.
        epochs: in total, including those before a checkpoint.
        clip: maximum gradient norm; None: no clipping.

    Attributes:
        losses: the mean loss of each epoch.
        memo: further tensors and plain values to checkpoint, such as the best weights so far.

    Raises:
        UsageError: less than one epoch.
    """

    def __init__(
        self,
        module: nn.Module,
        optimiser: Optimizer | Sequence[Optimizer],
        normals: TrainingSet,
        epochs: int,
        clip: float | None = None,
    ) -> None:
        if epochs < 1:
            raise UsageError(f"method.epochs={epochs}: expected a whole number of at least 1")
        self.module, self.normals, self.epochs, self.clip = module, normals, epochs, clip
        self.optimisers = [optimiser] if isinstance(optimiser, Optimizer) else list(optimiser)
        self.seed = torch.initial_seed()
        self.losses: list[float] = []
        self.memo: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Epoch]:
        """The remaining epochs.

        Raises:
            ValueError: the loss is not finite.
        """
        self.restore()
        self.module.train()
        memory.keep_freed(below=REUSED)
        with self.normals.stage(f"{self.normals.name}: training", self.epochs) as advance:
            advance(len(self.losses))
            for number in range(len(self.losses), self.epochs):
                seed = (self.seed * 1_000_003 + number) % 2**63
                torch.manual_seed(seed)
                epoch = Epoch(number, seed, self.optimisers, self.clip)
                yield epoch
                self.add(epoch.loss)
                advance(1, f"loss {epoch.loss:.4g}")
        self.module.eval()
        memory.keep_freed()

    def add(self, loss: float) -> None:
        """Record an epoch's loss and save a checkpoint."""
        if not math.isfinite(loss):
            last = f"{self.losses[-1]:.6g}" if self.losses else "none"
            raise ValueError(
                f"{self.normals.name}: the loss is {loss} in epoch {len(self.losses) + 1} of {self.epochs}, the last "
                f"finite loss was {last}; expected a finite loss: try a smaller method.lr"
            )
        self.losses.append(loss)
        if self.normals.checkpoint is not None:
            self.save(self.normals.checkpoint)

    def save(self, path: Path) -> None:
        """Write module, optimisers, losses and memo atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        state: dict[str, Any] = {"losses": self.losses, "memo": self.memo}
        state |= {"module": self.module.state_dict(), "optimisers": [part.state_dict() for part in self.optimisers]}
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self) -> None:
        """Resume from the checkpoint, if any; a damaged one is reported and ignored."""
        path = self.normals.checkpoint
        if path is None or not path.is_file():
            return
        parts: list[Any] = [self.module, *self.optimisers]
        initial = [copy.deepcopy(part.state_dict()) for part in parts]
        try:
            state = torch.load(path, map_location=self.normals.device, weights_only=True)
            losses, memo = list(state["losses"]), dict(state["memo"])
            for part, saved in zip(parts, [state["module"], *state["optimisers"]], strict=True):
                part.load_state_dict(saved)
            self.losses, self.memo = losses, memo
        except Exception as error:  # torch, pickle and zip raise a dozen kinds
            for part, saved in zip(parts, initial, strict=True):
                part.load_state_dict(saved)
            logger.warning("%s: not a checkpoint of this training run (%s); starting from scratch", path, error)

    @property
    def facts(self) -> dict[str, Any]:
        """For the record: the number of epochs and the loss of each."""
        return {"epochs": self.epochs, "losses": [round(loss, 6) for loss in self.losses]}
