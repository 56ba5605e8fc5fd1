"""The difference between two implementations: the largest one, relative to the peer's largest value."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_bench.config.instantiate import construct
from anomaly_bench.testing.setup import Setup

EXACT = 1e-9  # the same float64 operations in different order
SINGLE = 1e-5  # one side stores or reads float32
Pairs = list[tuple[nn.Parameter, list[Tensor]]]  # ours, and the matching parts of theirs along the first axis


@dataclass(frozen=True)
class Comparison:
    """One quantity of one part of a method, computed by both from the same weights and inputs.

    Attributes:
        method: its name, or "metrics" or "backbones".
        part: of the method. quantity: such as "loss" or "gradients".
        peer: the other package and its class or function.
        difference: see `distance`. bound: above which `make parity` fails.
        remark: adjustments made for the comparison, or known differences.
    """

    method: str
    part: str
    quantity: str
    peer: str
    difference: float
    bound: float
    remark: str = ""


def compare(
    place: str, quantity: str, peer: str, ours: Any, theirs: Any, bound: float = EXACT, remark: str = ""
) -> Comparison:
    """A row; place: 'method: part'; ours, theirs: numbers, tensors or arrays, or sequences of these."""
    method, _, part = place.partition(": ")
    return Comparison(method, part, quantity, peer, distance(ours, theirs), bound, remark)


def distance(ours: Any, theirs: Any) -> float:
    """The maximum over all arrays of max |ours - theirs| / max |theirs|.

    The denominator is at least a millionth of the largest array's: the gradient of a bias before batch normalisation
    is 0 up to rounding.
    """
    many = isinstance(ours, (list, tuple))
    pairs = [
        (array(one), array(other)) for one, other in (zip(ours, theirs, strict=True) if many else [(ours, theirs)])
    ]
    if wrong := [(one.shape, other.shape) for one, other in pairs if one.shape != other.shape]:
        raise ValueError(f"shapes {wrong}: expected the same on both sides")
    largest = [float(np.abs(other).max()) for _, other in pairs]
    least = max(1e-6 * max(largest), 1e-300)
    differences = [float(np.abs(one - other).max()) for one, other in pairs]
    return max(each / max(size, least) for each, size in zip(differences, largest, strict=True))


def array(values: Any) -> Any:
    tensor = values.detach() if isinstance(values, Tensor) else values
    return np.asarray(tensor, dtype=np.float64)


def in_order(ours: nn.Module, theirs: nn.Module | Sequence[nn.Module]) -> Pairs:
    """Parameters of two networks with the same architecture, matched by order."""
    modules = [theirs] if isinstance(theirs, nn.Module) else theirs
    others = [parameter for module in modules for parameter in module.parameters()]
    return [(one, [other]) for one, other in zip(ours.parameters(), others, strict=True)]


@torch.no_grad()
def randomise(pairs: Pairs, spread: float = 0.1) -> None:
    """Perturb our parameters, some of which are initially all 0 or 1, and copy them to theirs."""
    for one, parts in pairs:
        one += spread * torch.randn_like(one) * one.std(correction=0).clamp(min=0.5)
        values = torch.split(one.flatten(), [part.numel() for part in parts])
        for part, value in zip(parts, values, strict=True):
            part.copy_(value.view(part.shape))


def gradients(pairs: Pairs, ours: Tensor, theirs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of both losses with respect to every parameter."""
    found = torch.autograd.grad(ours, [one for one, _ in pairs])
    parts = torch.autograd.grad(theirs, [part for _, parts in pairs for part in parts])
    flat = iter(parts)
    others = [torch.cat([next(flat).flatten() for _ in parts]) for _, parts in pairs]
    return [each.flatten() for each in found], others


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """For creating peers' networks that require the float32 default; `.double()` converts them afterwards."""
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float64)


class Given(nn.Module):
    """A backbone that returns given levels for any images."""

    def __init__(self, levels: Iterable[Tensor]) -> None:
        super().__init__()
        self.levels = list(levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.levels


def method(name: str, network: nn.Module | None, *overrides: str, backbone: str = "lite0") -> Any:
    """Our method with its YAML's settings for a backbone, and `network` in place of that backbone."""
    given = {} if network is None else {"backbone": network}
    return construct(Setup(name, backbone, tuple(overrides)).config["method"], "method", **given)


def shapes(levels: Iterable[Tensor]) -> list[tuple[int, int, int]]:
    return [(level.shape[1], level.shape[2], level.shape[3]) for level in levels]
