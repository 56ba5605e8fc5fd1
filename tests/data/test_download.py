"""`data download` against a server in this process: whole, broken, stalled, hostile, and on a full disk."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import namedtuple
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import make_category
from omegaconf import OmegaConf

from anomaly_bench.cli.commands import data_download
from anomaly_bench.config.compose import compose
from anomaly_bench.data import archive as archives
from anomaly_bench.data import download
from anomaly_bench.data.dataset import open_dataset
from anomaly_bench.errors import UsageError

OTHERS = ("cifar10", "mvtec3d")
LICENCE = "Small is licensed for tests"
Usage = namedtuple("Usage", "total used free")


@dataclass
class Request:
    path: str
    range: str | None
    if_range: str | None
    sent: int = 0


@dataclass
class State:
    """The server's content and the requests received; the first word of a path is its behaviour."""

    content: bytes = b""
    etag: str | None = '"one"'
    requests: list[Request] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """whole; plain: without Range; cut, stall, interrupt: after half of the requested bytes; page; gone; endless: sends
    no length; shifted: the wrong range."""

    state: State

    def do_GET(self):
        behaviour = self.path.strip("/")
        request = Request(behaviour, self.headers.get("Range"), self.headers.get("If-Range"))
        self.state.requests.append(request)
        if behaviour == "gone":
            return self.send_error(404)
        if behaviour in ("liar", "flood", "slow", "head", "garbage"):
            return self.hostile(behaviour)
        content, first = self.state.content, 0
        if behaviour == "page":
            content = b"<html>no such share</html>"
        elif request.range and behaviour != "plain" and request.if_range in (None, self.state.etag):
            first = int(re.fullmatch(r"bytes=(\d+)-", request.range)[1])
        if first >= len(content):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        if first:
            shift = 5 * (behaviour == "shifted")
            self.send_header("Content-Range", f"bytes {first + shift}-{len(content) - 1}/{len(content)}")
        if self.state.etag and behaviour != "plain":
            self.send_header("ETag", self.state.etag)
        self.send_header("Content-Type", "text/html" if behaviour == "page" else "application/x-xz")
        if behaviour != "endless":
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        half = behaviour in ("cut", "stall", "interrupt")
        body = content[first : first + (len(content) - first) // 2] if half else content[first:]
        self.wfile.write(body)
        request.sent = len(body)
        if behaviour == "interrupt":
            time.sleep(0.2)  # wait until it has arrived
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if behaviour in ("stall", "interrupt"):
            self.state.over.wait(10)

    def hostile(self, behaviour):
        """liar: announces 1 GB; flood: sends without end; slow: a byte now and then; head: that, before its answer is
        complete; garbage: half of what it announces, and not the file's."""
        length = {"liar": 10**9, "garbage": len(self.state.content)}.get(behaviour)
        with contextlib.suppress(OSError):
            if behaviour == "head":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            else:
                self.send_response(200)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
            if behaviour == "garbage":
                return self.wfile.write(bytes(length // 2))
            while not self.state.over.wait(0 if behaviour == "flood" else 0.05):
                self.wfile.write(bytes(10**5) if behaviour == "flood" else b"x")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    handler = type("Bound", (Handler,), {"state": State()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True).start()
    yield server
    handler.state.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The bytes of a tar.xz of two categories and a licence in MVTec's layout, with read-only folders."""
    folder = tmp_path_factory.mktemp("archive")
    for name in ("cog", "mat"):
        make_category(folder / name, train=4, good=2, defects=2)
    (folder / "license.txt").write_text("free")

    def read_only(member):
        member.mode = 0o555 if member.isdir() else 0o444
        return member

    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:xz", preset=0) as tar:
        for name in ("cog", "license.txt", "mat"):
            tar.add(folder / name, name, filter=read_only)
    return made.getvalue()


class Site:
    """The server, and a dataset's YAML node that describes it."""

    def __init__(self, server, root):
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.state = server.RequestHandlerClass.state
        self.state.content, self.state.etag = b"", '"one"'
        self.root, self.part = root, root / ".download" / "archive.part"
        self.limits = {"packed": 10**7, "unpacked": 10**7, "members": 100}
        self.sha256 = self.md5 = ""

    def holds(self, content):
        self.state.content, self.sha256 = content, hashlib.sha256(content).hexdigest()

    @property
    def requests(self):
        return self.state.requests

    def node(self, *behaviours):
        addresses = [f"{self.url}/{behaviour}" for behaviour in behaviours]
        checksum = {"md5": self.md5} if self.md5 else {"sha256": self.sha256}
        return {
            "name": "small",
            "title": "Small",
            "about": {"archive": {"licence": LICENCE, "addresses": addresses, **checksum, **self.limits}},
            "_target_": "anomaly_bench.data.mvtec.mvtec",
            "categories": {"objects": ["cog"], "textures": ["mat"]},
        }

    def get(self, *behaviours, category="all"):
        """Run the download with these addresses, after clearing the list of requests."""
        self.requests.clear()
        values = {"dataset": self.node(*behaviours), "data_root": str(self.root), "category": category}
        return data_download.download_dataset(OmegaConf.create(values))

    def files(self):
        """All files in the data root, except the download's working folder."""
        found = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return sorted(file for file in found if not file.startswith(".download/"))

    def is_complete(self):
        whole = all(len(list((self.root / name).rglob("*.png"))) == 10 for name in ("cog", "mat"))
        return whole and not (self.root / ".download").exists()


@pytest.fixture
def site(server, archive, tmp_path):
    made = Site(server, tmp_path / "data")
    made.holds(archive)
    made.requests.clear()
    return made


def test_the_official_archive_is_described():
    archive = archives.read_archive(compose("config", ["dataset=mvtec"])["dataset"])
    assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
    assert len(archive.addresses) == 2
    assert all(address.startswith("https://") for address in archive.addresses)
    assert "CC BY-NC-SA 4.0" in archive.licence
    assert archive.members > 5354 + 1258


def test_archives_of_the_other_datasets_are_described():
    cifar, scans = (archives.read_archive(compose("config", [f"dataset={name}"])["dataset"]) for name in OTHERS)
    assert (len(cifar.sha256), cifar.folder) == (64, "cifar-10-batches-bin")
    assert (scans.sha256, len(scans.md5)) == ("", 32)
    with pytest.raises(
        UsageError, match=r"dataset.about.archive: expected sha256, or md5 where no sha256 is published"
    ):
        archives.read_archive({"about": {"archive": {**vars(cifar), "md5": scans.md5}}})
    with pytest.raises(UsageError, match=r"nothing to download: the dataset's YAML has no about.archive"):
        archives.read_archive(compose("config", ["dataset=rd_mvtec"])["dataset"])


def test_an_archive_with_an_md5_only(site, capsys):
    site.md5 = hashlib.md5(site.state.content, usedforsecurity=False).hexdigest()
    assert site.get("whole")
    assert site.is_complete()
    assert "only an MD5 of this archive is published" in capsys.readouterr().err
    shutil.rmtree(site.root)
    site.md5 = "0" * 32
    assert not site.get("whole")
    assert (
        f"md5 {hashlib.md5(site.state.content, usedforsecurity=False).hexdigest()}, expected 000"
        in capsys.readouterr().err
    )
    assert site.files() == []


def test_cifar10_is_one_folder_of_batches(site, capsys):
    """A tar.gz as the official one: binary batches in one folder, which are not categories."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name in ("data_batch_1.bin", "test_batch.bin", "readme.html"):
            rows = np.zeros((20, 3073), np.uint8)
            rows[:, 0] = np.arange(20) % 10
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = rows.nbytes
            tar.addfile(member, io.BytesIO(rows.tobytes()))
    site.holds(made.getvalue())
    node = compose("config", ["dataset=cifar10"])["dataset"]
    archive = {**node["about"]["archive"], "addresses": [f"{site.url}/whole"], "sha256": site.sha256}
    values = {"dataset": {**node, "about": {**node["about"], "archive": archive}}, "data_root": str(site.root)}
    assert data_download.download_dataset(OmegaConf.create({**values, "category": "all"}))
    task = open_dataset(values["dataset"], site.root).task("cat")
    assert (len(task.fit), len(task.tests["test"])) == (2, 20)
    assert data_download.download_dataset(OmegaConf.create({**values, "category": "all"}))
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(
        UsageError, match=r"category=cat: has no effect, as the archive of CIFAR-10 is unpacked as a whole"
    ):
        data_download.download_dataset(OmegaConf.create({**values, "category": "cat"}))


def test_download_and_unpack(site, capsys):
    assert site.get("whole")
    assert site.is_complete()
    assert (site.root / "license.txt").read_text() == "free"
    assert [(request.range, request.sent) for request in site.requests] == [(None, len(site.state.content))]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == LICENCE


def test_complete_dataset_is_not_fetched(site, capsys):
    site.get("whole")
    assert site.get("whole")
    assert site.requests == []
    assert "nothing to do" in capsys.readouterr().err


def test_only_requested_categories_are_unpacked(site):
    assert site.get("whole", category="cog")
    assert not (site.root / "mat").exists()
    assert site.get("whole", category=["cog", "mat"])
    assert site.is_complete()


def test_existing_files_are_kept(site):
    (site.root / "cog").mkdir(parents=True)
    (site.root / "cog" / "mine.txt").write_text("mine")
    (site.root / "license.txt").write_text("old")
    assert site.get("whole")
    assert [path.name for path in (site.root / "cog").iterdir()] == ["mine.txt"]
    assert (site.root / "license.txt").read_text() == "old"
    assert len(list((site.root / "mat").rglob("*.png"))) == 10


def test_broken_transfer_is_resumed(site, capsys):
    half = len(site.state.content) // 2
    assert not site.get("cut")
    assert site.part.stat().st_size == half
    err = capsys.readouterr().err
    assert re.search(r"cut: broke off after 0\.\d MB of 0\.\d MB", err)
    assert "run the same command to resume" in err
    assert site.get("whole")
    rest = site.requests[0]
    assert (rest.range, rest.sent) == (f"bytes={half}-", len(site.state.content) - half)
    assert site.is_complete()


def test_second_address_resumes_where_the_first_broke_off(site):
    assert site.get("cut", "whole")
    assert [request.path for request in site.requests] == ["cut", "whole"]
    assert sum(request.sent for request in site.requests) == len(site.state.content)
    assert site.is_complete()


def test_etag_is_sent_only_to_its_own_address(site):
    site.get("cut")
    site.get("cut", "whole")
    assert [request.if_range for request in site.requests] == ['"one"', None]


def test_changed_file_is_fetched_again(site):
    site.get("cut")
    site.state.etag = '"two"'
    assert not site.get("cut")
    assert site.requests[0].if_range == '"one"'
    assert site.requests[0].range is not None
    assert site.part.read_bytes() == site.state.content[: site.requests[0].sent]
    assert site.get("cut", "whole")


def test_a_weak_etag_is_not_sent(site):
    site.state.etag = 'W/"one"'
    site.get("cut")
    assert site.get("cut", "whole")
    assert [request.if_range for request in site.requests] == [None, None]


def test_server_without_range_support_restarts(site):
    site.get("cut")
    assert site.get("plain")
    assert site.requests[0].range is not None
    assert site.requests[0].sent == len(site.state.content)
    assert site.is_complete()


def test_server_that_sends_the_wrong_range(site, capsys):
    site.get("cut")
    before = site.part.read_bytes()
    assert not site.get("shifted")
    assert "received bytes" in capsys.readouterr().err
    assert site.part.read_bytes() == before


def test_server_that_sends_no_length(site):
    assert site.get("endless")
    assert site.is_complete()


def test_manually_placed_archive_needs_no_network(site):
    site.part.parent.mkdir(parents=True)
    site.part.write_bytes(site.state.content)
    assert site.get("gone")
    assert site.requests == []
    assert site.is_complete()


def test_part_longer_than_the_file(site):
    site.part.parent.mkdir(parents=True)
    site.part.write_bytes(site.state.content + b"more")
    assert site.get("whole")
    assert [request.range is None for request in site.requests] == [False, True]


@pytest.mark.parametrize(("first", "message"), [("gone", "404"), ("page", "sent a page")])
def test_second_address_is_tried_when_the_first_fails(site, capsys, first, message):
    assert site.get(first, "whole")
    assert message in capsys.readouterr().err
    assert site.is_complete()


def test_page_instead_of_the_archive_keeps_the_part(site):
    site.get("cut")
    assert not site.get("page")
    assert site.part.stat().st_size == len(site.state.content) // 2


def test_unreachable_server(site, capsys):
    site.url = "http://127.0.0.1:1"
    assert not site.get("whole", "gone")
    err = capsys.readouterr().err
    assert err.count(": [Errno 111] Connection refused\n") == 2
    assert "no address delivered the whole file" in err
    assert list(site.root.iterdir()) == []


@pytest.mark.parametrize("address", ["no address", "http://[", "ftp://127.0.0.1:1", "file://{folder}"])
def test_invalid_address(site, capsys, tmp_path, address):
    (tmp_path / "whole").write_bytes(site.state.content)
    site.url = address.format(folder=tmp_path)
    assert not site.get("whole")
    assert "no address delivered" in capsys.readouterr().err


def test_wrong_hash_deletes_the_download(site, capsys):
    site.sha256 = "0" * 64
    assert not site.get("whole", "cut")
    err = capsys.readouterr().err
    assert f"expected {'0' * 64}; it is deleted" in err
    assert [request.range for request in site.requests] == [None, None], "the second address starts from scratch"
    assert site.files() == []


def test_stalling_server(site, capsys, monkeypatch):
    monkeypatch.setattr(download, "READ_SECONDS", 0.2)
    assert not site.get("stall")
    err = capsys.readouterr().err
    assert "no byte for 0.2 s" in err
    assert "run the same command to resume" in err
    half = len(site.state.content) // 2
    assert site.part.stat().st_size == half
    assert site.get("stall", "whole")
    assert [request.range for request in site.requests] == [f"bytes={half}-", f"bytes={half + (half + 1) // 2}-"]
    assert site.is_complete()


def test_interrupted_by_the_user(site, tmp_path, command):
    if not hasattr(signal, "pthread_kill"):
        pytest.skip("needs pthread_kill")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    words = ["data", "download", "--config-dir", str(tmp_path / "conf"), "dataset=small", f"data_root={site.root}"]
    choose(site, tmp_path, "interrupt")
    try:
        status, _, err = command(*words)
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130, err
    assert "interrupted" in err
    assert site.part.stat().st_size == len(site.state.content) // 2
    choose(site, tmp_path, "whole")
    assert command(*words)[0] == 0
    assert site.is_complete()
    assert command("data", "check", *words[2:])[0] == 0


def choose(site, tmp_path, *behaviours):
    """Write the dataset `small` with these addresses into the user's own configuration."""
    (tmp_path / "conf" / "dataset").mkdir(parents=True, exist_ok=True)
    (tmp_path / "conf" / "dataset" / "small.yaml").write_text(yaml.safe_dump(site.node(*behaviours)))


def test_exit_statuses(site, tmp_path, command, monkeypatch):
    choose(site, tmp_path, "gone")
    words = ["data", "download", "--config-dir", str(tmp_path / "conf"), "dataset=small"]
    status, out, err = command(*words, f"data_root={site.root}")
    assert (status, out) == (1, "")
    assert err.startswith(LICENCE)
    (tmp_path / "file").write_text("")
    assert command(*words, f"data_root={tmp_path / 'file'}")[::2] == (
        2,
        f"{LICENCE}\nerror: data_root={tmp_path / 'file'}: cannot create the folder (File exists)\n",
    )
    assert "needs data_root=DIR" in command(*words)[2]
    assert "did you mean cog?" in command(*words, f"data_root={site.root}", "category=cob")[2]
    choose(site, tmp_path, "whole")
    monkeypatch.setenv("ANOMALY_BENCH_DATA", str(tmp_path / "shared" / "all"))
    assert command(*words)[0] == 0
    assert (tmp_path / "shared" / "all" / "small" / "cog").is_dir()
    status, _, err = command("data", "download", "dataset=folder", f"data_root={site.root}")
    assert status == 2
    assert err.startswith("error: nothing to download")


def test_misspelt_archive_key(site):
    site.limits["memberz"] = 3
    with pytest.raises(UsageError, match="memberz"):
        site.get("whole")


def test_concurrent_downloads_are_refused(site, capsys):
    site.part.parent.mkdir(parents=True)
    site.part.write_bytes(site.state.content[:10])
    with download.workplace(site.root):
        assert not site.get("whole")
    assert "another download is running there" in capsys.readouterr().err
    assert site.get("whole")


def member(name, kind=tarfile.REGTYPE, content=b"x", link=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, len(content)
    return made, content


HOSTILE = {
    "absolute": member("/cog/train/good/evil.png"),
    "parent": member("cog/../../evil.png"),
    "parent at the top": member("../evil.png"),
    "backslash": member("cog\\..\\..\\evil.png"),
    "drive": member("C:/evil.png"),
    "reserved": member("cog/NUL.png"),
    "symlink": member("cog/link", tarfile.SYMTYPE, b"", "/etc/passwd"),
    "symlink inside": member("cog/link", tarfile.SYMTYPE, b"", "train"),
    "hardlink": member("cog/link", tarfile.LNKTYPE, b"", "../evil.png"),
    "device": member("cog/device", tarfile.CHRTYPE, b""),
    "pipe": member("cog/pipe", tarfile.FIFOTYPE, b""),
}


def packed(*members):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:xz", preset=0) as tar:
        for about, content in members:
            tar.addfile(about, io.BytesIO(content))
    return made.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_leaves_no_files(site, capsys, tmp_path, name):
    site.holds(packed(member("cog/train/good/0.png"), member("mat/0.png"), HOSTILE[name]))
    assert not site.get("whole")
    assert f"{HOSTILE[name][0].name!r} is refused" in capsys.readouterr().err
    assert site.files() == []
    assert not list(tmp_path.rglob("evil*"))
    assert not (site.root / ".download" / "unpacked").exists()


def test_harmless_names(site):
    site.holds(packed(member("./cog/.hidden/0.png"), member("mat/a_b-c.0.png"), member("other/x"), member("./notes")))
    assert site.get("whole")
    assert site.files() == ["cog/.hidden/0.png", "mat/a_b-c.0.png", "notes"]


@pytest.mark.parametrize("limit", ["unpacked", "members"])
def test_archive_bomb(site, capsys, limit):
    big = [member("cog/zeros", content=bytes(3 * 10**6))] if limit == "unpacked" else []
    many = [member(f"cog/{number}") for number in range(200)] if limit == "members" else []
    site.holds(packed(*big, *many, member("mat/0.png")))
    assert len(site.state.content) < 50_000
    site.limits["unpacked"] = 10**6
    assert not site.get("whole")
    assert "the archive holds more than 100 members or 1.0 MB" in capsys.readouterr().err
    assert site.files() == []


def test_archive_without_a_category(site, capsys):
    site.holds(packed(member("cog/0.png")))
    assert not site.get("whole")
    assert "the archive has no folder mat" in capsys.readouterr().err
    assert site.files() == []


@pytest.mark.parametrize("content", [b"no archive", b"\xfd7zXZ\x00" + bytes(100), b""])
def test_file_that_is_not_an_archive(site, capsys, content):
    site.holds(content or site.state.content[:9999])
    assert not site.get("whole")
    assert "cannot be unpacked" in capsys.readouterr().err
    assert site.files() == []


def test_lack_of_space_is_reported_before_the_transfer(site, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 4 * 10**6))
    assert not site.get("whole")
    assert re.search(r"needs up to 10\.\d MB free, found 4\.0 MB", capsys.readouterr().err)
    assert site.files() == []
    monkeypatch.undo()
    assert site.get("whole")


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()]
)
def test_unpacking_interrupted_midway(site, capsys, monkeypatch, failure):
    inner, calls = tarfile.TarFile.extract, []

    def extract(self, *arguments, **keys):
        calls.append(arguments)
        if len(calls) == 20:
            raise failure
        return inner(self, *arguments, **keys)

    monkeypatch.setattr(tarfile.TarFile, "extract", extract)
    if isinstance(failure, OSError):
        assert not site.get("whole")
        assert re.search(r"the disk is full: found \d+\.\d MB free, unpacking needs", capsys.readouterr().err)
    else:
        with pytest.raises(type(failure)):
            site.get("whole")
    assert len(calls) == 20
    assert site.files() == []
    assert [path.name for path in (site.root / ".download").glob("unpacked*")] == []
    monkeypatch.undo()
    assert site.get("whole")
    assert site.requests == [], "the archive had been received"
    assert site.is_complete()


def test_killed_while_unpacking(site):
    left = site.root / ".download" / "unpacked" / "cog"
    left.mkdir(parents=True)
    (left / "half.png").write_text("half")
    assert site.get("whole")
    assert site.is_complete()
    assert "cog/half.png" not in site.files()


def test_renaming_interrupted_after_the_first(site, monkeypatch):
    inner, calls = Path.rename, []

    def rename(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        site.get("whole")
    monkeypatch.undo()
    assert len(list((site.root / "cog").rglob("*.png"))) == 10
    assert not (site.root / "mat").exists()
    assert site.get("whole")
    assert site.is_complete()


@pytest.fixture
def small_disk(site):
    """The data root as a separate disk; returns a function that sets its size in bytes."""
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    site.root.mkdir()

    def mount(size, remount=""):
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{remount}size={size}", "tmpfs", str(site.root)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.skip(f"cannot mount a small disk: {made.stderr.strip()}")

    yield mount
    subprocess.run(["umount", str(site.root)], capture_output=True)


@pytest.mark.parametrize("times", [0.5, 1.5])
def test_full_disk(site, small_disk, capsys, monkeypatch, times):
    """Half the archive fits, or the archive but not its contents; the space was free when checked."""
    size = int(times * len(site.state.content))
    small_disk(size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 10**9))
    assert not site.get("whole")
    monkeypatch.undo()
    assert "the disk is full" in capsys.readouterr().err
    assert site.files() == []
    kept = site.part.stat().st_size
    assert 0.3 * size < kept <= size
    site.limits["unpacked"] = 10**6
    small_disk(10**7, "remount,")
    assert site.get("whole")
    assert sum(request.sent for request in site.requests) == len(site.state.content) - kept
    assert site.is_complete()


def test_unwritable_folder(site, capsys):
    site.root.mkdir()
    (site.root / ".download").write_text("a file")
    assert not site.get("whole")
    assert "cannot be written" in capsys.readouterr().err


def test_source_file_is_plain_json(site):
    site.get("cut")
    assert json.loads((site.part.parent / "source.json").read_bytes()) == {f"{site.url}/cut": '"one"'}


SERVERS = {
    "liar": "announces 1000.0 MB, expected at most 10.0 MB",
    "flood": "sent more than 10.0 MB; it is deleted",
    "slow": "slower than 0 kB/s",
    "head": "no byte for",
    "garbage": "broke off after",
}


@pytest.mark.parametrize("behaviour", SERVERS)
def test_a_hostile_server_costs_little_and_the_next_address_is_tried(behaviour, site, capsys, monkeypatch):
    monkeypatch.setattr(download, "SLOWEST", 100)
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.5)
    start = time.monotonic()
    assert site.get(behaviour, "whole")
    assert time.monotonic() - start < 20
    assert SERVERS[behaviour] in capsys.readouterr().err
    assert site.is_complete()


def test_https_does_not_lead_to_http():
    """What urllib asks before it follows."""
    request = download.Request("https://example.org/a")
    for address in ("http://example.org/b", "ftp://example.org/b", "file:///etc/passwd"):
        with pytest.raises(download.HTTPError, match="leads from https to an address without it"):
            download.SecureRedirects().redirect_request(request, None, 302, "Found", {}, address)
