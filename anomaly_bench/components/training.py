"""Training support: seeded epochs, budgets, progress bar, finite-loss check and checkpoints. Methods write the loop:

loop = Loop(self, optimiser, normals, self.epochs)
for epoch in loop:
    for numbers in epoch.batches(len(features), self.batch):
        epoch.step(self.loss(features[numbers]))
self.facts = loop.facts

The loop ends after `epochs`, or with the batch that reaches the steps of `budget=`. So a learning rate must follow
`epoch.progress`, not the number of epochs. Networks that reconstruct images set `loop.spread = output_spread(...)`.
If held-out images choose the epoch, `loop.keep_best(loss, self)` ends each one, `loop.load_best(self)` the training.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anomaly_bench.errors import UsageError
from anomaly_bench.hardware import memory

if TYPE_CHECKING:
    from anomaly_bench.protocol import Advance, TrainingSet

logger = logging.getLogger(__name__)
REUSED = 2**27 - 1  # bytes: memory of smaller tensors is kept for reuse when freed
MOST_POINTS = 200  # of a learning curve in a record
LEAST_LOSSES = 20  # for the change over the last tenth
KEPT = ("losses", "steps", "samples", "share", "curve", "memo")  # of a loop in its checkpoint


class Epoch:
    """One pass over the training set; the last one may be cut short by the budget.

    Attributes:
        number: 0 in the first epoch.
        generator: on the CPU, seeded by the task's seed and `number`, so resuming does not change what is drawn.
    """

    def __init__(self, loop: Loop, number: int, seed: int) -> None:
        self.loop, self.number = loop, number
        self.generator = torch.Generator().manual_seed(seed)
        self.total, self.steps, self.samples = torch.zeros(()), 0, 0
        self.counted = 0  # steps in `total`
        self.planned, self.drawn = 0, 0  # batches
        self.sum, self.summed = torch.zeros(()), 0  # of the losses since the last point of the learning curve
        self.points: list[tuple[int, Tensor]] = []  # optimiser steps so far, and the mean loss of a batch's steps

    def batches(self, count: int, batch: int, samples: int | None = None, whole: bool = False) -> Iterator[Tensor]:
        """Indices of all `count` images in random order, `batch` at a time; the last batch may be smaller.

        Args:
            samples: indices in total, from as many passes over the images as are needed; None: `count`.
            whole: drop a smaller last batch, unless it is the only one.
        """
        passes = 1 if samples is None else math.ceil(samples / count)
        order = torch.cat([torch.randperm(count, generator=self.generator) for _ in range(passes)])[:samples]
        if whole:
            order = order[: len(order) - len(order) % batch or len(order)]
        parts = torch.split(order, batch)
        self.planned += len(parts)
        for numbers in parts:
            if self.loop.ended:
                return
            self.samples += len(numbers)
            yield numbers
            self.drawn += 1
            self.add_point()

    def step(self, losses: Tensor | Iterable[Tensor], optimiser: Optimizer | None = None, curve: bool = True) -> None:
        """Take one optimiser step on a () loss, or on the sum of several, backpropagated one at a time.

        Args:
            optimiser: which one steps, if the loop has several; None: the only one.
            curve: whether the loss is part of the learning curve. Of two opponents, one's loss rises as the other's
                falls, so their mean shows nothing.

        Raises:
            ValueError: the loop has several optimisers and none is given.
        """
        if optimiser is None:
            known = self.loop.optimisers
            if len(known) != 1:
                raise ValueError(f"epoch.step(loss, optimiser): name one of the loop's {len(known)} optimisers")
            optimiser = known[0]
        optimiser.zero_grad(set_to_none=True)
        for loss in [losses] if isinstance(losses, Tensor) else losses:
            loss.backward()
            if curve:
                self.total = self.total.to(loss.device) + loss.detach()  # read once per epoch: reading stops a GPU
                self.sum = self.sum.to(loss.device) + loss.detach()
        if self.loop.clip is not None:
            parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.loop.clip)
        optimiser.step()
        self.steps += 1
        self.counted += curve
        self.summed += curve
        self.loop.steps += 1
        if self.loop.limit is not None and self.loop.steps <= self.loop.limit:  # a batch of several steps ends later
            self.loop.advance(1)

    def add_point(self) -> None:
        """Close a point of the learning curve: the mean loss of the steps since the last one."""
        if self.summed:
            self.points.append((self.loop.steps, self.sum / self.summed))
            self.sum, self.summed = torch.zeros_like(self.sum), 0

    @property
    def loss(self) -> float:
        """The mean loss of the steps so far, over all optimisers whose losses are in the learning curve."""
        return float(self.total) / max(1, self.counted)

    @property
    def share(self) -> float:
        """The share of this epoch's batches that is done."""
        return self.drawn / max(1, self.planned)

    @property
    def progress(self) -> float:
        """The share of the whole training that is done, from 0 to below 1: what a learning rate may follow."""
        if self.loop.limit is not None:
            return self.loop.steps / self.loop.limit
        return (self.number + self.share) / (self.loop.epochs or 1)


class Loop:
    """Iterates over epochs; checks and displays the loss after each, and saves a checkpoint if a file is set for it.

    Torch's global generator is reseeded before each epoch, so that a resumed run draws the same numbers.

    Args:
        module: the whole method: everything that training changes.
        optimiser: for the module's parameters; several for a GAN, passed to each step: `epoch.step(loss, optimiser)`.
        normals: provides the task's name, the budget, the progress bar and the checkpoint file.
        epochs: in total, including those before a checkpoint.
        clip: maximum gradient norm; None: no clipping.
        steps: of all optimisers together, instead of `epochs`, where a paper states its schedule so.

    Attributes:
        limit: steps after which training ends, by the budget or by `steps`; None: it ends after `epochs`.
        losses: the mean loss of each epoch.
        memo: further tensors and plain values to checkpoint, such as the best weights so far.
        spread: of a reconstruction's outputs, see `output_spread`.

    Raises:
        UsageError: less than one epoch or step.
    """

    advance: Advance  # of the progress bar

    def __init__(
        self,
        module: nn.Module,
        optimiser: Optimizer | Sequence[Optimizer],
        normals: TrainingSet,
        epochs: int | None = None,
        clip: float | None = None,
        *,
        steps: int | None = None,
    ) -> None:
        if (epochs is None) == (steps is None):
            raise ValueError("Loop: give either epochs or steps")
        for key, value in (("epochs", epochs), ("steps", steps)):
            if value is not None and value < 1:
                raise UsageError(f"method.{key}={value}: expected a whole number of at least 1")
        self.module, self.normals, self.epochs, self.clip = module, normals, epochs, clip
        self.limit = steps if normals.steps is None else normals.steps
        self.optimisers = [optimiser] if isinstance(optimiser, Optimizer) else list(optimiser)
        self.seed = torch.initial_seed()
        self.losses: list[float] = []
        self.steps, self.samples, self.share = 0, 0, 1.0  # share: of the last epoch
        self.curve: list[tuple[int, float]] = []  # optimiser steps so far, and the mean loss of one batch's
        self.memo: dict[str, Any] = {}
        self.spread: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the steps of the budget, or all epochs, are done."""
        return self.steps >= self.limit if self.limit is not None else len(self.losses) >= (self.epochs or 0)

    def __iter__(self) -> Iterator[Epoch]:
        """The remaining epochs.

        Raises:
            ValueError: the loss is not finite.
        """
        self.restore()
        self.module.train()
        memory.keep_freed(below=REUSED)
        total = self.limit or self.epochs or 0
        with self.normals.stage(f"{self.normals.name}: training", total) as advance:
            self.advance = advance
            advance(len(self.losses) if self.limit is None else self.steps)
            while not self.ended:
                number = len(self.losses)
                seed = (self.seed * 1_000_003 + number) % 2**63
                torch.manual_seed(seed)
                epoch = Epoch(self, number, seed)
                yield epoch
                self.add(epoch)
                advance(1 if self.limit is None else 0, f"loss {epoch.loss:.4g}")
        self.module.eval()
        memory.keep_freed()

    def add(self, epoch: Epoch) -> None:
        """Record an epoch and save a checkpoint."""
        loss = epoch.loss
        if not math.isfinite(loss):
            last = f"{self.losses[-1]:.6g}" if self.losses else "none"
            of = "" if self.limit is not None else f" of {self.epochs}"
            raise ValueError(
                f"{self.normals.name}: the loss is {loss} in epoch {len(self.losses) + 1}{of}, the last "
                f"finite loss was {last}; expected a finite loss: try a smaller method.lr"
            )
        if not epoch.steps and self.limit is not None:
            raise ValueError(
                "an epoch without a step: call epoch.step(loss) for each batch, as the budget counts steps"
            )
        epoch.add_point()
        self.losses.append(loss)
        self.samples += epoch.samples
        self.share = epoch.share if self.limit is not None and epoch.planned else 1.0
        marks, means = [mark for mark, _ in epoch.points], [mean for _, mean in epoch.points]
        self.curve += zip(marks, torch.stack(means).tolist() if means else [], strict=True)
        if self.normals.checkpoint is not None:
            self.save(self.normals.checkpoint)

    def save(self, path: Path) -> None:
        """Write module, optimisers, losses and memo atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        state: dict[str, Any] = {name: getattr(self, name) for name in KEPT}
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
            kept = {name: state[name] for name in KEPT}
            for part, saved in zip(parts, [state["module"], *state["optimisers"]], strict=True):
                part.load_state_dict(saved)
            vars(self).update(kept)
        except Exception as error:  # torch, pickle and zip raise a dozen kinds
            for part, saved in zip(parts, initial, strict=True):
                part.load_state_dict(saved)
            logger.warning("%s: not a checkpoint of this training run (%s); starting from scratch", path, error)

    def keep_best(self, loss: float, method: nn.Module) -> None:
        """Keep the method's state after this epoch if the loss, of held-out images, is the lowest so far."""
        if loss < self.memo.get("lowest", math.inf):
            best = {name: value.clone() for name, value in method.state_dict().items()}
            self.memo |= {"lowest": loss, "state": best, "epoch": len(self.losses) + 1}

    def load_best(self, method: nn.Module) -> None:
        """Give the method the state that was kept, if any."""
        if "state" in self.memo:
            method.load_state_dict(self.memo["state"])

    @property
    def facts(self) -> dict[str, Any]:
        """For the record: its `training`, and the epoch that `keep_best` chose."""
        epochs = len(self.losses) - 1 + self.share if self.losses else 0
        training = {
            "epochs": int(epochs) if epochs == int(epochs) else round(epochs, 4),
            "steps": self.steps,
            "samples": self.samples,
            "curve": thinned(self.curve),
            "last_tenth": last_tenth([loss for _, loss in self.curve]),
        }
        training |= {} if self.spread is None else {"spread": float(f"{self.spread:.6g}")}
        return {"training": training, **({"best_epoch": self.memo["epoch"]} if "epoch" in self.memo else {})}


def thinned(curve: Sequence[tuple[int, float]]) -> dict[str, Sequence[float]]:
    """At most MOST_POINTS points of a learning curve: mean losses of successive parts, at the steps where they end."""
    parts = [part for part in np.array_split(np.array(curve, np.float64).reshape(-1, 2), MOST_POINTS) if len(part)]
    steps, losses = [int(part[-1, 0]) for part in parts], [float(part[:, 1].mean()) for part in parts]
    return {"steps": steps, "loss": [float(f"{loss:.6g}") for loss in losses]}


def last_tenth(losses: Sequence[float]) -> float | None:
    """How the mean loss of the last tenth of the training relates to that of the tenth before: -0.02 is 2 % lower.

    None: fewer than LEAST_LOSSES losses.
    """
    tenth = len(losses) // 10
    if len(losses) < LEAST_LOSSES:
        return None
    before, after = fmean(losses[-2 * tenth : -tenth]), fmean(losses[-tenth:])
    return round((after - before) / abs(before), 6) if before else None


def output_spread(outputs: Tensor, inputs: Tensor) -> float | None:
    """How unlike the reconstructions of several images are, relative to the images themselves.

    0: the network ignores its input; about 1: its outputs differ as much as its inputs.

    Args:
        outputs, inputs: (B, C, H, W).

    Returns:
        The mean over pixels of the standard deviation over images, of the outputs divided by that of the inputs; None:
        there is a single image, or all are the same.
    """
    among = [float(images.std(dim=0, correction=0).mean()) for images in (outputs, inputs)]
    return among[0] / among[1] if among[1] else None
