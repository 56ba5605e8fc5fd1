"""Arguments in the form that Hydra accepts: any characters in values, flags in any place, errors in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from anomaly_bench.config.compose import quoted
from anomaly_bench.config.settings import GROUPS
from anomaly_bench.errors import UsageError, closest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SWEEPING = ("-m", "--multirun")


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
    return [*(readable(override, groups, found.multirun) for override in overrides), *flags]


def as_sweep(arguments: Sequence[str]) -> list[str]:
    """With -m appended if it is missing, so that lists are several jobs."""
    return [*(word for word in arguments if word not in SWEEPING), "-m"]


def as_choices(arguments: Sequence[str], metrics: str = "only.metric") -> list[str]:
    """`method=padim` selects records, `metric=pro` what is shown of them; Hydra would take both for parts of a run.

    Args:
        metrics: the key that `metric` is renamed to.
    """
    keys = {group: f"only.{group}" for group in GROUPS} | {"metric": metrics}
    words = [word.partition("=") for word in arguments]
    return ["".join((keys.get(key, key), *rest)) for key, *rest in words]


def readable(override: str, groups: Sequence[str], sweep: bool) -> str:
    """One override, its value quoted if Hydra cannot read it otherwise.

    Raises:
        UsageError: it is not `key=value`, or a group's value is not a name.
    """
    key, equals, value = override.partition("=")
    parsed = parse(override)
    if parsed is None and sweep and "," in value:
        raise UsageError(f'{override}: cannot be read as a list of values; quote each, as in {key}=\'"a=1","b=2"\'')
    given, override = override, override if parsed or not equals else f"{key}={quoted(value)}"
    parsed = parsed or parse(override)
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


def parse(override: str) -> Override | None:
    """The override as Hydra parses it; None: it cannot."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None
