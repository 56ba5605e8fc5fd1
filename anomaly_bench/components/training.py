"""What the methods that train share: epochs with a seed, a bar, a finite loss and a checkpoint. The loop is theirs.

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
REUSED = 2**27 - 1  # bytes: freed memory of smaller tensors is kept


class Epoch:
    """One pass over the training set.

    Attributes:
        number: 0 in the first epoch.
        generator: on the CPU, seeded by the task's seed and `number`: a resumed training draws as an unbroken one.
    """

    def __init__(self, number: int, seed: int, optimisers: Sequence[Optimizer], clip: float | None) -> None:
        self.number, self.optimisers, self.clip = number, optimisers, clip
        self.generator = torch.Generator().manual_seed(seed)
        self.total, self.steps = torch.zeros(()), 0

    def batches(self, count: int, batch: int) -> Iterator[Tensor]:
        """The numbers of all `count` images in random order, `batch` at a time; the last batch may be smaller."""
        yield from torch.split(torch.randperm(count, generator=self.generator), batch)

    def step(self, losses: Tensor | Iterable[Tensor], optimiser: Optimizer | None = None) -> None:
        """One step down the gradient of a () loss, or of the sum of several, one after the other.

        Args:
            optimiser: whose parameters move, where the loop has several; None: the only one's.

        Raises:
            ValueError: it must be named.
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
            self.total = self.total.to(loss.device) + loss.detach()  # read once an epoch: reading waits for a GPU
        if self.clip is not None:
            parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip)
        optimiser.step()
        self.steps += 1

    @property
    def loss(self) -> float:
        """The mean loss of the steps so far, whatever their optimiser."""
        return float(self.total) / max(1, self.steps)


class Loop:
    """Iterates over epochs; after each it checks the loss, shows it, and keeps a checkpoint if there is a file for it.

    Torch's global generator is seeded anew before each epoch, so that what a layer draws can be drawn again.

    Args:
        module: the whole method: all that training changes.
        optimiser: over the module's parameters; of a GAN several, each step of which names its own:
            `epoch.step(loss, optimiser)`.
        normals: gives the name, the bar and the checkpoint's file.
        epochs: in all, those before a checkpoint included.
        clip: the largest norm of the gradient; None: any.

    Attributes:
        losses: the mean loss of each epoch.
        memo: tensors and plain values that a checkpoint keeps too, such as the best weights so far.

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
        """Every epoch that is still to be trained.

        Raises:
            ValueError: the loss is no longer a finite number.
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
        """Take in an epoch's loss, and keep a checkpoint."""
        if not math.isfinite(loss):
            last = f"{self.losses[-1]:.6g}" if self.losses else "none"
            raise ValueError(
                f"{self.normals.name}: the loss is {loss} in epoch {len(self.losses) + 1} of {self.epochs}, the last "
                f"finite loss was {last}; expected a finite one: try a smaller method.lr"
            )
        self.losses.append(loss)
        if self.normals.checkpoint is not None:
            self.save(self.normals.checkpoint)

    def save(self, path: Path) -> None:
        """Write module, optimisers, losses and memo, by one atomic rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        state: dict[str, Any] = {"losses": self.losses, "memo": self.memo}
        state |= {"module": self.module.state_dict(), "optimisers": [each.state_dict() for each in self.optimisers]}
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def restore(self) -> None:
        """Go on from the checkpoint if there is one; a damaged one is said and counts as none."""
        path = self.normals.checkpoint
        if path is None or not path.is_file():
            return
        parts: list[Any] = [self.module, *self.optimisers]
        before = [copy.deepcopy(part.state_dict()) for part in parts]
        try:
            state = torch.load(path, map_location=self.normals.device, weights_only=True)
            losses, memo = list(state["losses"]), dict(state["memo"])
            for part, saved in zip(parts, [state["module"], *state["optimisers"]], strict=True):
                part.load_state_dict(saved)
            self.losses, self.memo = losses, memo
        except Exception as error:  # torch, pickle and zip raise a dozen kinds
            for part, fresh in zip(parts, before, strict=True):
                part.load_state_dict(fresh)
            logger.warning("%s: not a checkpoint of this training (%s); it starts anew", path, error)

    @property
    def facts(self) -> dict[str, Any]:
        """For the record: the number of epochs, and the loss of each."""
        return {"epochs": self.epochs, "losses": [round(loss, 6) for loss in self.losses]}
