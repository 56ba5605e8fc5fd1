"""The architectures behind backbones: created, hooked at modules, truncated after the last one, loaded with weights."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from anomaly_bench.errors import UsageError, one_line

LOADING = {  # arguments of timm's and torchvision's networks
    *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
    *("weights", "weights_backbone"),
}


def create(network: str, options: Mapping[str, Any]) -> Any:
    """The whole network with random weights.

    Raises:
        UsageError: no such network, or an option that loads weights.
    """
    loading = sorted(LOADING & options.keys())
    if loading:
        raise UsageError(f"backbone.options.{loading[0]}: loads weights; give them as backbone.weights=FILE")
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
    """The module paths of the requested levels."""
    if levels != "all" and (isinstance(levels, str) or not isinstance(levels, Sequence) or not levels):
        raise UsageError(f"method.levels={levels}: expected a list, such as [1,2,3], or all")
    if isinstance(modules, str):
        last = len(list(network.get_submodule(modules).children())) - 1
        known = f"block0 to block{last}, all with the same stride, as it is a transformer"
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
    """The module at a path of the network; errors name `key`."""
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        raise UsageError(f"{key}: {error}") from error


def truncate(network: nn.Module, paths: Sequence[str]) -> None:
    """Empty every module after the last of `paths`; networks define their modules in execution order."""
    order = [name for name, _ in network.named_modules()]
    parent = network
    for step in max(paths, key=order.index).split("."):
        names = [name for name, _ in parent.named_children()]
        for later in names[names.index(step) + 1 :]:
            setattr(parent, later, nn.Sequential())  # passes its input through, and keeps ModuleList indices
        parent = parent.get_submodule(step)


def cut_before(network: nn.Module, path: str) -> None:
    """Empty every module up to the one at `path`, which is the last of them: the network then takes its output."""
    parent = whole = network
    for step in path.split("."):
        whole, names = parent, [name for name, _ in parent.named_children()]
        for earlier in names[: names.index(step)]:
            setattr(whole, earlier, nn.Sequential())
        parent = whole.get_submodule(step)
    setattr(whole, step, nn.Sequential())


def reflect_padding(network: nn.Module) -> None:
    """Replace each convolution that pads with zeros by a reflection padding and the convolution without padding."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and isinstance(layer.padding, tuple) and any(layer.padding):
                rows, columns = layer.padding
                layer.padding = (0, 0)
                setattr(parent, name, nn.Sequential(nn.ReflectionPad2d((columns, columns, rows, rows)), layer))


def fold_batch_norm(network: nn.Module) -> None:
    """Fold each batch norm that follows a convolution into its weights: 25 % faster, equal to within 1e-5.

    Only the activation that timm's batch norms may include remains.
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


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images in [0, 1], normalised per channel, channels-last, which is about three times as fast on a CPU."""
    return (images - mean).div_(std).contiguous(memory_format=torch.channels_last)


def to_grid(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, T, C) tokens, class tokens first -> (B, C, h, w), a channels-last view."""
    patches = tokens[:, -height * width :]
    return patches.reshape(len(tokens), height, width, -1).permute(0, 3, 1, 2)


def listen(network: nn.Module, paths: Sequence[str], norm: nn.Module) -> dict[str, Tensor]:
    """A dict that each forward pass fills with the modules' outputs after `norm`, by path."""
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
    """Load a state dict from a safetensors or torch file, without executing code in it.

    Raises:
        UsageError: another format, or a pickle that holds more than tensors.
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
    """Load weights by name or, if the names differ but all shapes match, by order.

    Another code base may use other names in the same order (lite0's weights package).

    Raises:
        UsageError: the tensors do not fit this network.
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
