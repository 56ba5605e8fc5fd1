"""Frozen networks read at levels. They alone know the mean and deviation that images are normalised with.

Level n has stride 2^(n+1), as ResNet's layer n: levels 1, 2, 3 have strides 4, 8, 16. The network is cut after the
last level that is read.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_bench.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Backbone:
    """A timm network, cut, in evaluation mode, without gradients.

    Args:
        network: timm's name of the architecture.
        mean, std: of the three channels of images in [0, 1].
        levels: ascending; one feature map is returned for each.
        weights: a state dict's file (safetensors, or torch's read with weights_only=True); None: random, seed 0.
        precision: "fp32", or "bf16" / "fp16" for autocast; features are float32 all the same.
    """

    def __init__(
        self,
        network: str,
        mean: Sequence[float],
        std: Sequence[float],
        levels: Sequence[int],
        weights: Path | None = None,
        precision: str = "fp32",
    ) -> None:
        self.network_name, self.levels, self.precision = network, list(levels), precision
        self.mean, self.std = (torch.tensor(list(value)).view(3, 1, 1) for value in (mean, std))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = create(network)
        if weights is not None:
            load_weights(self.network, read_weights(weights), weights)
        self.network.prune_intermediate_layers(self.levels, prune_norm=True, prune_head=True)
        self.network.eval().requires_grad_(False)
        self.to("cpu")

    def to(self, device: torch.device | str) -> Backbone:
        """Move in place; weights lie channels last, which is about three times as fast on a CPU."""
        self.network = self.network.to(device, memory_format=torch.channels_last)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) images in [0, 1] -> one float32 (B, C, h, w) per level."""
        normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with self.autocast(images.device.type):
            levels = self.network.forward_intermediates(
                normalised, indices=self.levels, norm=False, stop_early=True, intermediates_only=True
            )
        return [level.float() for level in levels]

    def autocast(self, device: str) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device, PRECISIONS[self.precision])

    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(C, h, w) of each level for (H, W) images, without computing anything."""
        meta = copy.deepcopy(self.network).to("meta")
        image = torch.empty(1, 3, *size, device="meta")
        levels = meta.forward_intermediates(
            image, indices=self.levels, norm=False, stop_early=True, intermediates_only=True
        )
        return [(level.shape[1], level.shape[2], level.shape[3]) for level in levels]


def create(network: str) -> Any:
    """The whole timm network with random weights."""
    import timm

    if network not in timm.list_models(network):
        raise UsageError(f"backbone.network={network}: timm {timm.__version__} has no such network")
    return timm.create_model(network, pretrained=False)


def read_weights(file: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file, or from torch's without running any code in it.

    Raises:
        UsageError: another format, or a pickle of more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors raise a dozen kinds
        raise UsageError(
            f"{file}: not a weights file that can be read safely ({str(error).splitlines()[0]}); "
            "expected safetensors, or a state dict that torch.load reads with weights_only=True"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{file}: no state dict (names -> tensors) in it")
    return dict(state)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Fill a network by name; where no name fits, by order, if every shape does.

    The same architecture from another code base has other names in the same order (lite0's weights package).

    Raises:
        UsageError: the tensors are not this network's.
    """
    wanted = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    if wanted.keys() != given.keys():
        given = dict(zip(wanted, given.values(), strict=False)) if len(wanted) == len(given) else {}
    wrong = [name for name, value in wanted.items() if name not in given or given[name].shape != value.shape]
    if wrong:
        raise UsageError(
            f"{file}: {len(wrong)} of {len(wanted)} tensors do not fit {type(network).__name__} (first: {wrong[0]}); "
            "expected the weights of the whole network"
        )
    network.load_state_dict(given, strict=False)
