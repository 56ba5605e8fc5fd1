"""Configuration: where it lies, what it offers, and whether its values make sense."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_bench.errors import UsageError

GROUPS = ("dataset", "method", "backbone", "protocol")
PRECISIONS = ("fp32", "bf16", "fp16")
SWITCHES = ("oracle", "overwrite", "speed", "save_maps", "save_model", "checkpoint")
LEAST_SIDE = 32  # pixels: the deepest level has stride 32


def conf_folder() -> Path:
    """The folder of the YAML files: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "conf"


def choices(group: str, folders: Sequence[Path]) -> list[str]:
    """The names that a group offers in these folders."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


@dataclass(frozen=True)
class Settings:
    """The run-wide keys of config.yaml, checked."""

    category: list[str]
    data_root: Path | None
    seed: int
    device: str
    threads: int
    batch_size: int
    precision: str
    oracle: bool
    results: Path
    overwrite: bool
    speed: bool
    gallery: int
    save_maps: bool
    save_model: bool
    checkpoint: bool
    protocol: str
    resize: tuple[int, int]  # (H, W)
    crop: tuple[int, int] | None  # (H, W)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images that a method sees."""
        return self.crop or self.resize

    @property
    def input(self) -> dict[str, Any]:
        return {"resize": list(self.resize), "crop": None if self.crop is None else list(self.crop)}


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Check the run-wide keys of a resolved configuration.

    Raises:
        UsageError: a value of another type or out of its range; the key, what was found and what was expected.
    """
    resize = sides(config["input"]["resize"], "input.resize", LEAST_SIDE)
    crop = None
    if config["input"]["crop"] is not None:
        crop = sides(config["input"]["crop"], "input.crop", LEAST_SIDE)
        if crop[0] > resize[0] or crop[1] > resize[1]:
            raise UsageError(f"input.crop={list(crop)} is larger than input.resize={list(resize)}")
    category = config["category"]
    if config["precision"] not in PRECISIONS:
        raise UsageError(f"precision={config['precision']}: expected one of {', '.join(PRECISIONS)}")
    return Settings(
        category=[str(name) for name in category] if isinstance(category, list) else [str(category)],
        data_root=None if config["data_root"] is None else Path(str(config["data_root"])),
        seed=whole(config, "seed", 0),
        device=str(config["device"]),
        threads=whole(config, "threads", 1) if config["threads"] is not None else cores(),
        batch_size=whole(config, "batch_size", 1),
        precision=config["precision"],
        results=Path(str(config["results"])).expanduser(),
        gallery=whole(config, "gallery", 0),
        protocol=str(config["protocol"]),
        resize=resize,
        crop=crop,
        **{
            name: truth(config, name)
            for name in ("oracle", "overwrite", "speed", "save_maps", "save_model", "checkpoint")
        },
    )


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def whole(config: Mapping[str, Any], key: str, least: int) -> int:
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{key}={value}: expected a whole number of at least {least}")
    return value


def truth(config: Mapping[str, Any], key: str) -> bool:
    if not isinstance(config[key], bool):
        raise UsageError(f"{key}={config[key]}: expected true or false")
    return bool(config[key])


def sides(value: Any, key: str, least: int) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else value
    numbers = isinstance(pair, list) and len(pair) == 2 and all(type(side) is int and side >= least for side in pair)
    if not numbers:
        raise UsageError(f"{key}={value}: expected pixels of at least {least}, as 256 or [H,W]")
    return pair[0], pair[1]
