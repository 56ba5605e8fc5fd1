"""The cost of training, and of scoring with the flows: `python benchmarks/bench_training.py --backbone wrn50`.

Of the flows, the ratio of an epoch (after the first) to the flow's bare forward, backward and optimiser steps,
alternating within one fit; images per second next to Table 3 of Zheng et al. 2022 (arXiv 2205.14852). As in
benchmarks/bench.py, whose helpers it uses: medians, both sides measured in one run. Weights are random and images are
noise: neither affects time.

Of the methods given by `--loops`, the ratio of a training loop to what it spends in networks, in backpropagation and in
the optimiser: the rest draws batches, makes anomalies, and computes losses.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from bench import THREADS, in_turn, seconds, show
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from anomaly_bench.hardware import devices, memory, timing
from anomaly_bench.protocol import TrainingSet, to_tensor
from anomaly_bench.testing.setup import Setup

if TYPE_CHECKING:
    from anomaly_bench.protocol import Advance

IMAGES, EPOCHS, SIDE = 64, 6, 256
WARM, STEPS = 2, 8  # steps of `--loops`
BACKWARD = torch.Tensor.backward
PUBLISHED = {"fastflow": 21.8, "cflow_ad": 14.9, "differnet": 2.53}  # images per second, on one GPU


class Watch:
    """Times each epoch of a fit and, after it, the bare steps on the same batches with a copy of the networks."""

    def __init__(self, method: Any) -> None:
        self.method, self.loss, self.batches = method, method.loss, []
        self.epochs: list[float] = []
        self.floors: list[float] = []
        self.method.loss = self.record

    def record(self, *batch: Any) -> Any:
        self.batches.append(batch)
        return self.loss(*batch)

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Advance]:
        begin = timing.clock()

        def advance(done: int, note: str = "") -> None:
            nonlocal begin
            if note:  # an epoch is over
                self.epochs.append(timing.clock() - begin)
                self.floors.append(self.floor())
            begin = timing.clock()

        yield advance

    def floor(self) -> float:
        if not self.floors:
            del self.method.loss  # restores the class's method
            self.copy = copy.deepcopy(self.method)
            self.optimiser = torch.optim.Adam(self.copy.parameters(), fused=True)
        return seconds(lambda: [self.step(batch) for batch in self.batches])

    def step(self, batch: Any) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.copy.loss(*batch).backward()
        self.optimiser.step()


def epoch_over_steps(name: str, backbone: str) -> None:
    setup = Setup(name, backbone, ("backbone.weights=random", f"method.epochs={EPOCHS}"))
    method = setup.new()
    watch = Watch(method)
    setup.fit(method, TrainingSet("bench", noise(IMAGES), stage=watch.stage))
    found = {"epoch": statistics.median(watch.epochs[1:]), "steps": statistics.median(watch.floors[1:])}
    ratio = found["epoch"] / found["steps"]
    part = f"{name} on {backbone}, {IMAGES} images: an epoch after the first over its bare steps"
    show(part, found, ratio, "at most 1.15", ratio <= 1.15)


class Inside:
    """Seconds inside networks, backpropagation and optimisers since the first optimiser step, and until the last."""

    def __init__(self) -> None:
        self.depth, self.begin, self.parts, self.steps = 0, 0.0, 0.0, 0
        self.first = self.last = 0.0  # time of these steps' ends
        self.inside = 0.0  # until the last step

    def enter(self, *_: Any) -> None:
        if not self.depth:
            self.begin = timing.clock()
        self.depth += 1

    def leave(self, *_: Any) -> None:
        self.depth -= 1
        if not self.depth:
            self.parts += timing.clock() - self.begin

    def stepped(self, *_: Any) -> None:
        self.leave()
        self.steps, self.last = self.steps + 1, timing.clock()
        if self.steps <= WARM:
            self.first, self.parts = self.last, 0.0
        self.inside = self.parts

    def backward(self, loss: torch.Tensor, *arguments: Any, **keys: Any) -> None:
        self.enter()
        BACKWARD(loss, *arguments, **keys)
        self.leave()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [
            register_module_forward_pre_hook(self.enter),
            register_module_forward_hook(self.leave, always_call=True),
            register_optimizer_step_pre_hook(self.enter),
            register_optimizer_step_post_hook(self.stepped),
        ]
        with mock.patch.object(torch.Tensor, "backward", lambda *given, **keys: self.backward(*given, **keys)):
            yield
        for hook in hooks:
            hook.remove()


def loop_over_steps(name: str, words: Sequence[str]) -> None:
    setup = Setup(name, "lite0", ("backbone.weights=random", *words))
    inside = Inside()
    normals = TrainingSet("bench", noise(IMAGES))
    normals.steps = WARM + STEPS
    with inside.watching():
        setup.fit(setup.new(), normals)
    found = {"loop": inside.last - inside.first, "inside": inside.inside}
    ratio = found["loop"] / found["inside"]
    show(f"{name}: its training loop over its networks, {STEPS} steps", found, ratio, "at most 1.15", ratio <= 1.15)


def images_per_second(backbone: str) -> None:
    images, calls = to_tensor(noise(32)), {}
    for name in PUBLISHED:
        setup = Setup(name, backbone, ("backbone.weights=random",))
        method = setup.new()
        method.build(setup.shapes((SIDE, SIDE)))
        method.eval()
        calls[name] = functools.partial(method.score, images)
    in_turn(1, **calls)
    found = {name: 32 / value for name, value in in_turn(3, **calls).items()}
    print(f"images per second on {backbone}, {SIDE} x {SIDE}, batch 32 (Table 3's in parentheses), over FastFlow's")
    for name, fps in found.items():
        over, published = fps / found["fastflow"], PUBLISHED[name] / PUBLISHED["fastflow"]
        print(f"    {name:10} {fps:8.2f} ({PUBLISHED[name]:5.2f})   {over:6.3f} ({published:.3f})")
    reached = found["fastflow"] > found["cflow_ad"] > found["differnet"]
    print(f"    FastFlow faster than CFLOW-AD faster than DifferNet: {'reached' if reached else 'MISSED'}", flush=True)


def scoring_over_networks(name: str, backbone: str) -> None:
    """Scoring batches of 32 over the forward passes of backbone and flow that it makes, repeated with their inputs."""
    setup = Setup(name, backbone, ("backbone.weights=random",))
    method = setup.new()
    method.build(setup.shapes((SIDE, SIDE)))
    method.eval()
    images, features = to_tensor(noise(32)), method.backbone
    passes: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def watched(batch: torch.Tensor) -> Any:
        passes.append((features, (batch,)))
        return features(batch)

    method.backbone = watched
    with method.flow.register_forward_pre_hook(lambda *seen: passes.append(seen)):
        method.score(images)
    method.backbone = features

    @torch.no_grad()
    def bare() -> None:
        for network, inputs in passes:
            network(*inputs)

    found = in_turn(3, score=functools.partial(method.score, images), bare=bare)
    ratio = found["score"] / found["bare"]
    show(f"{name}: scoring {32 / found['score']:.1f} images/s", found, ratio, "at most 1.1", ratio <= 1.1)


def noise(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="lite0", help="for all but PEFM, which uses lite0_lite1")
    parser.add_argument("--methods", nargs="*", default=["fastflow", "cflow_ad", "differnet", "pefm"], help="to train")
    parser.add_argument("--loops", nargs="*", default=[], help="METHOD or METHOD,KEY=VALUE,...: only these loops")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    memory.keep_freed()
    print(f"{devices.device_name('cpu')}, {THREADS} threads, torch {torch.__version__}", flush=True)
    for name, *words in (each.split(",") for each in arguments.loops):
        loop_over_steps(name, words)
    if arguments.loops:
        return
    for name in arguments.methods:
        epoch_over_steps(name, "lite0_lite1" if name == "pefm" else arguments.backbone)
    images_per_second(arguments.backbone)
    for name in ("cs_flow", "differnet"):
        scoring_over_networks(name, arguments.backbone)


if __name__ == "__main__":
    main()
