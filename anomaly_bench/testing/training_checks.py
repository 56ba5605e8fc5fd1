"""Contract checks for methods with parameters: their networks learn, all of them, and look at their input.

What an optimiser does is watched from outside, so a method may train with any loop and any of torch's optimisers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

LEAST_GRADIENT = 1e-6  # of the largest; the contract's methods have 6e-5 to 0.2
LEAST_SPREAD = 1e-4  # of a layer's outputs; the contract's methods have 7e-4 or more


@dataclass
class Training:
    """What optimisers were given during a fit, by the id of the parameter.

    Attributes:
        first: values before the first step.
        gradients: largest root mean square of the gradient over all steps.
    """

    first: dict[int, Tensor] = field(default_factory=dict)
    gradients: dict[int, float] = field(default_factory=dict)

    def step(self, optimiser: Optimizer, *arguments: Any) -> None:
        """Called before every step."""
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                key = id(parameter)
                if key not in self.first:
                    self.first[key] = parameter.detach().clone()
                self.gradients[key] = max(self.gradients.get(key, 0.0), size(parameter.grad))


@contextlib.contextmanager
def watch() -> Iterator[Training]:
    """Record the optimiser steps in this context."""
    training = Training()
    hook = register_optimizer_step_pre_hook(training.step)
    try:
        yield training
    finally:
        hook.remove()


def size(values: Tensor) -> float:
    """Root mean square."""
    return float(values.detach().square().mean().sqrt())


def assert_all_learn(method: nn.Module, training: Training) -> None:
    """Every parameter has moved, and gradients reach every layer, the first ones too."""
    trained = {name: value for name, value in method.named_parameters() if value.requires_grad}
    known = {name: training.first.get(id(value)) for name, value in trained.items()}
    still = [name for name, value in trained.items() if (first := known[name]) is None or torch.equal(first, value)]
    assert not still, (
        f"not changed by training: {shortened(still)}: pass all parameters to the optimiser, let the loss depend on "
        "them, and keep what is not trained in buffers"
    )
    found = {  # without biases, as one before a norm has no gradient
        name: training.gradients[id(value)] for name, value in trained.items() if value.dim() > 1
    }
    largest = max(found.values(), default=0.0)
    weak = [name for name, value in found.items() if value < LEAST_GRADIENT * largest]
    assert not weak, (
        f"gradients do not reach {shortened(weak)}: at most {LEAST_GRADIENT:.0e} of the largest, {largest:.1e}: "
        "initialise the layers (nn.init.kaiming_normal_ and zero biases), normalise between them, or add shortcuts"
    )


def assert_loss_falls(method: Any) -> None:
    """The mean loss of the last quarter of the training is below the first one, that of the untrained network."""
    losses = getattr(method, "facts", {}).get("training", {}).get("curve", {}).get("loss", [])
    if len(losses) < 2:
        return
    last = fmean(losses[-max(1, len(losses) // 4) :])
    assert last < losses[0], (
        f"the loss at the end, {last:.4g}, is not below that of the untrained network, {losses[0]:.4g}: is its sign "
        "wrong, or the learning rate too high?"
    )


def assert_outputs_differ(method: nn.Module, score: Callable[[Tensor], object], images: Tensor) -> None:
    """Every layer with parameters answers unlike images differently, unless the method says that it cannot.

    The latter are `constant_layers`, such as those that see learnt queries only; their outputs have to be the same.
    """
    layers = {
        name: layer
        for name, layer in method.named_modules()
        if not list(layer.children()) and any(True for _ in layer.parameters())
    }
    constant = getattr(method, "constant_layers", ())
    with settled_norms(method, score, images):
        outputs = [outputs_of(layers, score, images[index : index + 1]) for index in range(len(images))]
    blind = []
    for name in outputs[0]:
        shortest = min(len(found[name]) for found in outputs)  # some images may need fewer calls of a layer
        each = torch.stack([found[name][:shortest] for found in outputs])
        if size(each - each.mean(dim=0)) < LEAST_SPREAD * size(each):
            blind.append(name)
    assert set(constant) <= set(blind), f"not constant: {shortened([*set(constant) - set(blind)])} of constant_layers"
    blind = [name for name in blind if name not in constant]
    assert not blind, (
        f"unlike images have the same outputs in {shortened(blind)}: the network ignores its input; initialise its "
        "layers (nn.init.kaiming_normal_ and zero biases), normalise between them, and do not saturate activations"
    )


@contextlib.contextmanager
def settled_norms(method: nn.Module, score: Callable[[Tensor], object], images: Tensor) -> Iterator[None]:
    """Batch norms with the statistics of these images: a few steps leave running statistics near their start."""
    state = {name: value.clone() for name, value in method.state_dict().items()}
    norms = [layer for layer in method.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches
            norm.train()
        score(images)
        for norm in norms:
            norm.eval()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
        method.load_state_dict(state)


def outputs_of(layers: dict[str, nn.Module], score: Callable[[Tensor], object], images: Tensor) -> dict[str, Tensor]:
    """All outputs of each layer that scoring calls, flattened."""
    kept: dict[str, list[Tensor]] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            if not is_functorch_wrapped_tensor(output):  # inside vmap or grad, whose values cannot be read
                kept.setdefault(name, []).append(output.detach().flatten())

        return keep

    hooks = [layer.register_forward_hook(keeper(name)) for name, layer in layers.items()]
    try:
        score(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in kept.items()}


def shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
