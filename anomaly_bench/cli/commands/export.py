"""`anomaly-bench export model=DIR format=onnx out=FILE`: a fitted model as one graph that scores the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from anomaly_bench.cli.hydra_app import composed_once
from anomaly_bench.cli.overrides import SWEEPING
from anomaly_bench.config.compose import config_folders
from anomaly_bench.config.settings import existing_folder, truth, whole_number
from anomaly_bench.console import Reporter
from anomaly_bench.errors import Exit, UsageError
from anomaly_bench.hardware import sharing
from anomaly_bench.hardware.devices import cores


def command(arguments: Sequence[str]) -> int:
    if set(SWEEPING) & set(arguments):
        raise UsageError("export: takes no --multirun; run it once for each model")
    config = composed_once("export", arguments)
    if config is None:
        return Exit.DONE
    values: Any = OmegaConf.to_container(config, resolve=True)
    return export_model(values, config_folders(arguments)[1:])


def export_model(values: Mapping[str, Any], folders: Sequence[Path]) -> int:
    """Export and print what the check found.

    Args:
        folders: of the user's configuration.
    """
    model = existing_folder(values, "model", "a folder written by save_model=true")
    from anomaly_bench.export import exporter, formats, images
    from anomaly_bench.hardware import torch_setup
    from anomaly_bench.runs import saved_model

    module = formats.format_module(str(values["format"]))
    out = read_out(values, module.SUFFIX)
    threads = cores() if values["threads"] is None else whole_number(values, "threads", 1)
    about = saved_model.read_about(model, folders)
    wanted = exporter.Wanted(str(values["format"]), out, truth(values, "resize"), threads)
    if values["images"] is None:
        seen = images.of_record(model, values, folders)
    else:
        seen = images.of_folder(existing_folder(values, "images", "a folder of images to check on"))
    weights = None if values["weights"] is None else str(values["weights"])
    device = torch_setup.set_up("cpu", threads, about["precision"])
    method = saved_model.load_model(model, device, weights, folders)
    with sharing.computing():
        proof = exporter.export(wanted, method, about, seen, Reporter())
    print(f"{out}: {', '.join(proof['outputs'])} as the model's, checked on {', '.join(exporter.described(proof))}")
    if "against_pillow" in proof:
        print(f"against Pillow's resizing: {', '.join(exporter.described(proof['against_pillow']))}")
    print(f"proof: {out.with_name(out.name + '.check.json')}")
    return Exit.DONE


def read_out(values: Mapping[str, Any], suffix: str) -> Path:
    """The file to write; its folder is made.

    Raises:
        UsageError: no file is given, it has another suffix, it exists, or its folder cannot be made.
    """
    if values["out"] is None:
        raise UsageError(f"out=FILE is missing: expected a new file that ends with {suffix}")
    out = Path(str(values["out"])).expanduser()
    if out.suffix != suffix:
        raise UsageError(f"out={out}: expected a name that ends with {suffix}, for format={values['format']}")
    if out.exists() and not truth(values, "overwrite"):
        raise UsageError(f"out={out}: exists; overwrite=true replaces it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out={out}: its folder cannot be made ({error.strerror})") from error
    return out
