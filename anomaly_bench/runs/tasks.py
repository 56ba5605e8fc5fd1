"""The choices of conf/task: which of a dataset's categories one model is fitted and scored on."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_bench.data.dataset import Task
from anomaly_bench.errors import DataError
from anomaly_bench.files import digest

if TYPE_CHECKING:
    from anomaly_bench.data.dataset import Dataset, Sample


def task_names(regime: Mapping[str, Any], dataset: Dataset, categories: Sequence[str]) -> dict[str, list[str]]:
    """The tasks of a run, and the categories of each."""
    if regime["name"] != "multi_class":
        return {name: [name] for name in categories}
    every = len(categories) == len(dataset.categories)
    some = f"{len(categories)}-of-{len(dataset.categories)}-{digest(list(categories))[:6]}"
    return {"all" if every else some: list(categories)}


def make_task(regime: Mapping[str, Any], name: str, parts: Mapping[str, Task], seed: int, holdout: float = 0.0) -> Task:
    """A task of `task_names`.

    Args:
        parts: the dataset's tasks for the categories.
        holdout: see `hold_out`.

    Raises:
        DataError: fewer normal images than shots, or than can be held out; categories with different planes.
    """
    if regime["name"] == "multi_class":
        return joined_task(name, {category: hold_out(part, holdout, seed) for category, part in parts.items()})
    task = few_shot(parts[name], regime["shots"], seed) if regime["name"] == "few_shot" else parts[name]
    return hold_out(task, holdout, seed)


def joined_task(name: str, parts: Mapping[str, Task]) -> Task:
    """Join tasks: fitted on all their training images, with the test sets of each under its name."""
    planes = next(iter(parts.values())).planes
    unlike = [category for category, part in parts.items() if part.planes != planes]
    if unlike:
        raise DataError(f"{name}: the images of {unlike[0]} have different planes from those of {next(iter(parts))}")
    tests = {
        category if test == "test" else f"{category}/{test}": prefixed(category, samples)
        for category, part in parts.items()
        for test, samples in part.tests.items()
    }
    fit = (sample for category, part in parts.items() for sample in prefixed(category, part.fit))
    validation = (sample for category, part in parts.items() for sample in prefixed(category, part.validation))
    findings = (
        replace(each, files=tuple(f"{category}/{file}" for file in each.files))
        for category, part in parts.items()
        for each in part.findings
    )
    return Task(name, None, tuple(fit), tests, tuple(validation), planes, tuple(findings))


def prefixed(category: str, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples of a category, with its name in their ids."""
    return tuple(
        replace(each, id=f"{category}/{each.id}", clip=None if each.clip is None else f"{category}/{each.clip}")
        for each in samples
    )


def few_shot(task: Task, shots: int, seed: int) -> Task:
    """The task with a random subset of its training images, in order; fewer shots give a subset of more."""
    if shots > len(task.fit):
        raise DataError(
            f"{task.name}: task.shots={shots}, found {len(task.fit)} training images; expected at most that many"
        )
    drawn = np.random.default_rng(zlib.crc32(f"{seed}/{task.name}".encode())).permutation(len(task.fit))[:shots]
    return replace(task, fit=tuple(task.fit[index] for index in sorted(drawn)))


def hold_out(task: Task, share: float, seed: int) -> Task:
    """The task with a share of its training images, at least one, as its validation set: the same for all methods.

    A dataset's own validation set serves instead, and all training images stay.
    """
    if not share or task.validation:
        return task
    if len(task.fit) < 2:
        raise DataError(f"{task.name}: holdout={share:g} of {len(task.fit)} training images; expected at least 2")
    count = min(max(1, round(share * len(task.fit))), len(task.fit) - 1)
    order = np.random.default_rng(zlib.crc32(f"{seed}/{task.name}/holdout".encode())).permutation(len(task.fit))
    held_out, rest = sorted(order[:count]), sorted(order[count:])
    return replace(
        task, fit=tuple(task.fit[index] for index in rest), validation=tuple(task.fit[index] for index in held_out)
    )
