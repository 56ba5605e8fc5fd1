"""The feature cache: bit-identical features, one pass for many jobs, and no errors from a damaged or full disk."""

from __future__ import annotations

import copy
import functools
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import make_category, picture, save
from filelock import FileLock
from setups import METHODS, SMALLER, each

from anomaly_bench.backbones import build, cached, feature_store
from anomaly_bench.backbones.cached import ExtractionLog, ImageSet
from anomaly_bench.backbones.feature_store import CachedPass
from anomaly_bench.backbones.recorded import RecordedBackbone
from anomaly_bench.config import compose
from anomaly_bench.config.parts import packaged_node
from anomaly_bench.config.settings import read_settings
from anomaly_bench.console import Reporter
from anomaly_bench.data import store
from anomaly_bench.data.dataset import open_dataset
from anomaly_bench.errors import TooLarge
from anomaly_bench.hardware import devices, memory, timing
from anomaly_bench.protocol import to_tensor
from anomaly_bench.runs import job
from anomaly_bench.runs.evaluator import Evaluator

if TYPE_CHECKING:
    from anomaly_bench.backbones.cached import CachedBackbone
    from anomaly_bench.records.record import Record

SMALL = ("dataset=folder", "input.resize=64", "speed=false", "gallery=0", "threads=1", "batch_size=4", "method.batch=4")
PADIM = (*SMALL, "cache=on", "method.dimensions=5", "method.levels=[2,3]")
FIT, TEST = 6, 5  # images


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_category(tmp_path_factory.mktemp("tree") / "data" / "cog", FIT, 2, TEST - 2, 64).parent


@pytest.fixture(autouse=True)
def cache(empty_cache: Path) -> Path:
    return empty_cache


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """A cache filled by a job, and the job's record; do not modify."""
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("filled")
        patched.setenv("ANOMALY_BENCH_CACHE", str(folder))
        return folder, evaluate(data, *PADIM)


@pytest.fixture
def filled(first: tuple[Path, Record], cache: Path) -> Record:
    """The record of the job that filled the cache."""
    shutil.copytree(first[0], cache)
    return first[1]


@functools.cache
def composed(*words: str) -> Any:
    return compose.compose("config", list(words))


def evaluator(*words: str, **paths: str) -> Evaluator:
    config = {**copy.deepcopy(composed(*words)), **paths}
    config["backbone"] = config["backbone"] if config["method"].get("uses_backbone", True) else None
    return Evaluator(config, build.find_weights(config), read_settings(config), Reporter())


def evaluate(data: Path, *words: str, category: str = "cog") -> Record:
    made = evaluator(*words, data_root=str(data), results=str(data.parent / "results"))
    dataset = open_dataset(made.config["dataset"], data)
    (record,) = made.evaluate(job.make_job(made.config, made.settings, dataset, made.weights, category))
    return record


def passed(record: Record) -> int:
    """Number of images the job ran through a network."""
    return record.cost["extraction"]["images"]


def entries(cache: Path) -> list[Path]:
    return sorted((path.parent for path in cache.glob("features/*/*/pass.json")), key=feature_store.last_use)


def levels(entry: Path) -> set[str]:
    return {path.stem for path in entry.glob("*.f32")}


WITH_BACKBONE = [name for name in METHODS if packaged_node("method", name).get("uses_backbone", True)]


@pytest.mark.parametrize("method", each(WITH_BACKBONE, ("padim", "fastflow")))
def test_cached_features_give_the_same_scores_for_every_method(method, data):
    """Without a cache, with one that it fills itself, and with one filled by another method."""
    batch = 2 if method == "differnet" else 4
    keys = packaged_node("method", method)
    words = [*SMALL[:-1], f"method={method}", *([f"method.batch={batch}"] if "batch" in keys else [])]
    words += SMALLER.get(method, ())
    words += ["backbone=lite0_lite1"] if method == "pefm" else []
    words += ["method.epochs=1"] if "epochs" in keys else []
    words += ["method.dimensions=20"] if method in ("padim", "n_pad") else []
    words += ["save_maps=true"]

    def scores(*more: str) -> tuple[list[float], bytes]:
        record = evaluate(data, *words, *more)
        staging = data.parent / "results" / ".staging"  # whence a run moves the files of a record
        content = b"".join(file.read_bytes() for file in staging.rglob("maps.npy"))
        assert bool(content) == record.localises
        shutil.rmtree(staging, ignore_errors=True)
        return [image["score"] for image in record.images], content

    expected = scores("cache=off")
    assert scores("cache=on") == expected
    shutil.rmtree(os.environ["ANOMALY_BENCH_CACHE"])
    for backbone in ("lite0", "lite1") if method == "pefm" else ("lite0",):
        other = ("method=mahalanobis_ad", "cache=on", f"backbone={backbone}")
        assert passed(evaluate(data, *SMALL[:-1], f"method.batch={batch}", *other)) == FIT + TEST
    assert scores("cache=on") == expected


@pytest.mark.parametrize("levels", ["[block3,block7]", "all"])
def test_cached_transformer_features_keep_their_memory_layout(levels, data):
    """Exact sums depend on strides, which are unusual for tokens without class tokens."""
    words = [*SMALL, "cache=on", "backbone=deit_base", "backbone.network=deit_tiny_distilled_patch16_224"]
    words += ["backbone.weights=random", f"method.levels={levels}"]
    made = evaluator(*words)
    rows = rows_of(data)
    images = to_tensor(rows.pixels[:4])
    expected = made.backbone(images)
    for _ in range(2):
        made.ledger.announce(rows, images, 0, 4)
        found = made.backbone(images)
        assert [level.stride() for level in found] == [level.stride() for level in expected]
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        made = evaluator(*words)
    assert made.ledger.work.images == 0


def rows_of(data: Path, count: int = FIT) -> ImageSet:
    pixels = np.stack([picture(number, 64) for number in range(count)])
    return ImageSet("cog", "mine", pixels, {"files": list(range(count))})


def test_second_method_runs_no_forward_pass(data, filled):
    second = evaluate(data, *SMALL, "cache=on", "method=spade")
    assert (passed(filled), passed(second)) == (FIT + TEST, 0)
    assert filled.cost["extraction"]["cached"]
    assert second.cost["extraction"]["cached"]
    image = evaluate(data, *SMALL, "method=ae_l2", "method.epochs=1", *SMALLER["ae_l2"])
    assert "extraction" not in image.cost


def test_a_pass_stores_common_levels_and_its_own(data, cache, filled):
    often = {"blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6"}
    assert [levels(entry) for entry in entries(cache)] == [often, often]
    whole = evaluate(data, *SMALL, "cache=on", "method=mahalanobis_ad")
    assert passed(whole) == FIT + TEST, "missing levels take another pass"
    assert [levels(entry) for entry in entries(cache)] == 2 * [often | {"bn1", "blocks.0", "bn2"}]
    assert passed(evaluate(data, *SMALL, "cache=on", "method=mahalanobis_ad")) == 0
    assert passed(evaluate(data, *PADIM)) == 0


def test_subsets_and_transformed_images_bypass_the_cache(data):
    """STFPM holds out images; CS-Flow also reads smaller ones; DifferNet rotates them."""
    words = [*SMALL, "cache=on", "method.epochs=1"]
    for method, own in (("stfpm", FIT), ("cs_flow", 2 * (FIT + TEST))):
        for _ in range(2):
            record = evaluate(data, *words, f"method={method}", *SMALLER.get(method, ()))
        assert passed(record) == own
        assert record.cost["extraction"]["cached"]
    turned = evaluate(data, *words, "method=differnet", *SMALLER["differnet"], "method.batch=2")
    assert not turned.cost["extraction"]["cached"]


@pytest.fixture
def watched() -> tuple[CachedBackbone, list[torch.Tensor]]:
    """lite0 at levels 2 and 3, and the batches it processes."""
    made = evaluator(*PADIM)
    seen: list[torch.Tensor] = []
    inner = made.backbone.inner
    made.backbone.inner = Spy(inner, seen)
    return made.backbone, seen


class Spy(RecordedBackbone):
    def __init__(self, inner: Any, seen: list[torch.Tensor]) -> None:
        self.__dict__ |= inner.__dict__
        self.seen = seen

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.seen.append(images)
        return super().__call__(images)


def test_cache_is_used_only_for_the_announced_unmodified_tensor(watched, data):
    backbone, seen = watched
    rows = rows_of(data)
    images = to_tensor(rows.pixels[:4])
    backbone(images)
    assert len(seen) == 1
    backbone.ledger.announce(rows, images, 0, 4)
    stored = backbone(images)
    assert len(seen) == 1
    assert torch.equal(backbone(images.clone())[0], stored[0])
    assert len(seen) == 2, "another tensor with the same values"
    stored[0].zero_()  # methods may do this; the next read returns what was stored
    assert backbone(images)[0].any()
    images.mul_(0.5)
    backbone(images)
    assert len(seen) == 3


def test_timed_batches_bypass_the_cache(data, monkeypatch, filled):
    measure = timing.measure

    def timed(*arguments: Any, **named: Any) -> dict[str, Any]:
        monkeypatch.setattr(CachedPass, "read", lambda *_: pytest.fail("a timed batch was read from the cache"))
        return measure(*arguments, **named, seconds=0.01)

    monkeypatch.setattr(timing, "measure", timed)
    record = evaluate(data, *PADIM, "speed=true")
    assert passed(record) == 0
    assert record.speed[0]["backbone_latency_ms"] > 0


def test_reported_time_excludes_cache_overhead(data, monkeypatch):
    """With a clock that advances by 5 s for each computed batch and by 100 s for each batch read."""
    now = [0.0]

    def moving(owner: Any, name: str, by: float) -> None:
        original = getattr(owner, name)

        def slower(*arguments: Any) -> Any:
            now[0] += by
            return original(*arguments)

        monkeypatch.setattr(owner, name, slower)

    monkeypatch.setattr(timing, "clock", lambda: now[0])
    moving(RecordedBackbone, "__call__", 5)
    moving(CachedPass, "read", 100)
    moving(feature_store.FeatureCache, "reserve", 1000)
    expected = {"s": 20.0, "cached": False, "images": FIT + TEST}  # 2 batches to fit on, and 2 to score
    for cache, images in (("off", FIT + TEST), ("on", FIT + TEST), ("on", 0)):
        cost = evaluate(data, *PADIM, f"cache={cache}").cost
        assert (cost["fit_s"], cost["score_s"]) == (10, 10)
        assert cost["extraction"] == {**expected, "cached": cache == "on", "images": images}


def test_gpu_time_is_known_only_for_forward_passes():
    work = cached.ExtractionCost(images=3, computed=1.0, read=2.0)
    assert work.facts(torch.device("cpu"))["s"] == 3
    assert work.facts(torch.device("cuda"))["s"] is None
    assert replace(work, computed=0.0).facts(torch.device("cuda"))["s"] == 2


def with_attribute(owner: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch, Path], None]:
    return lambda monkeypatch, data: monkeypatch.setattr(owner, name, value)


def other_weights(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    found = build.find_weights

    def resolve(config: Any) -> Any:
        return {name: replace(weights, sha256="0" * 64) for name, weights in found(config).items()}

    monkeypatch.setattr(build, "find_weights", resolve)


def other_image(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    for folder in ("train", "test"):
        save(picture(77, 64), data / "cog" / folder / "good" / "000.png")


NOTHING: Callable[[pytest.MonkeyPatch, Path], None] = lambda monkeypatch, data: None  # noqa: E731
KEYS = {
    "images": (other_image, ()),
    "resize filter": (NOTHING, ("input.filter=nearest",)),
    "decoding": (with_attribute(store, "STORE_REVISION", 4), ()),
    "size": (NOTHING, ("input.resize=96",)),
    "crop": (NOTHING, ("input.crop=64",)),
    "weights": (other_weights, ()),
    "arguments": (NOTHING, ("backbone.modules.4=blocks.6.0",)),
    "revision of the backbone": (NOTHING, ("backbone.about.revision=9",)),
    "precision": (NOTHING, ("precision=bf16",)),
    "batch": (NOTHING, ("batch_size=3", "method.batch=3")),
    "threads": (NOTHING, ("threads=2",)),
    "processor": (with_attribute(devices, "processor", lambda: "abacus"), ()),
    "instructions": (with_attribute(torch.backends.cpu, "get_cpu_capability", lambda: "FINGERS"), ()),
    "versions": (with_attribute(cached, "versions", lambda: {"torch": "0.1"}), ()),
    "revision": (with_attribute(cached, "FEATURES_REVISION", 9), ()),
}


@pytest.mark.parametrize("part", ["nothing", *KEYS])
def test_key_covers_everything_that_may_change_a_bit(part, data, filled, tmp_path, monkeypatch):
    data = shutil.copytree(data, tmp_path / "data")
    change, words = KEYS.get(part, (NOTHING, ()))
    change(monkeypatch, data)
    assert passed(evaluate(data, *PADIM, *words)) == (0 if part == "nothing" else FIT + TEST)


def test_versions_are_those_installed():
    found = cached.versions()
    assert found["torch"] == torch.__version__
    assert found.keys() == {"torch", "torchvision", "timm", "pillow"}


def test_auto_is_a_cpu():
    for cache, there in (("auto", (True, False)), ("on", (True, True)), ("off", (False, False))):
        made = evaluator(*SMALL, f"cache={cache}")
        for device, expected in zip(("cpu", "cuda"), there, strict=True):
            made.device = torch.device(device)
            assert (made.watched("lite0", made.backbone.inner).store is not None) == expected


@pytest.mark.parametrize("damage", ["flipped", "cut off", "gone", "index", "index changed"])
def test_damaged_features_are_recomputed(damage, data, cache, filled, caplog):
    for entry in entries(cache):
        file = entry / ("pass.json" if damage.startswith("index") else "blocks.2.f32")
        content = bytearray(file.read_bytes())
        content[-9] ^= 1
        if damage == "gone":
            file.unlink()
        elif damage == "index changed":
            file.write_text(file.read_text().replace('"images": ', '"images": 1'))
        else:
            file.write_bytes({"flipped": content, "cut off": content[:-20], "index": b"{"}[damage])
    found = evaluate(data, *PADIM)
    assert found.images == filled.images
    last = FIT % 4 + TEST % 4  # images in the damaged last batches
    assert passed(found) == (last if damage in ("flipped", "cut off") else FIT + TEST)
    assert ("recomputing the features" in caplog.text) == (not damage.startswith("index"))
    assert passed(evaluate(data, *PADIM)) == (0 if damage.startswith("index") else FIT + TEST)


def test_interrupted_pass_leaves_no_files(data, cache, monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(zlib, "crc32", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(data, *PADIM)
    assert not list(cache.glob("features/*/*/*"))


def test_leftovers_of_a_killed_job_are_removed(data, cache, filled):
    for entry in entries(cache):
        (entry / "pass.json").unlink()
        (entry / ".tmp-blocks.2").write_bytes(bytes(100))
    assert passed(evaluate(data, *PADIM)) == FIT + TEST
    assert passed(evaluate(data, *PADIM)) == 0
    assert not list(cache.rglob(".tmp-*"))


def test_concurrent_jobs_share_one_pass(data):
    """One fills, the other waits and reads."""
    made = [evaluator(*PADIM) for _ in range(2)]
    rows = rows_of(data)

    def work(one: Evaluator) -> torch.Tensor:
        images = to_tensor(rows.pixels[:4])
        one.ledger.announce(rows, images, 0, 4)
        return one.backbone(images)[0]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, made)
    assert torch.equal(first, second)
    assert sorted(one.ledger.work.images for one in made) == [0, FIT]
    assert all(one.ledger.work.cached for one in made)


def size(cache: Path) -> float:
    return sum(path.stat().st_size for path in cache.glob("features/*/*/*")) / 1e9


def test_least_recently_used_entries_are_evicted(tmp_path, cache):
    data = tmp_path / "data"
    for number, name in enumerate(("cog", "mat", "nut")):
        make_category(data / name, FIT, 2, TEST - 2, 64)
        for path in (data / name / "train" / "good").iterdir():
            save(picture(1000 * number + int(path.stem), 64), path)
        for path in (data / name / "test").rglob("*.png"):
            save(picture(1000 * number + 500 + int(path.stem), 64), path)
    evaluate(data, *PADIM)
    limit = f"cache_gb={2.2 * size(cache):.6f}"  # room for two categories, not three
    evaluate(data, *PADIM, limit, category="mat")
    for age, entry in enumerate(entries(cache)):  # cog's first
        os.utime(entry / "pass.json", (1e9 + age, 1e9 + age))
    assert passed(evaluate(data, *PADIM, limit)) == 0, "which uses cog's again"
    evaluate(data, *PADIM, limit, category="nut")
    assert len(entries(cache)) == 4
    assert size(cache) <= float(limit.partition("=")[2])
    assert passed(evaluate(data, *PADIM, limit)) == 0
    assert passed(evaluate(data, *PADIM, limit, category="mat")) == FIT + TEST


def test_unfinished_entries_count_towards_the_limit(cache):
    shelf = feature_store.FeatureCache(limit=1000)
    one, two = (shelf.folder("mine", key) for key in "ab")
    one.parent.mkdir(parents=True)
    shelf.reserve(one, {".tmp-x": 600})
    with (
        FileLock(feature_store.lock_file(one)),
        pytest.raises(feature_store.NoRoomError, match="do not fit into"),
    ):
        shelf.reserve(two, {".tmp-x": 500})
    assert not two.exists()
    shelf.reserve(two, {".tmp-x": 500})
    assert not one.exists(), "the job that wrote it has died"


def test_eviction_during_a_read_only_costs_time(watched, data, cache):
    backbone, seen = watched
    rows = rows_of(data)
    for start in (0, 4):
        images = to_tensor(rows.pixels[start : start + 4])
        backbone.ledger.announce(rows, images, start, 4)
        found = backbone(images)
        assert torch.equal(found[0], super(Spy, backbone.inner).__call__(images)[0])
        for entry in entries(cache):
            assert feature_store.drop(entry)
    assert len(seen) == 1


@pytest.mark.parametrize("reason", ["limit", "disk", "memory", "folder"])
def test_no_space_disables_the_cache(reason, data, cache, caplog, monkeypatch):
    caplog.set_level("INFO", logger="anomaly_bench")
    words, says = list(PADIM), "features are not cached"
    if reason == "limit":
        words.append("cache_gb=1e-4")
        says += r": 0.00 GB do not fit into cache_gb=0.0001"
    elif reason == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40, 100))
        says += ": 0.00 GB do not fit on the disk"
    elif reason == "memory":
        require = memory.require

        def refuse(needed: int, device: Any, what: str, options: str) -> None:
            if what == "a pass for the cache":
                raise TooLarge(f"{what} needs more")
            require(needed, device, what, options)

        monkeypatch.setattr(memory, "require", refuse)
        says = "a pass for the cache needs more"
    else:
        cache.mkdir()
        (cache / "features").write_text("a file")
    record = evaluate(data, *words)
    assert passed(record) == FIT + TEST
    assert not record.cost["extraction"]["cached"]
    assert says in caplog.text
    assert record.images == evaluate(data, *words, "cache=off").images


def test_sweep_runs_one_forward_pass(command, data, tmp_path, cache):
    from anomaly_bench import records

    words = [*SMALL, f"data_root={data}", f"results={tmp_path / 'results'}", "backbone.weights=random"]
    status, _, err = command("-m", *words, "method=padim,patchcore,spade")
    assert status == 0, err
    made = records.load_all(tmp_path / "results")[0]
    assert sorted(map(passed, made)) == [0, 0, FIT + TEST]
    assert f"features/{made[0].dataset}" in command("cache", "list")[1]
    assert command("cache", "clear")[0] == 0
    assert not entries(cache)


def test_yaml_on_and_off_are_booleans():
    """`cache: off` in a user's YAML file is False."""
    for word, expected in (("cache=false", "off"), ("cache=true", "on"), ("cache=off", "off"), ("cache=auto", "auto")):
        assert read_settings(compose.compose("config", [word])).cache == expected
    assert read_settings(compose.compose("config", ["cache_gb=0.5"])).cache_gb == 0.5


def test_backbone_pairs_are_cached_per_network(data, filled):
    words = [*SMALL, "cache=on", "method=pefm", "backbone=lite0_lite1", "method.epochs=1", *SMALLER["pefm"]]
    assert passed(evaluate(data, *words)) == FIT + TEST, "lite1's only"


def test_memory_ledger_excludes_the_cache(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing, "clock", lambda: now[0])
    ledger = ExtractionLog(torch.device("cpu"))
    ledger.work = cached.ExtractionCost(spent=7, read=9)
    with ledger.stopwatch() as elapsed:
        now[0], ledger.work.spent, ledger.work.read = 10, 11, 10
    assert elapsed() == 10 - 4 + 1


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        (("method=padim",), False),
        (("-m", "method=padim"), False),
        (("-m", "method=padim", "seed=0,1"), True),
        (("-m", "method=padim", "input.crop=32,64"), False),
        (("method=padim", "cache=on"), True),
    ],
)
def test_features_are_stored_where_another_job_reads_them(command, data, tmp_path, cache, words, stored):
    common = [*SMALL, f"data_root={data}", f"results={tmp_path / 'results'}", "backbone.weights=random"]
    status, _, err = command(*common, *words)
    assert status == 0, err
    assert bool(entries(cache)) == stored


def test_a_run_reads_what_is_stored_and_stores_nothing_more(data, filled, cache):
    levels = sorted(file.name for entry in entries(cache) for file in entry.iterdir())
    assert passed(evaluate(data, *PADIM, "cache=read")) == 0
    found = evaluate(data, *PADIM, "cache=read", "method.batch=3", "batch_size=3")
    assert passed(found) == FIT + TEST
    assert sorted(file.name for entry in entries(cache) for file in entry.iterdir()) == levels
