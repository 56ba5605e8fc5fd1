"""Types of a record's parts, checked on loading, so that readers can rely on them whatever the file's origin."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, NotRequired, TypedDict, get_type_hints

import msgspec
from msgspec import Meta

Side = Annotated[int, Meta(ge=1, le=10**6)]
Shape = Annotated[list[Side], Meta(min_length=2, max_length=2)]
Count = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=10_000)]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Category(TypedDict):
    name: Text
    group: Text | None


class Input(TypedDict):
    resize: Shape
    crop: Shape | None
    filter: NotRequired[Text]
    bits: NotRequired[Annotated[int, Meta(ge=8, le=15)]]


class Counts(TypedDict):
    fit: Count
    test: Count
    defects: Count
    maps: NotRequired[Count]
    regions: NotRequired[Count]
    lost_regions: NotRequired[Count]


class Entry(TypedDict):
    value: float | None
    revision: int
    title: NotRequired[Text]
    level: NotRequired[Literal["image", "pixel"]]
    unit: NotRequired[Text]
    digits: NotRequired[Annotated[int, Meta(ge=0, le=17)]]
    best: NotRequired[Literal["highest", "lowest", ""]]
    needs: NotRequired[list[Text]]


class Curve(TypedDict):
    x: list[float]
    y: list[float]


class Image(TypedDict):
    file: Text
    defect: Text | None
    score: float
    clip: NotRequired[Text]


class Scored(TypedDict):
    score: float
    peak: float | None


class HeldOut(Scored):
    file: Text


class Thresholds(TypedDict):
    image: float | None
    pixel: float | None
    max_false_alarms: Annotated[float, Meta(gt=0, lt=1)]
    images: Count


class Relabelled(TypedDict):
    file: Text
    label: Text | None
    reason: Text


class Corrected(TypedDict):
    labels: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    images: list[Relabelled]
    metrics: dict[Text, Entry]


class Speed(TypedDict):
    device: Text
    threads: NotRequired[int | None]
    batch_size: NotRequired[int | None]
    precision: NotRequired[Text | None]
    runtime: NotRequired[Text]
    fps: NotRequired[float | None]
    latency_ms: NotRequired[float | None]
    backbone_fps: NotRequired[float | None]
    backbone_latency_ms: NotRequired[float | None]


class Cost(TypedDict, total=False):
    fit_s: float
    score_s: float
    peak_ram_mb: float | None
    peak_gpu_mb: float | None
    device: Text
    threads: int
    extraction: dict[str, Any]


class About(TypedDict):
    revision: int
    title: NotRequired[Text]
    supervision: NotRequired[Text]


class Method(TypedDict):
    name: Text
    about: About


class Footnote(TypedDict):
    setting: Text
    value: Any
    note: Text


class Footnotes(TypedDict):
    footnotes: NotRequired[list[Footnote]]
    supervision: NotRequired[Text]


class Named(TypedDict):
    name: Text
    about: NotRequired[Footnotes]


class Network(TypedDict):
    revision: int
    weights: NotRequired[Text]
    networks: NotRequired[dict[Text, Network]]


class Config(TypedDict):
    method: Named
    backbone: NotRequired[dict[str, Any] | None]
    batch_size: NotRequired[int]


class WholeConfig(TypedDict):
    method: Method
    backbone: Network | None
    batch_size: int


class WholeCost(TypedDict):
    device: Text
    threads: int
    peak_gpu_mb: float | None


class LearningCurve(TypedDict):
    steps: list[float]
    loss: list[float]


class Published(TypedDict, total=False):
    epochs: Annotated[float, Meta(gt=0)]
    steps: Annotated[float, Meta(gt=0)]
    samples: Annotated[float, Meta(gt=0)]


class Training(TypedDict):
    epochs: float
    steps: float | None
    samples: float
    share: float | None
    published: Published
    curve: LearningCurve | None
    last_tenth: float | None
    spread: NotRequired[float]


class Hashes(TypedDict):
    fit: Hash
    test: Hash


class Regime(TypedDict):
    name: Text
    shots: NotRequired[Annotated[int, Meta(ge=1)]]
    categories: NotRequired[list[Text]]


NARROWER: dict[str, Any] = {  # than the annotations of `Record`
    **dict.fromkeys(("dataset", "task", "test", "method", "backbone", "protocol", "precision"), Text),
    "fingerprint": Hash,
    "group": Text | None,
    "titles": dict[str, Text | None],
    "seed": Annotated[int, Meta(ge=0, le=2**63 - 1)],
    "categories": list[Category],
    "input": Input,
    "counts": Counts,
    "metrics": dict[Text, Entry],
    "curves": dict[Text, Curve],
    "images": list[Image],
    "speed": list[Speed],
    "cost": Cost,
    "config": Config,
    "regime": Regime | None,
    "training": dict[str, Any] | None,
    "thresholds": Thresholds | None,
    "held_out": list[HeldOut] | None,
    "hashes": Hashes | None,
    "corrected": Corrected | None,
    "findings": dict[Text, list[Text]] | None,
}


@functools.cache
def content_type(record: type) -> type[msgspec.Struct]:
    """The type of a record's file without its checksum: `NARROWER`, and for other parts the annotations of `Record`."""
    hints = get_type_hints(record)
    names = [entry.name for entry in fields(record)]
    return msgspec.defstruct("Content", [(name, NARROWER.get(name, hints[name]), None) for name in names])


def check_content(content: dict[str, Any], record: type) -> None:
    """Raise ValueError if a part of a record does not have the type that its readers rely on."""
    convert(content, content_type(record))
    for name, curve in content.get("curves", {}).items():
        if len(curve["x"]) != len(curve["y"]):
            raise ValueError(f"curves.{name}: {len(curve['x'])} values of x, {len(curve['y'])} of y")
    if content.get("training"):
        check_training(content["training"])


def check_training(training: dict[str, Any]) -> None:
    """Raise ValueError if the facts of a training are malformed; methods that do not train have none."""
    convert(training, Training)
    unit = "steps" if "steps" in training["published"] else "epochs"
    if training["share"] is not None and (unit not in training["published"] or training[unit] is None):
        raise ValueError(f"training: a share of the published schedule, without {unit}")
    curve = training["curve"]
    if curve and len(curve["steps"]) != len(curve["loss"]):
        raise ValueError(f"training.curve: {len(curve['steps'])} steps, {len(curve['loss'])} losses")


def check_whole(config: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
    """Raise ValueError if a record lacks what is needed to compute it again."""
    convert(config, WholeConfig)
    convert(cost, WholeCost)


def convert(content: Any, kind: Any) -> None:
    """Raise ValueError if a value does not have this type: which part, what was expected, what was found."""
    try:
        msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).replace("`", "")) from error
