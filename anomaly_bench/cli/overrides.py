"""Arguments in the form that Hydra accepts: any characters in values, flags in any place, errors in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from anomaly_bench.config.compose import quoted
from anomaly_bench.config.settings import GROUPS
from anomaly_bench.errors import UsageError, closest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

LIST = re.compile(r"(\[|choice\()(.*)(\]|\))", re.DOTALL)
SWEEPING = ("-m", "--multirun")
TEXTS = frozenset(  # keys of one name, file, folder or other text
    (
        *("data_root", "out", "maps", "model", "images", "scores", "weights", "record", "folder", "figure", "figures"),
        *("dataset.name", "dataset.title", "dataset.csv", "dataset.masks", "caption", "label"),
        *("backbone.weights", "method.anomaly_source"),
    )
)
NAMES = TEXTS | {  # and those that take a list of them
    *("category", "results", "a", "b", "setup", "dataset.textures", "dataset.normal", "dataset.scenes"),
    *("only.dataset", "only.method", "only.backbone", "only.category"),
}


def arrange(arguments: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Overrides first, then Hydra's flags: its parser does not accept overrides on both sides of a flag.

    A value that Hydra's grammar cannot read, such as a path with an umlaut, a parenthesis or an equals sign, is quoted.

    Args:
        groups: the configuration groups, which take a name.

    Raises:
        UsageError: an unknown flag, or an argument that is not `key=value`.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def complain(message: str) -> NoReturn:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        near = closest(message.rpartition(" ")[2], flags) if "unrecognized" in message else ""
        raise UsageError(f"{message}{near}")

    parser.error = complain  # type: ignore[method-assign] # the parser is made by Hydra: it cannot be subclassed
    found = parser.parse_intermixed_args(list(arguments))
    flags, overrides = list(arguments), list(found.overrides)
    for override in overrides:
        flags.remove(override)
    words = [readable(override, groups, found.multirun) for override in overrides]
    return [*(for_each_choice(words) if found.multirun else words), *flags]


def for_each_choice(overrides: Sequence[str]) -> list[str]:
    """`method=a,b method.epochs=5`: a key of a swept group becomes a sweep of one value, `choice(5)`.

    Hydra would set it before the choice, in the default method.
    """
    parsed = {override: parse(override) for override in overrides}
    swept = {each.key_or_group for each in parsed.values() if each is not None and each.is_sweep_override()}

    def changed(override: str) -> str:
        (key, _, value), each = override.partition("="), parsed[override]
        group, dot, _ = key.lstrip("+").partition(".")
        if each is None or each.is_sweep_override() or not dot or group not in swept or key.startswith("~"):
            return override
        return f"{key}=choice({value})"

    return [changed(override) for override in overrides]


def as_sweep(arguments: Sequence[str]) -> list[str]:
    """With -m appended if it is missing, so that lists are several jobs."""
    return [*(word for word in arguments if word not in SWEEPING), "-m"]


def as_choices(arguments: Sequence[str], metrics: str = "only.metric") -> list[str]:
    """`method=padim` selects records, `metric=pro` what is shown of them; Hydra would take both for parts of a run.

    Args:
        metrics: the key that `metric` is renamed to.
    """
    keys = {name: f"only.{name}" for name in (*GROUPS, "category")} | {"metric": metrics}
    words = [word.partition("=") for word in arguments]
    return ["".join((keys.get(key, key), *rest)) for key, *rest in words]


def readable(override: str, groups: Sequence[str], sweep: bool) -> str:
    """One override, its value quoted if Hydra cannot read it otherwise, or would change a name.

    Raises:
        UsageError: it is not `key=value`, or a group's value is not a name.
    """
    given, (key, equals, value) = override, override.partition("=")
    override = f"{key}={name_as_typed(key.lstrip('+'), value, sweep)}" if equals else override
    parsed = parse(override)
    if parsed is None and equals:
        several = (sweep and "," in value) or value.startswith("[")
        each = quote_elements(value, lambda element: True) if several else None
        if each is None and sweep and "," in value:
            raise UsageError(f'{given}: cannot be read as a list of values; quote each, as in {key}=\'"a=1","b=2"\'')
        tried = [f"{key}={quote}" for quote in (each, quoted(value)) if quote is not None]
        override = next((word for word in tried if parse(word)), given)
        parsed = parse(override)
    if parsed is None or not parsed.key_or_group:
        raise UsageError(f"{given}: expected key=value, such as seed=1; see anomaly-bench --help")
    if parsed.is_sweep_override() and not sweep:
        raise UsageError(
            f"{given}: several values; expected one, or -m for a run with each, or {key}=[{value}] for a list, "
            f"or {key}='\"{value}\"' for a comma in a name"
        )
    chosen = parsed.value()
    names = chosen if isinstance(chosen, list) else [chosen]
    if key in groups and not parsed.is_sweep_override() and not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"{given}: expected {key}=NAME; see anomaly-bench --help")
    return override


def name_as_typed(key: str, value: str, sweep: bool) -> str:
    """The value of a key, quoted where it is a name or path that Hydra would take for something else.

    `1_1` is not the number 11, nor `1.10` 1.1, and a folder may be called `true` or `[x]`.
    """
    if key not in NAMES:
        return value
    if key in TEXTS and value.startswith("[") and not sweep:
        return quoted(value)
    return quote_elements(value, lambda element: is_changed(element, null=key == "category")) or value


def is_changed(element: str, null: bool) -> bool:
    """Whether Hydra reads this text as a number, a truth value or, if that matters, as null."""
    parsed = parse(f"key={element}")
    found = "" if parsed is None else parsed.value()
    return isinstance(found, (int, float)) or (null and found is None)


def quote_elements(value: str, chosen: Callable[[str], bool]) -> str | None:
    """A value, list or sweep with the chosen elements in quotes; those in quotes stay as they are.

    None: its brackets or quotes are not closed.
    """
    found = LIST.fullmatch(value)
    opening, inner, closing = found.groups() if found else ("", value, "")
    elements = split_elements(inner)
    if elements is None:
        return None
    bare = (element.strip() for element in elements)
    made = (quoted(each) if each and each[0] not in "'\"" and chosen(each) else each for each in bare)
    return f"{opening}{','.join(made)}{closing}"


def split_elements(text: str) -> list[str] | None:
    """Split at commas outside of quotes and brackets; None: some are not closed."""
    parts, depth, quote = [""], 0, ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[place - 1] != "\\" else quote
        elif char in "'\"" and not parts[-1].strip():
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return None if depth or quote else parts


def parse(override: str) -> Override | None:
    """The override as Hydra parses it; None: it cannot."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None
