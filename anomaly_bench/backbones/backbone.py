"""Frozen networks read at levels. Only they know the mean and standard deviation that images are normalised with.

A backbone's YAML maps levels to module outputs. Level n has stride 2^(n+1), like ResNet's layer n: levels 1, 2, 3 have
strides 4, 8, 16. If two stages share a stride, the first is level na and the last n; `stem` comes before the stages,
`head` after them. All levels of a transformer have the same stride and are named block0, block1, and so on, so methods
that need a pyramid (levels 1, 2, 3) reject it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anomaly_bench.backbones.architectures import (
    create,
    cut_before,
    find_levels,
    find_module,
    fold_batch_norm,
    listen,
    load_weights,
    normalise,
    read_weights,
    reflect_padding,
    to_grid,
    truncate,
)
from anomaly_bench.backbones.student import Stage, Student, start_norms_at_one
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware.torch_setup import DTYPES


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call] # untyped in torch
    """Tracks in `most` the peak bytes of tensors created inside the context, on any device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # untyped in torch
        self.now = self.most = 0
        self.alive: set[int] = set()  # storages

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self.alive:
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        self.alive.add(id(storage))
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.drop, id(storage), storage.nbytes())

    def drop(self, storage: int, size: int) -> None:
        self.alive.discard(storage)
        self.now -= size


class Backbone:
    """A network truncated after the last level that is read, in evaluation mode, without gradients.

    Args:
        network: timm's name of the architecture, or `torchvision.` followed by torchvision's.
        mean, std: of the three channels of images in [0, 1].
        modules: level -> path of the module whose output it is (one that no later module overwrites in place); for a
            transformer the path of its blocks.
        levels: levels to return, in this order; "all": every level of `modules`.
        weights: file of a state dict (safetensors, or torch's, loaded with weights_only=True); None: random, seed 0.
        precision: "fp32", or "bf16" / "fp16" for autocast; features are always float32.
        options: further arguments of the architecture.
        reflect: whether convolutions pad by reflection, each in a module of its own, `PATH.0` before convolution PATH.
        norm: path of a module applied to every level: a transformer's final normalisation.

    Raises:
        UsageError: unknown network, module or level; weights of a different network.
    """

    def __init__(
        self,
        network: str,
        mean: Sequence[float],
        std: Sequence[float],
        modules: Mapping[str, str] | str,
        levels: Sequence[int | str] | str,
        weights: Path | None = None,
        precision: str = "fp32",
        options: Mapping[str, Any] | None = None,
        norm: str | None = None,
        reflect: bool = False,
    ) -> None:
        for key, three in (("mean", mean), ("std", std)):
            if not isinstance(three, Sequence) or [type(value) in (int, float) for value in three] != [True] * 3:
                raise UsageError(f"backbone.{key}={three}: expected three numbers, for red, green and blue")
        self.network_name, self.options, self.precision = network, options or {}, precision
        self.mean, self.std = (torch.tensor(list(value)).view(3, 1, 1) for value in (mean, std))
        self.modules, self.weights, self.reflect = modules, weights, reflect
        self.inferred: dict[tuple[int, ...], tuple[list[tuple[int, int, int]], int]] = {}  # by image size
        self.network = self.whole()
        self.paths = find_levels(self.network, modules, levels)
        last = nn.Identity() if norm is None else find_module(self.network, norm, f"backbone.norm={norm}")
        truncate(self.network, self.paths)
        self.network.add_module("norm_of_levels", last)
        fold_batch_norm(self.network.eval())
        self.outputs = listen(self.network, self.paths, last)
        self.network.requires_grad_(False).to(memory_format=torch.channels_last)

    def to(self, device: torch.device | str) -> Backbone:
        """Move in place; weights are channels-last, which is about three times as fast on a CPU."""
        self.network = self.network.to(device, memory_format=torch.channels_last)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) images in [0, 1] -> one float32 (B, C, h, w) per level.

        Raises:
            UsageError: image size not supported by the transformer.
        """
        return self.differentiable(images)

    def differentiable(self, images: Tensor) -> list[Tensor]:
        """The same levels, with the graph that leads from them back to the images if those require gradients."""
        with self.autocast(images.device.type):
            levels = self.read(self.network, normalise(images, self.mean, self.std))
        return [level.float() for level in levels]

    def autocast(self, device: str) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device, DTYPES[self.precision])

    def shapes(self, size: tuple[int, int], channels: int = 3) -> list[tuple[int, int, int]]:
        """(C, h, w) of each level for (channels, H, W) images, without computing anything."""
        return self.infer_shapes(size, channels)[0]

    def infer_shapes(self, size: tuple[int, int], channels: int = 3) -> tuple[list[tuple[int, int, int]], int]:
        """`shapes`, and the peak bytes that one image needs in a forward pass in fp32, without the weights."""
        key = (*size, channels)
        if key not in self.inferred:
            self.inferred[key] = self.run_on_meta(size, channels)
        shapes, most = self.inferred[key]
        return list(shapes), most

    def run_on_meta(self, size: tuple[int, int], channels: int) -> tuple[list[tuple[int, int, int]], int]:
        """What `infer_shapes` returns, by a forward pass without values."""
        tensors = itertools.chain(self.network.named_parameters(), self.network.named_buffers())
        state = {name: tensor.to("meta") for name, tensor in tensors}
        forward = functools.partial(torch.func.functional_call, self.network, state)
        with Peak() as peak, torch.no_grad():
            images = torch.empty(1, channels, *size, device="meta")
            levels = self.read(forward, (images - 1).contiguous(memory_format=torch.channels_last))
            shapes = [(level.shape[1], level.shape[2], level.shape[3]) for level in levels]
        return shapes, peak.most

    def tiles(self, size: tuple[int, int], channels: int = 3) -> bool:
        """Whether the cells of every level tile (H, W) images: the sides are the grid's times a power of two.

        Raises:
            UsageError: image size not supported by the transformer, whose patches always tile those that are.
        """
        if self.grid(*size) is not None:
            return True
        pairs = []
        for path, (_, height, width) in zip(self.paths, self.shapes(size, channels), strict=True):
            layer = self.network.get_submodule(path)
            left, right, top, bottom = layer.padding if isinstance(layer, nn.ReflectionPad2d) else (0, 0, 0, 0)
            pairs += [(size[0], height - top - bottom), (size[1], width - left - right)]
        return all(side % cells == 0 and (side // cells).bit_count() == 1 for side, cells in pairs)

    def trainable_copy(self, pretrained: bool = False, normalise: bool = True) -> Student:
        """The same architecture, truncated alike, with new random trainable weights; CNNs only.

        Args:
            pretrained: with the backbone's weights instead.
            normalise: images by the backbone's mean and standard deviation.
        """
        if pretrained:
            network = self.whole()
        else:
            network = create(self.network_name, self.options)
            start_norms_at_one(network)
            if self.reflect:
                reflect_padding(network)
        truncate(network, self.paths)
        mean, std = (self.mean, self.std) if normalise else (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        return Student(network, self.paths, mean, std)

    def whole(self) -> Any:
        """The network with its weights, neither truncated nor folded; on the meta device without reading them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = create(self.network_name, self.options)
        if self.weights is not None and torch.get_default_device().type != "meta":
            load_weights(network, read_weights(self.weights), self.weights)
        if self.reflect:
            reflect_padding(network)
        return network

    def trainable_stages(self, levels: Sequence[int | str] = ()) -> list[Stage]:
        """Successive parts of the network with its weights, for training them further; CNNs only.

        Args:
            levels: where the parts end; the first begins after the last level that is read. None given: the levels
                that are read, and the first part takes images.

        Raises:
            UsageError: no such level.
        """
        network, stages = self.whole(), []
        ends = find_levels(network, self.modules, levels) if levels else self.paths
        start = self.paths[-1] if levels else None
        for end in ends:
            part = copy.deepcopy(network)
            truncate(part, [end])
            if start is not None:
                cut_before(part, start)
            stages.append(Stage(part, end, *((self.mean, self.std) if start is None else ())))
            start = end
        return stages

    def read(self, forward: Callable[[Tensor], Any], images: Tensor) -> list[Tensor]:
        """The levels from one forward pass; a transformer's tokens as a (B, C, h, w) grid, without class tokens."""
        grid = self.grid(images.shape[-2], images.shape[-1])
        forward(images)
        levels = [self.outputs[path] for path in self.paths]
        self.outputs.clear()
        return levels if grid is None else [to_grid(level, *grid) for level in levels]

    def grid(self, height: int, width: int) -> tuple[int, int] | None:
        """The (h, w) patch grid of a transformer for images of this size; None: a CNN, which supports every size.

        Raises:
            UsageError: image size not supported by the transformer.
        """
        embed = getattr(self.network, "patch_embed", None)
        if embed is None:
            return None
        rows, columns = embed.patch_size
        if embed.strict_img_size:
            fits, expected = embed.img_size == (height, width), "{} x {} only".format(*embed.img_size)
        else:
            fits, below = height % rows == 0 and width % columns == 0, height - height % rows
            expected = f"sides that are multiples of {rows}, such as {below} or {below + rows}"
        if not fits:
            raise UsageError(
                f"{self.network_name} cannot take images of {height} x {width} pixels; "
                f"expected {expected}: set input.resize or input.crop"
            )
        return height // rows, width // columns


class NoBackbone:
    """Stands in for the backbone of an image-space method: it runs no network; its only level is the image."""

    def to(self, device: torch.device | str) -> NoBackbone:
        """Nothing to move."""
        return self

    def shapes(self, size: tuple[int, int], channels: int = 3) -> list[tuple[int, int, int]]:
        """(channels, H, W)."""
        return [(channels, *size)]

    def infer_shapes(self, size: tuple[int, int], channels: int = 3) -> tuple[list[tuple[int, int, int]], int]:
        """`shapes`, and 0 bytes."""
        return self.shapes(size, channels), 0


class Networks:
    """Several backbones run on the same images: the levels of the first, then those of the second, and so on."""

    def __init__(self, networks: Sequence[Backbone]) -> None:
        self.networks = networks

    def to(self, device: torch.device | str) -> Networks:
        """Move in place."""
        for network in self.networks:
            network.to(device)
        return self

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) images in [0, 1] -> one float32 (B, C, h, w) per network and level."""
        return [level for network in self.networks for level in network(images)]

    def shapes(self, size: tuple[int, int], channels: int = 3) -> list[tuple[int, int, int]]:
        """(C, h, w) of each network and level for (channels, H, W) images."""
        return self.infer_shapes(size, channels)[0]

    def tiles(self, size: tuple[int, int], channels: int = 3) -> bool:
        """As for a single backbone, of all."""
        return all(network.tiles(size, channels) for network in self.networks)

    def infer_shapes(self, size: tuple[int, int], channels: int = 3) -> tuple[list[tuple[int, int, int]], int]:
        """As for a single backbone; the networks run one after the other."""
        parts = [network.infer_shapes(size, channels) for network in self.networks]
        return [shape for shapes, _ in parts for shape in shapes], max(most for _, most in parts)
