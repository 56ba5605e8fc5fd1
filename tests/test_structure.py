"""tests/ mirrors the packages."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "anomaly_bench"
ROW = re.compile(r"^\| `([\w/]+\.py)` \| `([\w/]+\.py)` \| (.+) \|$", re.MULTILINE)


def test_every_module_has_a_test_file_or_a_reason():
    listed = ROW.findall((HERE / "README.md").read_text(encoding="utf-8"))
    modules = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if "templates" not in path.parts}
    modules = {path for path in modules if path.name != "__init__.py"}
    own = {path for path in modules if (HERE / path.parent / f"test_{path.name}").is_file()}
    elsewhere = [Path(module) for module, _, _ in listed]
    assert sorted(elsewhere) == sorted(modules - own), "list the modules without a test file in tests/README.md, once"
    assert [file for _, file, _ in listed if not (HERE / file).is_file()] == []


def test_test_files_are_named_after_modules():
    files = [path.relative_to(HERE) for path in HERE.rglob("test_*.py") if path.parent not in (HERE, HERE / "cluster")]
    strays = [file for file in files if not (PACKAGE / file.parent / file.name.removeprefix("test_")).is_file()]
    assert strays == [], "tests that concern no single module belong at the top of tests/"
    names = [file.name for file in files]
    assert len(set(names)) == len(names), "pytest needs unique names"


def test_benchmarks_import_names_that_exist():
    """Some run only in an environment of their own, where neither tests nor types are checked."""
    imports = [
        (node.module, alias.name, path.name)
        for path in (HERE.parent / "benchmarks").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("anomaly_bench")
        for alias in node.names
    ]
    assert imports
    for module, name, path in imports:
        found = importlib.import_module(str(module))
        assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{path}: {module}.{name}"
