"""`export`: the graph scores like the model in every runtime, or is not written."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import make_category, picture, time_briefly
from PIL import Image

from anomaly_bench import records
from anomaly_bench.cli.main import command as call
from anomaly_bench.components import neighbours, small_images
from anomaly_bench.data.decoding import resize
from anomaly_bench.errors import UsageError
from anomaly_bench.export import check, exporter, formats
from anomaly_bench.export.graph import Graph, resized, trace
from anomaly_bench.runs import saved_model
from anomaly_bench.testing.setup import Setup, pictures

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
RUNTIMES = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}
KEYS = ("dataset=folder", "input.resize=64", "input.crop=48", "speed=false", "gallery=0", "save_model=true")
ABOUT = {"precision": "fp32", "input": {"resize": [64, 64], "crop": None, "filter": "bilinear"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The data, and the folder of a PaDiM with thresholds."""
    root = tmp_path_factory.mktemp("export")
    make_category(root / "data" / "cog", good=4, defects=4)
    words = [f"data_root={root / 'data'}", f"results={root / 'r'}", "holdout=0.5", "max_false_alarms=0.4", "threads=1"]
    assert call([*KEYS, "method.dimensions=20", *words]) == 0
    (record,) = records.load_all(root / "r")[0]
    return root / "data", root / "r" / record.path.with_suffix("")


def needs(name):
    for package in formats.importlib.import_module(f"anomaly_bench.export.{formats.FORMATS[name]}").PACKAGES:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install '.[{name}]'")


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_graph_scores_like_the_model(name, model, command, tmp_path, monkeypatch):
    needs(name)
    data, folder = model
    out = tmp_path / "new" / f"cog{SUFFIXES[name]}"
    words = ["export", f"model={folder}", f"format={name}", f"data_root={data}", "threads=1"]
    status, text, err = command(*words, f"out={out}")
    assert status == 0, err
    assert text.startswith(f"{out}: score, map, verdict as the model's, checked on 8 images, largest error of a map ")
    proof = json.loads(out.with_name(f"{out.name}.check.json").read_text())
    record = records.load(folder.parent / f"{folder.name}.json")
    assert proof["map_error"] < check.MARK
    assert proof["score_error"] < check.MARK
    assert proof["verdicts"] == {"differ": 0, "not_near_the_threshold": 0}
    assert proof["threshold"] == record.thresholds["image"]
    assert proof["image_auroc"]["graph"] == record.value("image_auroc")
    assert set(proof["files"]) == {path.name for path in out.parent.iterdir()} - {f"{out.name}.check.json"}
    found = formats.format_module(name).load(out, proof["outputs"], 1)(pixels_of(record, data))
    assert found["score"] == pytest.approx([each["score"] for each in record.images], rel=1e-4)
    assert found["verdict"].tolist() == [each["score"] > record.thresholds["image"] for each in record.images]
    assert found["map"].shape == (8, 48, 48)
    assert command(*words, f"out={out}")[0] == 2, "an existing file is not replaced"
    timed = [f"model={folder}", f"file={out}", f"data_root={data}", "threads=1", "batch_size=9"]
    time_briefly(monkeypatch)
    status, text, err = command("speed", *timed)
    assert status == 0, err
    entry = records.load(folder.parent / f"{folder.name}.json").speed[-1]
    assert (entry["runtime"].split()[0], entry["threads"], entry["batch_size"]) == (RUNTIMES[name], 1, 9)
    assert text.startswith(f"{entry['runtime']}, 1 threads: latency {entry['latency_ms']:.1f} ms (p95 ")


def pixels_of(record, data):
    """(N, 48, 48, 3) uint8, cropped from 64 x 64."""
    read = [Image.open(data / "cog" / each["file"]).convert("RGB") for each in record.images]
    return np.stack([np.asarray(each.resize((64, 64), Image.Resampling.BILINEAR))[8:56, 8:56] for each in read])


def test_resizing_in_the_graph(model, command, tmp_path):
    data, folder = model
    out = tmp_path / "cog.pt2"
    words = ["export", f"model={folder}", "format=torch", "resize=true", f"images={data / 'cog' / 'test'}"]
    status, text, err = command(*words, f"out={out}")
    assert status == 0, err
    assert "against Pillow's resizing: 8 images, largest error of a map " in text
    proof = json.loads((tmp_path / "cog.pt2.check.json").read_text())
    assert proof["map_error"] <= check.MARK
    assert proof["against_pillow"]["map_error"] < 0.05
    assert "image_auroc" not in proof, "a folder has no labels"
    run = formats.format_module("torch").load(out, proof["outputs"], 1)
    assert run(np.stack([picture(1, 90)] * 2)[:, :70])["map"].shape == (2, 48, 48)


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (40, 31), (65, 129)])
def test_resizing_differs_from_pillow_by_one_level_at_most(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = torch.from_numpy(image).permute(2, 0, 1).float()
    ours = resized(resized(ours, 64).mT, 64).mT.permute(1, 2, 0).numpy()
    theirs = resize(Image.fromarray(image), (64, 64), "bilinear").astype(np.float32)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.02


@pytest.mark.parametrize("size", [(64, 48), (20, 31)])
def test_antialiasing_is_a_matrix(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = small_images.resized(images, (28, 28))
    rows, columns = (small_images.triangles(side, 28) for side in size)
    assert torch.allclose(rows @ images @ columns.T, expected, atol=1e-6)


def test_a_graph_that_scores_differently_is_not_written(model, command, tmp_path, monkeypatch):
    data, folder = model
    module = formats.format_module("torch")
    load = module.load

    def wrong(*words):
        run = load(*words)
        return lambda images: {**run(images), "map": run(images)["map"] * 1.001}

    monkeypatch.setattr(module, "load", wrong)
    status, _, err = command(
        "export", f"model={folder}", "format=torch", f"images={data / 'cog' / 'test'}", f"out={tmp_path / 'a.pt2'}"
    )
    assert status == 1
    assert "the torch graph does not score like the model: map_error" in err
    assert list(tmp_path.iterdir()) == []


def test_marks():
    def compared(theirs, verdicts, threshold=3.0):
        comparison = check.Comparison(threshold)
        ours = np.array([1.0, 3.00001, 11.0])
        comparison.add({"score": ours}, {"score": np.array(theirs), "verdict": np.array(verdicts)})
        return comparison.facts([False, True, True])

    fine = compared([1.0, 2.99999, 11.0], [False, False, True])
    assert fine["verdicts"] == {"differ": 1, "not_near_the_threshold": 0}
    assert fine["score_error"] == pytest.approx(2e-6)
    assert list(check.failures(fine)) == []
    wrong = compared([1.0, 3.0, 11.01], [False, True, False])
    assert list(check.failures(wrong)) == ["score_error 0.001 of the range (at most 0.0001)", "1 verdicts differ"]
    swapped = compared([4.0, 3.00001, 11.0], [True, True, True])
    assert "image AUROC differs by 0.5 (at most 0.0001)" in list(check.failures(swapped))


def test_batches_hold_images_of_one_size_only():
    sizes = [(4, 4)] * 9 + [(4, 5)] * 2
    images = (np.zeros((*size, 3), np.uint8) for size in sizes)
    shapes = [batch.shape[:3] for batch in check.batches(images, check.itertools.cycle((1, 2, 5)))]
    assert shapes == [(1, 4, 4), (2, 4, 4), (5, 4, 4), (1, 4, 4), (2, 4, 5)]


def test_nearest_neighbours_in_a_graph():
    random = torch.Generator().manual_seed(0)
    bank = torch.randn(500, 40, generator=random) + 3
    queries = torch.cat([torch.randn(60, 40, generator=random) + 3, bank[:4]])
    for k in (1, 5, 500):
        expected = neighbours.nearest(queries, bank, k)
        found = neighbours.traced(queries, bank, k, neighbours.squared_lengths(bank))
        assert torch.allclose(found.distances, expected.distances, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.indices[:, 0], expected.indices[:, 0])


@pytest.mark.parametrize("method", ["patchcore", "stfpm", "cflow_ad", "dfr", "panda", "kde"])
def test_methods_whose_search_loop_or_network_needs_a_path_of_its_own(method):
    setup = Setup(method, overrides=("backbone.weights=random",))
    graph = Graph(setup.one, ABOUT, None)
    program, names = trace(graph, method)
    last = names[-1]
    assert names == (["score"] if method == "kde" else ["score", "map"])
    ours = check.eager(graph)
    for count in (1, 4):
        found, expected = check.eager(program.module())(pictures(count, 1000)), ours(pictures(count, 1000))
        span = expected[last].max() - expected[last].min() or abs(expected[last][0])
        assert np.abs(found[last] - expected[last]).max() <= check.MARK * span


def test_a_method_that_cannot_be_traced_is_refused_with_the_reason():
    graph = Graph(Setup("spade", overrides=("backbone.weights=random",)).one, ABOUT, None)
    with pytest.raises(UsageError, match=r"SPADE cannot be exported: .+ \(components/cell_search\.py, line \d+\); use"):
        trace(graph, "SPADE")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"format=onnx: needs onnx; pip install '\.\[onnx\]' in the folder"):
        formats.format_module("onnx")


def test_wrong_usage(model, command, tmp_path):
    _, folder = model
    for words, why in (
        (["format=onxx"], "format=onxx: no such format; did you mean onnx"),
        (["format=torch"], "out=FILE is missing: expected a new file that ends with .pt2"),
        (["format=torch", f"out={tmp_path / 'a.onnx'}"], "expected a name that ends with .pt2, for format=torch"),
        (["format=torch", f"out={tmp_path / 'a.pt2'}", f"images={tmp_path}"], "no image in it or its subfolders"),
    ):
        status, _, err = command("export", f"model={folder}", *words)
        assert (status, why in err) == (2, True), err
    method, about = saved_model.load_model(folder), saved_model.read_about(folder)
    for changed, why in (
        ({"precision": "bf16"}, "a graph has fp32"),
        ({"channels": 1}, "8-bit RGB"),
        ({"input": {**about["input"], "filter": "area"}}, "input.filter is area"),
    ):
        with pytest.raises(UsageError, match=why):
            Graph(method, {**about, **changed}, None, resize=True)
    assert exporter.described({"images": 2, "score_error": 0.0}) == ["2 images", "of a score 0.0e+00"]


def test_an_operator_that_onnx_runtime_lacks_is_named(tmp_path):
    needs("onnx")
    from onnx import TensorProto, helper, save

    images, score = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("images", "score"))
    nodes = [helper.make_node("NoSuchOperator", ["images"], ["score"])]
    graph = helper.make_graph(nodes, "graph", [images], [score])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=r"ONNX Runtime .+ cannot run this graph \(.*NoSuchOperator.*update it"):
        formats.format_module("onnx").load(tmp_path / "a.onnx", ["score"], 1)
