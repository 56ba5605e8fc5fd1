"""Recorded passes: what a frozen CNN computes, kept in a file, so that a later process need not import timm for it.

A program is the list of a pass's operations and the tensors they read. It is recorded once, from the network itself,
and runs the same operations on the same values. Only networks that are small are kept: where a pass takes long, an
import is of no account.

    <cache>/programs/<key>-<crc32>.safetensors    the tensors and, in the header, the operations as JSON

The key is hashed over the network, its weights and levels, the size of the images, and the versions of its packages.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import itertools
import json
import logging
import platform
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anomaly_bench.backbones.architectures import normalise
from anomaly_bench.cache import PROGRAMS, cache_root
from anomaly_bench.files import digest, write_atomically

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone

logger = logging.getLogger(__name__)
PROGRAM_REVISION = 1  # increase when the stored content changes
PACKAGES = ("timm", "torchvision")
LARGE = 64_000_000  # bytes of the tensors of a program that is not kept
FORMATS = {str(each): each for each in (torch.channels_last, torch.contiguous_format, torch.preserve_format)}
CONVOLUTION = "_convolution_pointwise"  # oneDNN's, with an activation
FUSIBLE = {"hardtanh_.default": "hardtanh", "relu_.default": "relu"}  # activation -> its name in oneDNN


class Step(NamedTuple):
    """One operation.

    Attributes:
        name: of the operation and its overload in `torch.ops.aten`.
        arguments, keys: JSON; tensors as "%NUMBER", memory formats as torch prints them.
        results: numbers of the tensors it returns.
    """

    name: str
    arguments: list[Any]
    keys: dict[str, Any]
    results: list[int]


class Call(NamedTuple):
    """A step that is ready to be run; `over`: the tensors that no later step reads."""

    function: Any
    arguments: list[Any]
    keys: dict[str, Any]
    results: list[int]
    over: list[int]


class Held(NamedTuple):
    """A tensor among the arguments of a call."""

    number: int


class NotRecordable(Exception):
    """The pass has something that a program cannot hold."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call] # untyped in torch
    """Records the operations inside the context in `steps`; tensors are numbered as they appear."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # untyped in torch
        self.steps: list[Step] = []
        self.tensors = [images]  # kept, so that no other gets the id of one
        self.numbers = {id(images): 0}

    def number(self, tensor: Tensor) -> int:
        if id(tensor) not in self.numbers:
            self.numbers[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return self.numbers[id(tensor)]

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        keys = {name: self.plain(value) for name, value in (kwargs or {}).items()}
        if operation.namespace != "aten" or any(isinstance(value, Tensor) for value in (kwargs or {}).values()):
            raise NotRecordable(str(operation))
        step = Step(str(operation).removeprefix("aten."), self.plain(args), keys, [])
        step.results.extend(self.number(each) for each in several(result))
        self.steps.append(step)
        return result

    def plain(self, value: Any) -> Any:
        """An argument as JSON; see `Step`."""
        if isinstance(value, Tensor):
            return f"%{self.number(value)}"
        if isinstance(value, (list, tuple)):
            return [self.plain(each) for each in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if str(value) in FORMATS:
            return str(value)
        raise NotRecordable(f"an argument of type {type(value).__name__}")


class Program:
    """The pass of any number of images of one size through a network, on a CPU.

    Attributes:
        steps: in order; tensor 0 is the normalised images.
        constants: number -> tensor.
        outputs: numbers of the levels.
        about: of the network its `mean` and `std`, `paths` and `shapes` of the levels, the peak bytes `most` of one
            image, and whether the cells of each level tile the image (`tiles`); see `Backbone`.
    """

    def __init__(
        self, steps: Sequence[Step], constants: Mapping[int, Tensor], outputs: Sequence[int], about: Mapping[str, Any]
    ) -> None:
        self.constants = {number: channels_last(tensor) for number, tensor in constants.items()}
        self.steps = list(steps)
        self.outputs, self.about = outputs, about
        self.mean, self.std = (torch.tensor(about[name]).view(-1, 1, 1) for name in ("mean", "std"))

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) images in [0, 1] -> one float32 (B, C, h, w) per level."""
        calls, constants = self.ready
        held: dict[int, Tensor] = {0: normalise(images, self.mean, self.std), **constants}

        def given(value: Any) -> Any:
            if type(value) is Held:
                return held[value.number]
            return [given(each) for each in value] if type(value) is list else value

        for call in calls:
            result = call.function(*map(given, call.arguments), **call.keys)
            held.update(zip(call.results, several(result), strict=True))
            del result
            for number in call.over:
                del held[number]
        return [held[number] for number in self.outputs]

    @functools.cached_property
    def ready(self) -> tuple[list[Call], dict[int, Tensor]]:
        """The steps as they are run, and the constants that they read."""
        steps, constants = self.steps, dict(self.constants)
        if on_x86():
            steps = list(fused(list(unpadded(steps, constants))))
        last = {number: place for place, step in enumerate(steps) for number in (*read(step.arguments), *step.results)}
        over: list[list[int]] = [[] for _ in steps]
        for number, place in last.items():
            if number not in constants and number not in self.outputs:
                over[place].append(number)
        calls = [
            Call(function(step.name), parsed(step.arguments), parsed(step.keys), step.results, done)
            for step, done in zip(steps, over, strict=True)
        ]
        return calls, constants

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.constants.values())


def several(result: Any) -> Sequence[Tensor]:
    """What an operation returns, as a sequence."""
    return result if isinstance(result, (list, tuple)) else (result,)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def read(value: Any) -> Iterator[int]:
    """The numbers of the tensors in the JSON of arguments."""
    if isinstance(value, list):
        for each in value:
            yield from read(each)
    elif isinstance(value, str) and value.startswith("%"):
        yield int(value[1:])


def needed(steps: Sequence[Step], outputs: Sequence[int]) -> Iterator[Step]:
    """The steps that the outputs depend on, which a network's emptied last modules are not."""
    wanted, places = set(outputs), []
    for place in reversed(range(len(steps))):
        if wanted.intersection(steps[place].results):
            wanted.update(read(steps[place].arguments))
            places.append(place)
    for place in reversed(places):
        yield steps[place]


def parsed(value: Any) -> Any:
    """The arguments that the JSON means."""
    if isinstance(value, dict):
        return {key: parsed(each) for key, each in value.items()}
    if isinstance(value, list):
        return [parsed(each) for each in value]
    if isinstance(value, str) and value.startswith("%"):
        return Held(int(value[1:]))
    return FORMATS[value] if isinstance(value, str) and value in FORMATS else value


def function(name: str) -> Any:
    """The operation that a step names."""
    operation, _, overload = name.partition(".")
    library = torch.ops.mkldnn if operation == CONVOLUTION else torch.ops.aten
    return getattr(getattr(library, operation), overload)


def on_x86() -> bool:
    """Whether oneDNN is at hand, on processors where its fused convolutions have the bits of separate operations."""
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call] # untyped in torch
    return has_onednn and platform.machine().lower() in {"x86_64", "amd64"}


def fused(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps, each convolution with the activation that follows in place in one."""
    rest = deque(steps)
    while rest:
        step = rest.popleft()
        activation = FUSIBLE.get(rest[0].name) if rest and rest[0].results == step.results else None
        if step.name != "convolution.default" or step.arguments[6] or activation is None:
            yield step
            continue
        images, weight, bias, stride, padding, dilation, _, _, groups = step.arguments
        how = [padding, stride, dilation, groups, activation, rest.popleft().arguments[1:], None]
        yield Step(f"{CONVOLUTION}.default", [images, weight, bias, *how], {}, step.results)


def unpadded(steps: Sequence[Step], constants: dict[int, Tensor]) -> Iterator[Step]:
    """The steps without paddings that are copies: a depthwise convolution pads by itself if both sides are equal.

    TensorFlow's "same" padding has one row and column more after the image than before it. A kernel with a row and a
    column of zeros before it, and as much padding on both sides, computes the same sums.
    """
    rest = deque(steps)
    readers = Counter(number for step in steps for number in read(step.arguments))
    while rest:
        step = rest.popleft()
        if not (step.name == "constant_pad_nd.default" and rest and widens(step, rest[0], constants, readers)):
            yield step
            continue
        after = rest.popleft()
        images, (left, right, top, bottom), _ = step.arguments
        weight = int(after.arguments[1][1:])
        constants[weight] = channels_last(F.pad(constants[weight], (right - left, 0, bottom - top, 0)))
        _, kernel, bias, stride, _, *others = after.arguments
        yield after._replace(arguments=[images, kernel, bias, stride, [bottom, right], *others])


def widens(padding: Step, after: Step, constants: Mapping[int, Tensor], readers: Mapping[int, int]) -> bool:
    """Whether `unpadded` joins a padding with the step after it."""
    _, sides, value = padding.arguments
    convolution = after.name == "convolution.default" and after.arguments[0] == f"%{padding.results[0]}"
    if not convolution or value or len(sides) != 4 or any(after.arguments[4]) or after.arguments[6]:
        return False
    weight = int(after.arguments[1][1:])
    depthwise = weight in constants and after.arguments[8] == len(constants[weight]) and constants[weight].shape[1] == 1
    alone = readers[padding.results[0]] == readers[weight] == 1
    return depthwise and alone and all(last - first in (0, 1) for first, last in (sides[:2], sides[2:]))


def record(network: Backbone, image: tuple[int, int, int]) -> Program | None:
    """The program of a network for (channels, H, W) images; None: it cannot be recorded.

    It is recorded without computing anything, for two numbers of images: a transformer's operations depend on it.
    """
    channels, height, width = image
    if network.grid(height, width) is not None:
        return None
    named = dict(itertools.chain(network.network.named_parameters(), network.network.named_buffers()))
    state = {name: tensor.to("meta") for name, tensor in named.items()}
    forward = functools.partial(torch.func.functional_call, network.network, state)
    recorded = []
    try:
        for count in (2, 3):
            images = torch.empty(count, *image, device="meta").contiguous(memory_format=torch.channels_last)
            with Recorder(images) as recorder, torch.no_grad():
                outputs = [recorder.number(level) for level in network.read(forward, images)]
            recorded.append((list(needed(recorder.steps, outputs)), outputs))
        if recorded[0] != recorded[1]:
            raise NotRecordable("its operations depend on the number of images")
        steps, outputs = recorded[0]
        numbers = {name: recorder.numbers.get(id(tensor)) for name, tensor in state.items()}
        constants = {number: named[name] for name, number in numbers.items() if number is not None}
        known = {0, *constants, *(number for step in steps for number in step.results)}
        if not known.issuperset(number for step in steps for number in read(step.arguments)):
            raise NotRecordable("it reads a tensor that is no weight")
    except NotRecordable as error:
        logger.info("%s is not recorded: %s", network.network_name, error)
        return None
    shapes, most = network.infer_shapes((height, width), channels)
    about = {
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "paths": network.paths,
        "shapes": shapes,
        "most": most,
        "tiles": network.tiles((height, width), channels),
    }
    return Program(steps, constants, outputs, about)


def key(identity: Mapping[str, Any], image: tuple[int, int, int]) -> str:
    """24 hex digits hashed over everything that the program for (channels, H, W) images depends on."""
    versions = {"torch": torch.__version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}
    about = {"network": identity, "image": image, "versions": versions}
    return digest({"revision": PROGRAM_REVISION, **about})[:24]


def keep(program: Program, key: str) -> None:
    """Write a program's file, unless it is large; a cache that fails only costs time."""
    if program.size > LARGE:
        return
    header = {"steps": program.steps, "outputs": program.outputs, "about": program.about}
    tensors = {str(number): tensor.contiguous() for number, tensor in program.constants.items()}
    packed = safetensors.torch.save(tensors, {"program": json.dumps(header, separators=(",", ":"))})
    try:
        write_atomically(cache_root() / PROGRAMS / f"{key}-{zlib.crc32(packed):08x}.safetensors", packed)
    except OSError as error:
        logger.warning("the cache %s failed (%s): the network is not kept", cache_root(), error.strerror or error)


def find(key: str) -> Program | None:
    """The program with this key, if its file is there and intact; a damaged file is deleted."""
    for path in (cache_root() / PROGRAMS).glob(f"{key}-*.safetensors"):
        with contextlib.suppress(OSError):
            packed = path.read_bytes()
            if f"{zlib.crc32(packed):08x}" == path.stem.rpartition("-")[2]:
                return unpack(packed)
            logger.warning("%s is damaged: recording the network again", path)
            path.unlink(missing_ok=True)
    return None


def unpack(packed: bytes) -> Program:
    """The program in a file written by `keep`."""
    length = int.from_bytes(packed[:8], "little")
    header = json.loads(json.loads(packed[8 : 8 + length])["__metadata__"]["program"])
    constants = {int(name): tensor for name, tensor in safetensors.torch.load(packed).items()}
    about = {**header["about"], "shapes": [tuple(shape) for shape in header["about"]["shapes"]]}
    return Program([Step(*step) for step in header["steps"]], constants, header["outputs"], about)
