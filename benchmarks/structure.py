"""The package structure in numbers: `make structure`. Reads the source, and traces the rendering of one table."""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "anomaly_bench"
LONG_MODULE, LONG_FUNCTION, LONG_PAIR = 350, 45, 12  # lines
CHECKS = ("NotFittedError", "fitted")  # found in a method's own copy of such a check


def modules() -> dict[str, ast.Module]:
    """'tables.build' -> its syntax tree; a package goes by its own name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if "templates" in path.parts:  # copied by `anomaly-bench new`
            continue
        name = ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def entries() -> list[str]:
    """Modules and folders at the top of the package."""
    top = (ROOT / PACKAGE).iterdir()
    return sorted(path.stem for path in top if path.suffix == ".py" or (path.is_dir() and path.name != "__pycache__"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that a module imports at run time, including within functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            base = str(node.module).removeprefix(PACKAGE).lstrip(".")
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (each.name[len(PACKAGE) + 1 :] for each in node.names if each.name.startswith(f"{PACKAGE}."))
        yield from imported(node)


def longest_path(trees: dict[str, ast.Module]) -> list[str]:
    """The longest chain of imports between top-level entries."""
    graph: dict[str, set[str]] = defaultdict(set)
    for name, tree in trees.items():
        top = name.partition(".")[0]
        graph[top] |= {each.partition(".")[0] for each in imported(tree)} - {top, ""}
    known: dict[str, list[str]] = {}

    def path(name: str, seen: tuple[str, ...] = ()) -> list[str]:
        if name in seen:
            sys.exit(f"circular imports: {' > '.join([*seen, name])}")
        if name not in known:
            paths = [path(each, (*seen, name)) for each in sorted(graph[name]) if each in graph]
            known[name] = [name, *max(paths, key=len, default=[])]
        return known[name]

    return max((path(name) for name in list(graph) if name), key=len)


def public_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            yield from (each.id for each in getattr(target, "elts", [target]) if isinstance(each, ast.Name))


def repeated_names(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Public names that two or more modules define, and where; every command has a `run`."""
    where: dict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        for name in public_names(tree):
            if not name.startswith("_") and name != "logger":
                where[name].add(module)
    return {name: sorted(each) for name, each in sorted(where.items()) if len(each) > 1}


def method_checks(trees: dict[str, ast.Module]) -> int:
    """How often methods' modules raise that a method is not fitted, or was fitted for another grid."""
    raises = (
        ast.unparse(node)
        for name, tree in trees.items()
        if name.startswith("methods.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
    )
    return sum(any(word in text for word in CHECKS) for text in raises)


def long_parts(trees: dict[str, ast.Module]) -> list[str]:
    found = [
        f"{name}.{node.name}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONG_FUNCTION
    ]
    files = (ROOT / PACKAGE).rglob("*.py")
    return found + [path.name for path in files if len(path.read_text("utf-8").splitlines()) > LONG_MODULE]


def normalised(path: Path) -> list[tuple[int, str]]:
    """The lines of a module without names, numbers and text; docstrings, imports and blank lines are skipped."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        ):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    shape = [(number, shape_of(line)) for number, line in enumerate(text.splitlines(), 1) if number not in skipped]
    return [(number, line) for number, line in shape if line]


def shape_of(line: str) -> str:
    code = re.sub(r"\s+#.*", "", line).strip()
    return re.sub(r"\b(?!(?:def|class|return|if|else|for|in|with|raise|yield|not|and|or|lambda)\b)\w+", "x", code)


def similar_places() -> list[str]:
    """Pairs of places that share `LONG_PAIR` or more consecutive lines of the same shape, ignoring punctuation."""
    files = {path: normalised(path) for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    runs: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for path, lines in files.items():
        for at in range(len(lines) - LONG_PAIR + 1):
            window = tuple(line for _, line in lines[at : at + LONG_PAIR])
            if sum("x" in line and len(line) > 6 for line in window) >= LONG_PAIR - 2:
                runs[window].append((path, lines[at][0]))
    pairs = set()
    for places in runs.values():
        for one, other in ((a, b) for number, a in enumerate(places) for b in places[number + 1 :]):
            if one[0] != other[0] or abs(one[1] - other[1]) > LONG_PAIR:
                pairs.add(f"{one[0].stem} ~ {other[0].stem}")
    return sorted(pairs)


def route(results: Path) -> tuple[set[str], set[tuple[str, str]]]:
    """Packages involved in one LaTeX table, and the distinct calls between packages."""
    sys.path.insert(0, str(ROOT))
    record = next(iter(sorted((results / "records").rglob("*-s0-*.json"))))
    edges: set[tuple[str, str]] = set()

    def place(frame: FrameType | None) -> str:
        module = "" if frame is None else str(frame.f_globals.get("__name__", ""))
        return (
            f"{module.removeprefix(PACKAGE + '.')}:{frame.f_code.co_name}"
            if module.startswith(PACKAGE) and frame
            else ""
        )

    def watch(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            called, caller = place(frame), place(frame.f_back)
            if called and caller and package(called) != package(caller) and "<module>" not in called:
                edges.add((caller, called))

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, *record.relative_to(results).parts)
        copy.parent.mkdir(parents=True)
        shutil.copy(record, copy)
        render = table_call(["table=per_class", "format=latex", "cells=image_auroc", f"results={folder}"])
        os.environ["ANOMALY_BENCH_CACHE"] = folder
        with redirect_stdout(io.StringIO()):
            sys.setprofile(watch)
            try:
                render()
            finally:
                sys.setprofile(None)
    inner = {edge for edge in edges if not any(end.startswith(("cli", "config", "errors")) for end in edge)}
    return {package(end) for edge in inner for end in edge}, inner


def package(place: str) -> str:
    """'tables' from 'tables.build:build_tables'."""
    return place.partition(":")[0].partition(".")[0]


def table_call(words: list[str]) -> Callable[[], int]:
    from anomaly_bench.cli import main

    return lambda: main.command(["tables", *words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="name what is counted")
    listed = parser.parse_args().list
    trees = modules()
    path, (packages, calls) = longest_path(trees), route(ROOT / "results")
    repeated, long, pairs = repeated_names(trees), long_parts(trees), similar_places()
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in (ROOT / PACKAGE).rglob("*.py"))
    rows: list[tuple[str, int, int, Any]] = [
        ("top-level entries", len(entries()), 24, entries()),
        ("longest chain of imports between them", len(path), 10, [" > ".join(path)]),
        ("packages involved in a table cell, from records to LaTeX", len(packages), 6, sorted(packages)),
        ("calls between packages on that path", len(calls), 20, [f"{a} -> {b}" for a, b in sorted(calls)]),
        (
            "public names defined in two or more modules",
            len(repeated),
            10,
            [f"{a}: {b}" for a, b in repeated.items()],
        ),
        ("copies of the fitted, grid and shape checks in methods", method_checks(trees), 0, []),
        (f"pairs of places that share {LONG_PAIR} or more lines except for names", len(pairs), 0, pairs),
        (f"modules over {LONG_MODULE} lines, functions over {LONG_FUNCTION}", len(long), 0, long),
        ("lines in the package", lines, 16_823, []),
    ]
    for what, count, mark, names in rows:
        print(f"{count:7,}  (at most {mark:,})  {what}")
        if listed or count > mark:
            print("".join(f"           {name}\n" for name in names), end="")


if __name__ == "__main__":
    main()
