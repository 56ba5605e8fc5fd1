"""The command line: arguments, errors and exit statuses."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import anomaly_bench
from anomaly_bench.config.compose import as_override, compose
from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.console import log_file


def test_help_names_commands_groups_keys_and_examples(command):
    status, out, _ = command("--help")
    assert status == 0
    for part in ("data check", "cache list|clear", "padim*", "lite0*", "synthetic*", "batch_size", "input.crop"):
        assert part in out
    assert out.count("\n  anomaly-bench") == 3
    assert "\n  input.resize=256    256 means" in out


def test_version(command):
    assert command("--version")[1] == f"anomaly-bench {anomaly_bench.__version__}\n"


@pytest.mark.parametrize("subject", ["datasets", "methods", "backbones", "tables"])
def test_list(command, subject):
    known = {"datasets": "mvtec", "methods": "padim", "backbones": "wrn50", "tables": "per_class"}
    out = command("list", subject)[1]
    assert known[subject] in out
    if subject == "methods":
        assert "(synthetic anomalies)" in next(line for line in out.splitlines() if line.startswith("draem"))


def test_cache(command, empty_cache):
    assert "0.0 MB" in command("cache", "list")[1]
    (empty_cache / "store" / "mvtec").mkdir(parents=True)
    (empty_cache / "store" / "mvtec" / "x.npy").write_bytes(bytes(2_000_000))
    assert "store/mvtec" in command("cache", "list")[1]
    held = empty_cache / "locks" / "host" / "turn.lock"
    held.parent.mkdir(parents=True)
    held.touch()
    assert "freed 2.0 MB" in command("cache", "clear")[1]
    assert list(empty_cache.iterdir()) == [held.parents[1]], "another process may hold it"


@pytest.mark.parametrize(
    "words", [["--help"], ["list", "methods"], ["tables", "results=/no/such"], ["--version"], ["verify"]]
)
def test_quick_commands_import_no_torch(words):
    code = (
        "import sys; from anomaly_bench.cli.main import command; command(sys.argv[1:]);"
        "assert not {'torch', 'timm', 'pandas'} & set(sys.modules), 'a slow import'"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert "slow import" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("value", "word"),
    [(None, "null"), (True, "true"), (3, "3"), (0.5, "0.5"), (["a", 1], "['a',1]"), ("it's", r"'it\'s'")],
)
def test_python_values_as_hydra_overrides(value, word):
    assert as_override(value) == word


FILTERS_OF_PAPERS = {
    **dict.fromkeys(("cflow_ad", "padim", "pefm"), "lanczos"),
    **dict.fromkeys(("draem", "mahalanobis_ad"), "bilinear_no_antialias"),
    **dict.fromkeys(("dfr", "fcdd"), "nearest"),
    "spade": "area",
}


@pytest.mark.parametrize("method", choices("method", [conf_folder()]))
def test_the_papers_protocol_takes_the_methods_own_filter(method):
    expected = FILTERS_OF_PAPERS.get(method, "bilinear")
    assert compose("config", [f"method={method}", "protocol=paper"])["input"]["filter"] == expected
    assert compose("config", [f"method={method}"])["input"]["filter"] == "bilinear"


def test_a_filter_that_is_none(command, tree):
    status, _, err = command("dataset=folder", f"data_root={tree}", "input.filter=lancsoz")
    assert status == 2
    assert "input.filter=lancsoz: no such filter; did you mean lanczos" in err


@pytest.mark.parametrize("text", ["C:\\data\\x", r"\\server\it's", "end\\", r"a\\'b", "a b,c=[d]{e}", "", "ü"])
def test_text_override_round_trip(text):
    assert compose("config", [f"data_root={as_override(text)}"])["data_root"] == text


def test_missing_config_dir(command):
    for words in (["list", "methods"], ["--help"], ["run"]):
        status, out, err = command(*words, "--config-dir", "nowhere")
        assert (status, out) == (2, "") or words == ["--help"]
        assert "--config-dir nowhere: no such folder" in err


def test_log_file_is_written_despite_earlier_logging(tmp_path):
    logging.getLogger("anomaly_bench").info("asked below its level: logging keeps that answer")
    with log_file(tmp_path / "a" / "run.log"):
        logging.getLogger("anomaly_bench").info("fitted")
    assert (tmp_path / "a" / "run.log").read_text().endswith("INFO anomaly_bench: fitted\n")
