"""Frozen networks read at levels. They alone know the mean and deviation that images are normalised with.

A backbone's YAML says which module's output is which level. Level n has stride 2^(n+1), as ResNet's layer n: levels
1, 2, 3 have strides 4, 8, 16. Where two stages share a stride, the first is na and the last n; `stem` comes before
the stages, `head` after them. A transformer has one stride: its levels are block0, block1, and so on, so that a
method which asks for a pyramid (levels 1, 2, 3) is refused.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from anomaly_bench.errors import UsageError, one_line

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types there
    """Within it, `most` becomes the most bytes that tensors made there have taken at one time, on whatever device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.alive: set[int] = set()  # storages

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self.alive:
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage: torch.UntypedStorage) -> None:
        self.alive.add(id(storage))
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.drop, id(storage), storage.nbytes())

    def drop(self, storage: int, size: int) -> None:
        self.alive.discard(storage)
        self.now -= size


class Backbone:
    """A network, cut after the last level that is read, in evaluation mode, without gradients.

    Args:
        network: timm's name of the architecture, or `torchvision.` and torchvision's.
        mean, std: of the three channels of images in [0, 1].
        modules: level -> path of the module whose output it is (one that no later module overwrites in place); of a
            transformer the path of its blocks.
        levels: one feature map is returned for each, in this order; "all": every level of `modules`.
        weights: a state dict's file (safetensors, or torch's read with weights_only=True); None: random, seed 0.
        precision: "fp32", or "bf16" / "fp16" for autocast; features are float32 all the same.
        options: further arguments of the architecture.
        norm: path of a module that every level goes through when it is read: a transformer's last normalisation.

    Raises:
        UsageError: no such network, module or level; weights of another network.
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
    ) -> None:
        for key, three in (("mean", mean), ("std", std)):
            if not isinstance(three, Sequence) or [type(value) in (int, float) for value in three] != [True] * 3:
                raise UsageError(f"backbone.{key}={three}: expected three numbers, of red, green and blue")
        self.network_name, self.options, self.precision = network, options or {}, precision
        self.mean, self.std = (torch.tensor(list(value)).view(3, 1, 1) for value in (mean, std))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = create(network, self.options)
        if weights is not None:
            load_weights(self.network, read_weights(weights), weights)
        self.paths = find_levels(self.network, modules, levels)
        last = nn.Identity() if norm is None else find_module(self.network, norm, f"backbone.norm={norm}")
        cut(self.network, self.paths)
        self.network.add_module("norm_of_levels", last)
        fold_batch_norm(self.network.eval())
        self.outputs = listen(self.network, self.paths, last)
        self.network.requires_grad_(False).to(memory_format=torch.channels_last)

    def to(self, device: torch.device | str) -> Backbone:
        """Move in place; weights lie channels last, which is about three times as fast on a CPU."""
        self.network = self.network.to(device, memory_format=torch.channels_last)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) images in [0, 1] -> one float32 (B, C, h, w) per level.

        Raises:
            UsageError: a size that the transformer cannot take.
        """
        normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with self.autocast(images.device.type):
            levels = self.read(self.network, normalised)
        return [level.float() for level in levels]

    def autocast(self, device: str) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(device, PRECISIONS[self.precision])

    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(C, h, w) of each level for (H, W) images, without computing anything."""
        return self.rehearse(size)[0]

    def rehearse(self, size: tuple[int, int]) -> tuple[list[tuple[int, int, int]], int]:
        """`shapes`, and the most bytes that one image takes on its way through the network in fp32, weights apart."""
        tensors = itertools.chain(self.network.named_parameters(), self.network.named_buffers())
        state = {name: tensor.to("meta") for name, tensor in tensors}
        forward = functools.partial(torch.func.functional_call, self.network, state)
        with Peak() as peak, torch.no_grad():
            images = torch.empty(1, 3, *size, device="meta")
            levels = self.read(forward, (images - 1).contiguous(memory_format=torch.channels_last))
            shapes = [(level.shape[1], level.shape[2], level.shape[3]) for level in levels]
        return shapes, peak.most

    def trainable_copy(self) -> Student:
        """The same architecture, cut at the same level, with new random weights; it learns, and takes CNNs only."""
        network = create(self.network_name, self.options)
        cut(network, self.paths)
        return Student(network, self.paths, self.mean, self.std)

    def read(self, forward: Callable[[Tensor], Any], images: Tensor) -> list[Tensor]:
        """The levels' outputs of one pass; a transformer's tokens as a (B, C, h, w) grid, without class tokens."""
        grid = self.grid(images.shape[-2], images.shape[-1])
        forward(images)
        levels = [self.outputs[path] for path in self.paths]
        self.outputs.clear()
        return levels if grid is None else [to_grid(level, *grid) for level in levels]

    def grid(self, height: int, width: int) -> tuple[int, int] | None:
        """The (h, w) patches of a transformer for images of this size; None: a CNN, which takes every size.

        Raises:
            UsageError: a size that the transformer cannot take.
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
                f"expected {expected}: give input.resize or input.crop"
            )
        return height // rows, width // columns


class Student(nn.Module):
    """A network that is read at the levels of a backbone, and learns.

    The backward pass computes each block anew from its input: a fifth more time for less than half the memory.

    Args:
        network: the architecture of the backbone, cut after the last of `paths`.
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


def blocks(network: nn.Module) -> list[nn.Module]:
    """The parts, of more than one layer each, of the sequences that a network runs; none within another."""
    found: dict[str, nn.Module] = {}
    for name, part in network.named_modules():
        whole = network.get_submodule(name.rpartition(".")[0])
        block = isinstance(whole, nn.Sequential) and not isinstance(part, nn.Sequential) and any(part.children())
        if block and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = part
    return list(found.values())


def recomputed(block: nn.Module, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The output of a block, which keeps its input alone for the backward pass."""
    norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d) and part.track_running_stats]
    outputs: Tensor = checkpoint(
        forward, inputs, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), unseen(norms))
    )
    return outputs


@contextlib.contextmanager
def unseen(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """Within it, normalisations do not take what they see into their running statistics."""
    before = [(norm.momentum, norm.get_buffer("num_batches_tracked").clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(batches)


class Networks:
    """Several backbones on the same images, as one: the levels of the first, then those of the second, and so on."""

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

    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(C, h, w) of each network and level for (H, W) images."""
        return self.rehearse(size)[0]

    def rehearse(self, size: tuple[int, int]) -> tuple[list[tuple[int, int, int]], int]:
        """As of one backbone; the networks run one after the other."""
        parts = [network.rehearse(size) for network in self.networks]
        return [shape for shapes, _ in parts for shape in shapes], max(most for _, most in parts)


def create(network: str, options: Mapping[str, Any]) -> Any:
    """The whole network with random weights."""
    library, _, name = network.rpartition(".")
    if library == "torchvision":
        from torchvision import models

        if name in models.list_models():
            return models.get_model(name, weights=None, **options)
    else:
        import timm

        if timm.is_model(network):
            return timm.create_model(network, pretrained=False, **options)
    raise UsageError(f"backbone.network={network}: the installed {library or 'timm'} has no such network")


def find_levels(network: nn.Module, modules: Mapping[str, str] | str, levels: Sequence[int | str] | str) -> list[str]:
    """The paths in the network of the levels that are asked for."""
    if levels != "all" and (isinstance(levels, str) or not isinstance(levels, Sequence) or not levels):
        raise UsageError(f"method.levels={levels}: expected a list, such as [1,2,3], or all")
    if isinstance(modules, str):
        last = len(list(network.get_submodule(modules).children())) - 1
        known = f"block0 to block{last}, all of one stride: it is a transformer"
        modules = {f"block{number}": f"{modules}.{number}" for number in range(last + 1)}
    else:
        known = ", ".join(modules)
    names = list(modules) if levels == "all" else [str(level) for level in levels]
    for name in names:
        if name not in modules:
            raise UsageError(f"method.levels: no level {name} in {type(network).__name__}; it has {known}")
        find_module(network, modules[name], f"backbone.modules.{name}={modules[name]}")
    return [modules[name] for name in names]


def find_module(network: nn.Module, path: str, key: str) -> nn.Module:
    """The module at a path of the network; `key` is what the error names."""
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        raise UsageError(f"{key}: {error}") from error


def cut(network: nn.Module, paths: Sequence[str]) -> None:
    """Empty every module after the last of `paths`: networks name their modules in the order they run them in."""
    order = [name for name, _ in network.named_modules()]
    parent = network
    for step in max(paths, key=order.index).split("."):
        names = [name for name, _ in parent.named_children()]
        for later in names[names.index(step) + 1 :]:
            setattr(parent, later, nn.Sequential())  # hands its input on, and a ModuleList's place is kept too
        parent = parent.get_submodule(step)


def fold_batch_norm(network: nn.Module) -> None:
    """Move each normalisation that follows a convolution into its weights: a quarter less time, the same to 1e-5.

    Only its activation, where timm's has one, stays in its place.
    """
    for parent in network.modules():
        names = list(parent._modules)
        for first, second in itertools.pairwise(names):
            convolution, norm = parent._modules[first], parent._modules[second]
            plain = type(convolution).__name__ in ("Conv2d", "Conv2dSame")  # others compute their weights
            if not plain or not isinstance(norm, nn.BatchNorm2d):
                continue
            assert norm.running_mean is not None
            assert norm.running_var is not None
            layer: Any = convolution
            layer.weight, layer.bias = fuse_conv_bn_weights(
                layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            parent._modules[second] = getattr(norm, "act", nn.Identity())


def to_grid(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, T, C) tokens, class tokens first -> (B, C, h, w), a view that lies channels last."""
    patches = tokens[:, -height * width :]
    return patches.reshape(len(tokens), height, width, -1).permute(0, 3, 1, 2)


def listen(network: nn.Module, paths: Sequence[str], norm: nn.Module) -> dict[str, Tensor]:
    """A dict that the outputs of some modules, put through `norm`, appear in whenever the network runs, by path."""
    outputs: dict[str, Tensor] = {}
    for path in paths:
        network.get_submodule(path).register_forward_hook(functools.partial(keep, outputs, path, norm))
    return outputs


def keep(
    outputs: dict[str, Tensor], path: str, norm: nn.Module, module: nn.Module, inputs: Any, output: Tensor
) -> None:
    """A forward hook."""
    outputs[path] = norm(output)


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
            f"{file}: not a weights file that can be read safely ({one_line(str(error)).split('. ')[0]}); "
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
