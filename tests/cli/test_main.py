"""The command line: arguments, errors and exit statuses."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import time

import pytest
from rich.console import Console

import anomaly_bench
from anomaly_bench import console
from anomaly_bench.cli.main import SUBJECTS, split
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
        told = "(reconstruction; fitted on synthetic anomalies; evidence: parity (third party))"
        assert next(line for line in out.splitlines() if line.startswith("draem")).endswith(told)
        assert next(line for line in out.splitlines() if line.startswith("kde")).endswith("; no anomaly maps)")


@pytest.mark.parametrize("words", [["list", "methods"], ["tables"], ["references", "check"], ["records", "merge", "a"]])
def test_flags_stand_anywhere(words):
    for flag in (["--config-dir", "status"], ["-m"], ["--info", "config"], ["seed=1"]):
        for place in range(len(words) + 1):
            name, subject, rest = split([*words[:place], *flag, *words[place:]])
            assert [name, *filter(None, [subject])] == words[:2]
            assert [word for word in rest if word not in words] == flag
            assert [word for word in rest if word in words] == words[2:]


def test_a_flag_before_its_command(command, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# Mine\n")
    for words in (["--config-dir", str(tmp_path), "list", "methods"], ["list", f"--config-dir={tmp_path}", "methods"]):
        status, out, err = command(*words)
        assert (status, err) == (0, "")
        assert "mine" in out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("anomaly-bench tab", ["tables"]),
        ("anomaly-bench list m", ["methods", "metrics"]),
        ("anomaly-bench --config-dir . lis", ["list"]),
        ("anomaly-bench method=pa", ["method=padim", "method=panda", "method=patch_svdd", "method=patchcore"]),
        ("anomaly-bench -m method=padim,spa", ["method=padim,spade"]),
        ("anomaly-bench tables format=m", ["format=md"]),
        ("anomaly-bench tables table=[per_class,sum", ["table=[per_class,summary"]),
        ("anomaly-bench report met", ["method="]),
        ("anomaly-bench speed=", ["speed=true", "speed=false"]),
        ("anomaly-bench method=padim method.dim", ["method.dimensions="]),
        ("anomaly-bench status --mul", ["--multirun"]),
        ("anomaly-bench report --config-dir ", []),
        ("anomaly-bench cache ", ["list", "clear"]),
        ("anomaly-bench results=", []),
    ],
)
def test_completion(command, line, expected):
    status, out, _ = command("completion", "query", line)
    assert (status, out.splitlines()) == (0, expected)


def test_completion_of_every_command(command):
    """After each command, its subjects or keys; nothing fails."""
    for name, subjects in SUBJECTS.items():
        words = command("completion", "query", f"anomaly-bench {name} ")[1].split()
        assert words == list(subjects) if subjects else all(word.endswith("=") for word in words), name
        for subject in subjects:
            assert command("completion", "query", f"anomaly-bench {name} {subject} x")[0] == 0


SHELLS = {  # what each shell makes of a line: its own completion is asked
    "bash": """COMP_LINE="$1" COMP_POINT=${#1}; _anomaly_bench 2>/dev/null; printf '%s\n' "${COMPREPLY[@]}" """,
    "fish": "complete -C $argv[1]",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_in_a_shell(command, shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    program = tmp_path / "anomaly-bench"
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from anomaly_bench.cli.main import main; main()' \"$@\"\n"
    )
    program.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(command("completion", shell)[1] + SHELLS[shell])
    for line, expected in (("anomaly-bench list met", "methods"), ("anomaly-bench method=spa", "spade")):
        path = f"{tmp_path}:{os.environ['PATH']}"
        made = subprocess.run([shell, script, line], capture_output=True, text=True, env={**os.environ, "PATH": path})
        assert made.stdout.split()[0].endswith(expected), made.stderr


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
    **dict.fromkeys(("cflow_ad", "nsa", "padim", "pefm"), "lanczos"),
    **dict.fromkeys(("draem", "mahalanobis_ad"), "bilinear_no_antialias"),
    **dict.fromkeys(("dfr", "fcdd", "patch_svdd", "pnet"), "nearest"),
    "spade": "area",
    "vae": "bicubic",
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


def test_without_a_terminal_it_is_said_what_is_being_done(monkeypatch):
    monkeypatch.setattr(console, "TICK", 0.02)
    reporter = console.Reporter()
    reporter.console = Console(file=io.StringIO(), soft_wrap=True)
    with reporter.stage("padim lite0 s0", 2), reporter.stage("weave: fitting", 24) as advance:
        advance(3, "loss 0.5")
        until = time.monotonic() + 30
        while len(said := reporter.console.file.getvalue().splitlines()) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert said[:2] == ["padim lite0 s0 0/2; weave: fitting (loss 0.5) 3/24"] * 2
