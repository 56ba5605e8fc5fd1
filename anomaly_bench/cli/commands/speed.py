"""`anomaly-bench speed model=DIR file=FILE`: how fast an exported graph runs, beside the model in tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anomaly_bench.cli.hydra_app import composed_once
from anomaly_bench.config.compose import config_folders
from anomaly_bench.config.settings import existing_folder, whole_number
from anomaly_bench.console import Reporter
from anomaly_bench.errors import Exit, UsageError
from anomaly_bench.hardware.devices import cores


def command(arguments: Sequence[str]) -> int:
    """Measure, add the entry to the model's record, and print it."""
    config = composed_once("speed", arguments)
    if config is None:
        return Exit.DONE
    model = existing_folder(config, "model", "a folder written by save_model=true")
    if config["file"] is None:
        raise UsageError("file=FILE is missing: expected what `export` has written")
    threads = cores() if config["threads"] is None else whole_number(config, "threads", 1)
    batch = whole_number(config, "batch_size", 1)
    from anomaly_bench.export import images, speed

    file = Path(str(config["file"])).expanduser()
    proof = speed.read_proof(file)
    seen = images.of_record(model, config, config_folders(arguments)[1:])
    first = seen.whole() if proof["input"]["in_graph"] else seen.fitted(proof["input"])
    chosen = list(itertools.islice(first, batch))
    same = [image for image in chosen if image.shape == chosen[0].shape]
    entry = speed.measure(file, proof, np.stack(same)[np.resize(np.arange(len(same)), batch)], threads, Reporter())
    speed.add(entry, model)
    p95 = "-" if entry["latency_p95_ms"] is None else f"{entry['latency_p95_ms']:.1f}"
    print(
        f"{entry['runtime']}, {threads} threads: latency {entry['latency_ms']:.1f} ms (p95 {p95}), "
        f"{entry['fps']:.1f} images per second in batches of {batch}; in the record of {model}"
    )
    return Exit.DONE
