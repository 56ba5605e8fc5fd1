"""What `mkdocs build` adds to docs/: the pages of the repository's root, and pages made of YAML and docstrings.

Nothing is copied by hand: a method's page is its module's docstring and its YAML; lists are the files of conf/.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {"README": "index", "ARCHITECTURE": "", "CHANGELOG": "", "CONTRIBUTING": "", "SECURITY": ""}
LIST = re.compile(r"^<!-- list: (\w+) -->$", re.MULTILINE)
METHOD_PAGE = """# {title}

`method={name}`{tuned}

::: {module}
    options: {{show_root_heading: false, members: [{member}]}}

## Settings

`conf/method/{name}.yaml`; every key can be given on the command line, as in `method.KEY=VALUE`.

```yaml
{text}```
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the methods' pages under the page that lists them, and the decisions under theirs."""
    methods = [f"methods/{path.stem}.md" for path in method_files()]
    decisions = [f"adr/{path.name}" for path in sorted((ROOT / "docs" / "adr").glob("0*.md"))]
    assert config.nav is not None
    config.nav += [{"Methods": ["methods.md", *methods]}, {"Decisions": ["adr/README.md", *decisions]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages and one page for each method."""
    for name, target in ROOT_PAGES.items():
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        files.append(File.generated(config, f"{target or name}.md", content=text.replace("](docs/", "](")))
    for path in method_files():
        files.append(File.generated(config, f"methods/{path.stem}.md", content=method_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lists of what conf/ offers; links to the root's pages, which lie one folder higher in the repository."""
    for name, target in ROOT_PAGES.items():
        markdown = re.sub(rf"\]\(\.\./((?:\.\./)*){name}\.md", rf"](\g<1>{target or name}.md", markdown)
    return LIST.sub(lambda found: listing(found[1]), markdown)


def listing(group: str) -> str:
    """A table of the YAML files of one folder of conf/: name, title, and the comment on top."""
    rows = ["| name | title | |", "|---|---|---|"]
    for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
        node, about = read(path)
        title = node.get("title") or node.get("about", {}).get("title") or ""
        name = f"[`{path.stem}`](methods/{path.stem}.md)" if group == "method" else f"`{path.stem}`"
        rows.append(f"| {name} | {title} | {about.replace('|', '/')} |")
    return "\n".join(rows)


def method_files() -> list[Path]:
    return sorted((ROOT / "conf" / "method").glob("*.yaml"))


def read(path: Path) -> tuple[dict[str, Any], str]:
    """A YAML's content, and the first comment in it."""
    text = path.read_text(encoding="utf-8")
    comments = (line for line in text.splitlines() if line.startswith("# ") and not line.startswith("# @"))
    node: dict[str, Any] = yaml.safe_load(text)
    return node, next(comments, "").removeprefix("# ")


def method_page(path: Path) -> str:
    """The page of one method, made of its YAML and, by mkdocstrings, of its module's docstring."""
    node, _ = read(path)
    module, _, member = node["_target_"].rpartition(".")
    source = ROOT / (module.replace(".", "/") + ".py")
    assert ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))), f"{source}: no docstring"
    prefix = f"{path.stem}_"
    backbones = [each.stem.removeprefix(prefix) for each in sorted((ROOT / "conf" / "tuned").glob(f"{prefix}*.yaml"))]
    tuned = f", with settings of its paper for backbone={', '.join(backbones)} (`conf/tuned/`)" if backbones else ""
    return METHOD_PAGE.format(
        title=node["about"]["title"],
        name=path.stem,
        tuned=tuned,
        module=module,
        member=member,
        text=path.read_text(encoding="utf-8"),
    )
