"""Trainable networks with a backbone's architecture, using little memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anomaly_bench.backbones.architectures import listen


class Student(nn.Module):
    """A trainable network read at the levels of a backbone.

    Gradient checkpointing recomputes each block in the backward pass: 20 % more time for less than half the memory.

    Args:
        network: the architecture of the backbone, truncated after the last of `paths`.
        paths: of the modules whose outputs are the levels.
        mean, std: (3, 1, 1) of images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, paths: Sequence[str], mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network, self.paths = network.to(memory_format=torch.channels_last), paths
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.outputs = listen(network, paths, nn.Identity())
        for block in blocks(network):
            block.forward = functools.partial(recomputed, block, block.forward)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) images in [0, 1] -> one (B, C, h, w) per level."""
        normalised = (images - self.mean) / self.std
        self.network(normalised.contiguous(memory_format=torch.channels_last))
        levels = [self.outputs[path] for path in self.paths]
        self.outputs.clear()
        return levels

    def freeze_first(self) -> None:
        """Parameters of the modules up to the end of the first level are not trained; their norms go on counting."""
        order = [name for name, _ in self.network.named_modules()]
        last = max(place for place, name in enumerate(order) if f"{name}.".startswith(f"{self.paths[0]}."))
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(order.index(name.rpartition(".")[0]) > last)


class Stage(nn.Module):
    """A part of a pretrained network, to be trained further, with gradient checkpointing.

    It stays in evaluation mode: batch norms use their running statistics and keep them.

    Args:
        network: with pretrained weights, cut before and truncated after this part.
        path: of the module whose output is the level.
        mean, std: (3, 1, 1), for a part that takes images in [0, 1]; None: it takes the features of the level before.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, network: nn.Module, path: str, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        self.network, self.path = network.to(memory_format=torch.channels_last), path
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.outputs = listen(network, [path], nn.Identity())
        for block in blocks(network):
            block.forward = functools.partial(recomputed, block, block.forward)
        self.train()

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, h, w) images or features -> the level (B, C', h', w')."""
        if self.mean is not None and self.std is not None:
            inputs = (inputs - self.mean) / self.std
        self.network(inputs.contiguous(memory_format=torch.channels_last))
        return self.outputs.pop(self.path)

    def train(self, mode: bool = True) -> Stage:
        """Nothing changes, see above."""
        return super().train(False)

    def shape(self, inputs: tuple[int, int, int]) -> tuple[int, int, int]:
        """The level's (C', h', w') for inputs (C, h, w), without computing anything."""
        state = {name: value.to("meta") for name, value in (*self.named_parameters(), *self.named_buffers())}
        with torch.no_grad():
            level = torch.func.functional_call(self, state, torch.empty(1, *inputs, device="meta"))
        return level.shape[1], level.shape[2], level.shape[3]


def start_norms_at_one(network: nn.Module) -> None:
    """Undo timm's `zero_init_last`, which starts a residual block's last norm at zero; torchvision's starts at one."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost elements of a network's Sequentials that consist of more than one layer."""
    found: dict[str, nn.Module] = {}
    for name, part in network.named_modules():
        whole = network.get_submodule(name.rpartition(".")[0])
        block = isinstance(whole, nn.Sequential) and not isinstance(part, nn.Sequential) and any(part.children())
        if block and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = part
    return list(found.values())


def recomputed(block: nn.Module, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The output of a block, storing only its input for the backward pass."""
    norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d) and part.track_running_stats]
    outputs: Tensor = checkpoint(
        forward, inputs, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), FrozenStatistics(norms))
    )
    return outputs


class FrozenStatistics:
    """Context in which batch norms do not update their running statistics; a double backward enters it twice."""

    def __init__(self, norms: Sequence[nn.BatchNorm2d]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        self.saved = [(norm.momentum, norm.get_buffer("num_batches_tracked").clone()) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, batches) in zip(self.norms, self.saved, strict=True):
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(batches)
