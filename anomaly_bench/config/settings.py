"""Configuration: its folder, its choices, and the validation of its values."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from anomaly_bench.errors import UsageError, closest
from anomaly_bench.files import composed
from anomaly_bench.hardware.devices import cores

GROUPS = ("dataset", "method", "backbone", "metric", "protocol", "task")
REGIMES = ("one_class", "multi_class", "few_shot")  # of conf/task
SUPERVISIONS = ("normal images only", "synthetic anomalies", "external images", "few anomalies")  # what methods fit on
FAMILIES = (  # of methods, by what they compare an image with; `about.family`, for the report's filters
    *("nearest neighbours", "density", "normalising flow", "teacher and student", "reconstruction"),
    *("one-class network", "pretext task"),
)
STATUSES = {  # about.evidence.status of a method's YAML: as printed, and what it says
    "parity": ("parity", "the authors' own code gives the same numbers from the same weights and inputs"),
    "parity_third_party": (
        "parity (third party)",
        "an implementation of others that can be installed, or the library that the authors' code calls, gives the "
        "same numbers from the same weights and inputs, part by part; the whole is held by our tests",
    ),
    "paper": (
        "paper",
        "no whole implementation can be installed: an independent, slow version, written from the published formulas, "
        "gives the same numbers",
    ),
    "reconstruction": (
        "reconstruction",
        "published without code, and the paper leaves open what changes numbers: those choices are ours, and listed",
    ),
}
PRECISIONS = ("fp32", "bf16", "fp16")
SWITCHES = ("oracle", "overwrite", "speed", "save_maps", "save_model", "checkpoint", "fail_fast", "wait")
CACHES = {word: word for word in ("auto", "on", "read", "off")} | {True: "on", False: "off"}  # YAML's on and off
DEVICES = r"auto|cpu|cuda(:\d+)?|mps"
RETRY = ("all", "failed")
FILTERS = ("bilinear", "lanczos", "bicubic", "area", "nearest", "bilinear_no_antialias")  # see `data.decoding`
FILTER = "bilinear"  # the default, and that of records from before the key existed
LEAST_SIDE = 32  # pixels: the deepest level has stride 32
MAX_FALSE_ALARMS = 0.05  # the default of this key, which names of setups leave out
MOST_SEED = 2**63 - 1  # torch's limit
MEGAPIXELS = 179  # Pillow's own limit
MOST_THREADS = 1024  # OpenMP ends the process if it cannot start them


def conf_folder() -> Path:
    """The folder of YAML files: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parents[1] / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "conf"


def choices(group: str, folders: Sequence[Path]) -> list[str]:
    """The names available for a group in these folders."""
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
    holdout: float  # share of the training images; 0: no thresholds
    max_false_alarms: float
    results: Path
    overwrite: bool
    speed: bool
    gallery: int
    save_maps: bool
    save_model: bool
    checkpoint: bool
    fail_fast: bool
    retry: str
    wait: bool
    cache: str  # "auto", "on", "read" or "off"
    cache_gb: float
    protocol: str
    regime: dict[str, Any]  # of conf/task: {"name": one of REGIMES}, with few_shot "shots"
    resize: tuple[int, int]  # (H, W)
    crop: tuple[int, int] | None  # (H, W)
    filter: str  # one of FILTERS
    bits: int | None  # of 16-bit images; None: all 16
    max_megapixels: float

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images that a method sees."""
        return self.crop or self.resize

    @property
    def input(self) -> dict[str, Any]:
        crop = None if self.crop is None else list(self.crop)
        bits = {} if self.bits is None else {"bits": self.bits}
        return {"resize": list(self.resize), "crop": crop, "filter": self.filter, **bits}


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Check the run-wide keys of a resolved configuration.

    Raises:
        UsageError: a value has the wrong type or is out of range; with the key, what was found and expected.
    """
    parts = ("regime", "resize", "crop", "filter", "bits")
    names = (field.name for field in fields(Settings) if field.name not in parts)
    for key in ("input", "task", *names):
        if key not in config:
            raise UsageError(f"{key}: no value; expected {key}=VALUE")
    supervision(config.get("method") or {})
    resize, crop = input_size(config["input"])
    holdout, rate = share(config, "holdout", 0), share(config, "max_false_alarms")
    if not holdout and rate != MAX_FALSE_ALARMS:
        raise UsageError(f"max_false_alarms={rate:g} has no effect with holdout=0; give holdout=0.2")
    if not re.fullmatch(DEVICES, str(config["device"])):
        raise UsageError(f"device={config['device']}: expected auto, cpu, cuda, cuda:1 (the second GPU) or mps")
    if config["retry"] not in RETRY:
        raise UsageError(f"retry={config['retry']}: expected one of {', '.join(RETRY)}")
    if config["precision"] not in PRECISIONS:
        raise UsageError(f"precision={config['precision']}: expected one of {', '.join(PRECISIONS)}")
    if not isinstance(config["cache"], (str, bool)) or config["cache"] not in CACHES:
        raise UsageError(f"cache={config['cache']}: expected auto, on, read or off")
    return Settings(
        category=listed_names(config["category"], "category"),
        data_root=None if config["data_root"] is None else Path(str(config["data_root"])),
        seed=whole_number(config, "seed", 0, MOST_SEED),
        device=str(config["device"]),
        threads=whole_number(config, "threads", 1, MOST_THREADS) if config["threads"] is not None else cores(),
        batch_size=whole_number(config, "batch_size", 1),
        precision=config["precision"],
        holdout=holdout,
        max_false_alarms=rate,
        results=results_folder(config),
        retry=config["retry"],
        gallery=whole_number(config, "gallery", 0),
        cache=CACHES[config["cache"]],
        cache_gb=gigabytes(config, "cache_gb"),
        protocol=str(config["protocol"]),
        regime=regime(config["task"]),
        resize=resize,
        crop=crop,
        filter=resize_filter(config["input"]),
        bits=used_bits(config["input"]),
        max_megapixels=megapixels(config),
        **{name: truth(config, name) for name in SWITCHES},
    )


def regime(node: Any) -> dict[str, Any]:
    """The keys of `task`."""
    name = node.get("name") if isinstance(node, Mapping) else None
    if name not in REGIMES:
        raise UsageError(f"task={name or node}: expected one of {', '.join(REGIMES)}")
    for key in node.keys() - {"name", *(["shots"] if name == "few_shot" else [])}:
        raise UsageError(f"task.{key}={node[key]} has no effect with task={name}; remove it")
    return {
        "name": name,
        **({"shots": whole_number({"task.shots": node.get("shots")}, "task.shots", 1)} if name == "few_shot" else {}),
    }


def supervision(method: Mapping[str, Any]) -> str:
    """What a method is fitted on, `about.supervision` of its YAML; UsageError: not one of `SUPERVISIONS`."""
    found = str((method.get("about") or {}).get("supervision", SUPERVISIONS[0]))
    if found not in SUPERVISIONS:
        raise UsageError(f"method.about.supervision={found}: expected one of {', '.join(SUPERVISIONS)}")
    return found


def whole_number(config: Mapping[str, Any], key: str, least: int, most: int | None = None) -> int:
    value = config[key]
    if type(value) is not int or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{key}={value}: expected a whole number {limits}")
    return value


def share(config: Mapping[str, Any], key: str, least: float | None = None) -> float:
    """A number below 1, and above 0 or at `least`."""
    value = config[key]
    if type(value) not in (int, float) or not (0 < value < 1 or value == least):
        raise UsageError(f"{key}={value}: expected a share{' of 0, or' * (least == 0)} between 0 and 1, as 0.2")
    return float(value)


def gigabytes(config: Mapping[str, Any], key: str) -> float:
    value = config[key]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UsageError(f"{key}={value}: expected a number of GB above 0, such as 20; cache=off keeps nothing")
    return float(value)


def listed_names(value: Any, key: str) -> list[str]:
    """NAME or [NAME, NAME]."""
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(name, (str, int, float)) for name in listed):
        raise UsageError(f"{key}={value}: expected NAME or [NAME,NAME]")
    return [composed(str(name)) for name in listed]


def results_folder(config: Mapping[str, Any]) -> Path:
    """The key `results`, which may look like a number."""
    value = config.get("results")
    if value is None or isinstance(value, (list, Mapping)) or not str(value).strip():
        raise UsageError(f"results={'' if value is None else value}: expected a folder for records, tables and logs")
    return Path(str(value)).expanduser()


def truth(config: Mapping[str, Any], key: str) -> bool:
    if not isinstance(config[key], bool):
        raise UsageError(f"{key}={config[key]}: expected true or false")
    return bool(config[key])


def existing_folder(config: Mapping[str, Any], key: str, what: str) -> Path:
    """The folder given by a key.

    Raises:
        UsageError: it is missing or does not exist; `what` was expected.
    """
    if config[key] is None:
        raise UsageError(f"{key}=DIR is missing: expected {what}")
    path = Path(str(config[key])).expanduser()
    if not path.is_dir():
        raise UsageError(f"{key}={path}: {'not a folder' if path.exists() else 'no such folder'}; expected {what}")
    return path


def new_folder(config: Mapping[str, Any], key: str) -> Path:
    """Create the folder given by a key; it must be empty unless overwrite=true.

    Raises:
        UsageError: it is not empty, or is not writable.
    """
    path = Path(str(config[key])).expanduser()
    if path.is_dir() and any(path.iterdir()) and not truth(config, "overwrite"):
        raise UsageError(f"{key}={path}: not empty; give a new folder, or overwrite=true to write into this one")
    check_writable(path, f"{key}={path}")
    return path


def check_writable(folder: Path, given: str) -> None:
    """Create a folder; raise UsageError if it is not writable, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{given}: cannot be written ({error.strerror}); give another folder") from error


def input_size(node: Any) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """(H, W) of the keys `input.resize` and `input.crop`."""
    if not isinstance(node, Mapping):
        raise UsageError(f"input={node}: expected input.resize=PIXELS and input.crop=PIXELS")
    resize = sides(node.get("resize"), "input.resize", LEAST_SIDE)
    if node.get("crop") is None:
        return resize, None
    crop = sides(node["crop"], "input.crop", LEAST_SIDE)
    if crop[0] > resize[0] or crop[1] > resize[1]:
        raise UsageError(f"input.crop={list(crop)} is larger than input.resize={list(resize)}; make it smaller")
    return resize, crop


def resize_filter(node: Mapping[str, Any]) -> str:
    """The key `input.filter`, which a user's own protocol may leave out."""
    value = node.get("filter", FILTER)
    if value not in FILTERS:
        raise UsageError(f"input.filter={value}: no such filter{closest(str(value), FILTERS)}")
    return str(value)


def used_bits(node: Mapping[str, Any]) -> int | None:
    """The key `input.bits`, which a user's own protocol may leave out."""
    value = node.get("bits")
    if value is not None and (type(value) is not int or not 8 <= value <= 16):
        raise UsageError(f"input.bits={value}: expected the bits that a camera used of 16, such as 12")
    return None if value == 16 else value


def megapixels(config: Mapping[str, Any]) -> float:
    """The key `max_megapixels`."""
    value = config.get("max_megapixels", MEGAPIXELS)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UsageError(f"max_megapixels={value}: expected a number of millions of pixels above 0, such as 400")
    return float(value)


def sides(value: Any, key: str, least: int) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else value
    numbers = isinstance(pair, list) and len(pair) == 2 and all(type(side) is int and side >= least for side in pair)
    if not numbers:
        raise UsageError(f"{key}={value}: expected at least {least} pixels, such as 256 or [H,W]")
    return pair[0], pair[1]


def describe_input(shape: Mapping[str, Any]) -> str:
    """'256×256, crop 224×224, filter area' from a record's `input`; sizes may be one number."""
    sizes = [(name, pair(shape.get(part))) for name, part in (("", "resize"), ("crop ", "crop"))]
    parts = [f"{name}{'×'.join(map(str, size))}" for name, size in sizes if size]
    filter, bits = shape.get("filter", FILTER), shape.get("bits")
    parts += [f"filter {filter}"] if filter != FILTER else []
    return ", ".join([*parts, *([f"{bits} bits"] if bits else [])])


def pair(side: Any) -> list[int] | None:
    """[H, W] from one or two sides."""
    return [side, side] if isinstance(side, int) else side
