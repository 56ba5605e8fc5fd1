"""`anomaly-bench new method|dataset|metric NAME`: a module, its YAML and its test, from a template."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Sequence
from pathlib import Path

from anomaly_bench.config.settings import check_writable, choices, conf_folder
from anomaly_bench.errors import Exit, UsageError, shorten
from anomaly_bench.files import write_atomically

TEMPLATES = Path(__file__).parents[1] / "templates"
_RUN = {
    "method": "method={name} category=weave",
    "dataset": "dataset={name} data_root=DIR",
    "metric": "metric={name} category=weave",
}


def command(kind: str, words: Sequence[str]) -> int:
    """Write the template's files under a new name, and print how to run and test them.

    Raises:
        UsageError: no name, an invalid one, a key other than `out`, or a file that exists.
    """
    names = [word for word in words if "=" not in word]
    keys = dict(word.split("=", 1) for word in words if "=" in word)
    if len(names) != 1 or keys.keys() - {"out"}:
        raise UsageError(f"new {kind} {' '.join(words)}: expected new {kind} NAME [out=DIR]")
    name = names[0]
    check_name(kind, name)
    folder = Path(keys.get("out") or name).expanduser()
    made = {folder / path: text for path, text in renamed(kind, name)}
    existing = [str(path) for path in made if path.exists()]
    if existing:
        raise UsageError(f"{shorten(existing)}: exists already; give another name or out=DIR")
    check_writable(folder, f"out={folder}")
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text)
        print(path)
    print(f"\ncd {folder}\npytest test_{name}.py\nanomaly-bench --config-dir . {_RUN[kind].format(name=name)}")
    return Exit.DONE


def check_name(kind: str, name: str) -> None:
    """Raise UsageError for a name that a module cannot have, or that is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UsageError(f"new {kind} {name}: expected a name in snake_case, such as my_{kind}")
    if name in choices(kind, [conf_folder()]):
        raise UsageError(f"new {kind} {name}: anomaly-bench has a {kind} of that name; give another")
    if importlib.util.find_spec(name) is not None:
        raise UsageError(f"new {kind} {name}: Python has a module of that name; give another")


def renamed(kind: str, name: str) -> list[tuple[Path, str]]:
    """The template's files, relative to their folder, with the new name in path and text."""
    old = f"my_{kind}"
    words = {old: name, "".join(map(str.title, old.split("_"))): "".join(map(str.title, name.split("_")))}
    words[f"My {kind}"] = name.replace("_", " ").capitalize()
    pattern = re.compile("|".join(words))
    files = [path for path in sorted((TEMPLATES / kind).rglob("*")) if path.suffix in (".py", ".yaml")]
    return [
        (
            Path(pattern.sub(lambda found: words[found[0]], path.relative_to(TEMPLATES / kind).as_posix())),
            pattern.sub(lambda found: words[found[0]], path.read_text(encoding="utf-8")),
        )
        for path in files
    ]
