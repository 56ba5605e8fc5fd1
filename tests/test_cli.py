"""The command line's words, errors and exit statuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

import anomaly_bench
from anomaly_bench.cli import as_override, compose


def test_help_names_commands_groups_keys_and_examples(command):
    status, out, _ = command("--help")
    assert status == 0
    for part in ("data check", "cache list|clear", "padim*", "lite0*", "synthetic*", "batch_size", "input.crop"):
        assert part in out
    assert out.count("\n  anomaly-bench") == 3


def test_version(command):
    assert command("--version")[1] == f"anomaly-bench {anomaly_bench.__version__}\n"


@pytest.mark.parametrize("subject", ["datasets", "methods", "backbones", "tables"])
def test_list(command, subject):
    known = {"datasets": "mvtec", "methods": "padim", "backbones": "wrn50", "tables": "per_class"}
    assert known[subject] in command("list", subject)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=padimm"], "method=padimm: no such method; did you mean padim"),
        (["backbone=lite"], "backbone=lite: no such backbone; did you mean lite"),
        (["seeed=1"], "seeed: no such key; did you mean seed"),
        (["method.dimension=3"], "method.dimension: no such key; did you mean method.dimensions"),
        (["+method.dims=3"], "unexpected keyword argument 'dims'"),
        (["category=bottel"], "category=bottel: Synthetic has no such category"),
        (["seed=-1"], "seed=-1: expected a whole number of at least 0"),
        (["seed=x"], "seed=x: expected a whole number"),
        (["batch_size=0"], "batch_size=0: expected a whole number of at least 1"),
        (["speed=perhaps"], "speed=perhaps: expected true or false"),
        (["input.resize=7"], "input.resize=7: expected pixels of at least 32"),
        (["input.resize=[256]"], "expected pixels of at least 32, as 256 or [H,W]"),
        (["input.resize=64", "input.crop=65"], "larger than input.resize"),
        (["precision=fp8"], "precision=fp8: expected one of fp32, bf16, fp16"),
        (["oracle=true"], "oracle=true"),
        (["dataset=mvtec", "data_root=/no/such/folder"], "no such folder"),
        (["backbone.weights=/no/file"], "no such file; expected pretrained, random or a weights file"),
        (["seed=[1"], "override"),
        (["tabels"], "tabels: no such command; did you mean tables?"),
        (["list"], "list: expected one of datasets, methods, backbones, tables"),
        (["list", "method"], "did you mean methods?"),
        (["cache", "clear", "all=true"], "takes no keys"),
        (["tables", "results=/no/such"], "no records there"),
        (["--no-such-flag"], "see anomaly-bench --help"),
        (["run", "extra"], "extra"),
    ],
)
def test_wrong_usage_is_one_line_and_status_two(command, words, message, tmp_path):
    results = [] if words[0] in ("list", "cache", "tables") else [f"results={tmp_path}"]
    status, out, err = command(*words, *results)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_a_device_that_is_not_there(command, tmp_path, tree):
    status, _, err = command("dataset=folder", f"data_root={tree}", "device=cuda:7", f"results={tmp_path}")
    assert status == 2
    assert "device=cuda:7: this machine has cpu" in err


def test_a_results_folder_that_cannot_be_written(command, tmp_path, tree):
    (tmp_path / "file").write_text("")
    status, _, err = command("dataset=folder", f"data_root={tree}", f"results={tmp_path / 'file'}")
    assert status == 2
    assert f"results={tmp_path / 'file'}" in err


def test_cache(command, empty_cache):
    assert "0.0 MB" in command("cache", "list")[1]
    (empty_cache / "store" / "mvtec").mkdir(parents=True)
    (empty_cache / "store" / "mvtec" / "x.npy").write_bytes(bytes(2_000_000))
    assert "store/mvtec" in command("cache", "list")[1]
    assert "freed 2.0 MB" in command("cache", "clear")[1]
    assert not empty_cache.exists()


@pytest.mark.parametrize("words", [["--help"], ["list", "methods"], ["tables", "results=/no/such"], ["--version"]])
def test_quick_commands_import_no_torch(words):
    code = (
        "import sys; from anomaly_bench.cli import command; command(sys.argv[1:]);"
        "assert not {'torch', 'timm', 'pandas'} & set(sys.modules), 'a slow import'"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert "slow import" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("value", "word"),
    [(None, "null"), (True, "true"), (3, "3"), (0.5, "0.5"), (["a", 1], "['a',1]"), ("it's", r"'it\'s'")],
)
def test_python_values_in_hydras_grammar(value, word):
    assert as_override(value) == word


@pytest.mark.parametrize("text", ["C:\\data\\x", r"\\server\it's", "end\\", r"a\\'b", "a b,c=[d]{e}", "", "ü"])
def test_text_comes_back_as_it_was(text):
    assert compose("config", [f"data_root={as_override(text)}"])["data_root"] == text


def test_a_folder_of_yaml_that_is_not_there(command):
    for words in (["list", "methods"], ["--help"], ["run"]):
        status, out, err = command(*words, "--config-dir", "nowhere")
        assert (status, out) == (2, "") or words == ["--help"]
        assert "--config-dir nowhere: no such folder" in err
