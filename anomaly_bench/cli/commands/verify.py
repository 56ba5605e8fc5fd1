"""`anomaly-bench verify record=FILE`: can a record be reproduced on this machine?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_bench import records
from anomaly_bench.cli.hydra_app import composed_once
from anomaly_bench.config.compose import config_folders
from anomaly_bench.errors import DataError, Exit, UsageError, shorten, shown
from anomaly_bench.metrics.registry import find_metric
from anomaly_bench.records.content import check_whole
from anomaly_bench.records.record import DamagedRecord, OlderRecord
from anomaly_bench.records.setups import describe
from anomaly_bench.runs.verification import DIFFERENT, SCORE_TOLERANCE, judge, recompute
from anomaly_bench.tables.formats.console import console
from anomaly_bench.tables.table import DASH, Header, Table

if TYPE_CHECKING:
    from anomaly_bench.records.record import Record
    from anomaly_bench.runs.verification import Verdict


def command(arguments: Sequence[str]) -> int:
    """Compute a record again and print the verdict.

    Raises:
        UsageError: no such record, or this machine lacks the weights, the data or the device.
        DataError: the record is damaged, or an image cannot be read.
    """
    config = composed_once("verify", arguments)
    if config is None:
        return Exit.DONE
    record = read_record(config["record"])
    again = recompute(record, config, config_folders(arguments)[1:])
    verdict = judge(record, again)
    for part in report(record, again, verdict):
        print("\n".join(map(shown, part.split("\n"))))
    return Exit.FAILED if verdict.word == DIFFERENT else Exit.DONE


def read_record(value: Any) -> Record:
    """The record of the key `record`.

    Raises:
        UsageError: there is no such file. DataError: it is not a record, or was changed.
    """
    if value is None:
        raise UsageError("record=FILE is missing: expected a JSON file below results/records")
    path = Path(str(value)).expanduser()
    if not path.is_file():
        raise UsageError(f"record={path}: {'no file' if path.exists() else 'no such file'}; expected a record's JSON")
    try:
        record = records.load(path)
        check_whole(record.config, record.cost)
    except ValueError as error:
        raise DataError(f"{path}: cannot be computed again ({error})") from error
    except OlderRecord as error:
        raise DataError(str(error)) from error
    except DamagedRecord as error:
        raise DataError(f"{str(error).partition(';')[0]}; expected a record as written by a run") from error
    return record


def report(record: Record, again: Record, verdict: Verdict) -> Iterator[str]:
    """The printed lines: verdict, scores, files, metrics, environment."""
    network = "" if record.backbone == "none" else f" on {record.titles['backbone']}"
    what = f"{record.category}, {record.titles['method']}{network}, seed {record.seed}, {describe(record)}"
    yield f"{verdict.word}: {what}"
    yield ""
    yield score_line(verdict)
    yield from file_lines(record, again, verdict)
    yield ""
    yield console(metric_table(record, again, verdict))
    differing = list(environment(record, again))
    yield "environment: " + ("as recorded" if not differing else f"{len(differing)} differences")
    yield from (f"  {line}" for line in differing)


def score_line(verdict: Verdict) -> str:
    unequal = len(verdict.changed)
    if not unequal:
        return f"{len(verdict.scores)} image scores: bit-identical"
    value, file = verdict.largest
    share = f" = {value / verdict.range:.2g} of their range" if verdict.range else ""
    return (
        f"{len(verdict.scores)} image scores: {unequal} differ, by at most {value:.3g}{share} ({file}); tolerance: "
        f"{SCORE_TOLERANCE:g} of the range"
    )


def file_lines(record: Record, again: Record, verdict: Verdict) -> Iterator[str]:
    """Which files have changed, as far as the record tells."""
    if again.fingerprint == record.fingerprint:
        return
    for names, text in ((verdict.lost, "in the record, not here"), (verdict.new, "here, not in the record")):
        if names:
            yield f"{len(names)} test images {text}: {shorten(names)}"
    if 0 < len(verdict.changed) < len(verdict.scores):
        yield f"{len(verdict.changed)} test images score differently, all others the same: {shorten(verdict.changed)}"
    if record.counts["fit"] != again.counts["fit"]:
        yield f"{again.counts['fit']} training images, {record.counts['fit']} in the record"
    yield (
        "the fingerprint differs: an image or mask has changed since"
        + ("" if verdict.lost or verdict.new else " (the test images' names have not)")
        + ", or the record was edited"
    )


def metric_table(record: Record, again: Record, verdict: Verdict) -> Table:
    """Metrics as fractions, recorded and now; a value of another revision of its metric is not compared."""
    rows, names = [], list(dict.fromkeys((*record.metrics, *again.metrics)))
    for name in names:
        metric = find_metric(name, (record.metrics, again.metrics))
        texts = [DASH if value is None else f"{value:.6f}" for value in (record.value(name), again.value(name))]
        texts.append(gap(*verdict.metrics.get(name, (None, None))))
        rows.append((Header((metric.title if metric else name,)), texts))
    outdated = [name for name in names if name not in verdict.metrics]
    caption = f"Metrics as fractions; tolerance: {SCORE_TOLERANCE:g}"
    notes = [f"Of another revision or on one side only, not compared: {', '.join(outdated)}."] if outdated else []
    columns = [("recorded",), ("now",), ("difference",)]
    return Table.of_rows("verify", caption, ("Metric",), columns, rows, notes)


def gap(then: float | None, now: float | None) -> str:
    """'0', '+1.2e-07', or a dash if one is missing."""
    if then is None or now is None:
        return DASH
    return f"{now - then:+.1e}" if now != then else "0"


def environment(record: Record, again: Record) -> Iterator[str]:
    """Every difference, as in 'torch: 2.6.0 in the record, 2.7.1 here'."""
    import torch

    threads = torch.get_num_threads()
    then = {**record.provenance, "device": record.cost["device"], "threads": record.cost["threads"]}
    now = {**again.provenance, "device": again.cost["device"], "threads": threads}
    for name in dict.fromkeys((*then, *now)):
        if name != "date" and then.get(name) != now.get(name):
            yield f"{name}: {then.get(name, 'unknown')} in the record, {now.get(name, 'unknown')} here"
