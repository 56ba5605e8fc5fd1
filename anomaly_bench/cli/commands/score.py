"""`anomaly-bench score`: a folder of images by a saved model, or metrics from anomaly maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from anomaly_bench.cli.hydra_app import composed_once
from anomaly_bench.cli.overrides import SWEEPING
from anomaly_bench.config.compose import config_folders
from anomaly_bench.config.parts import packaged_node
from anomaly_bench.config.settings import conf_folder
from anomaly_bench.errors import Exit, UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

MODEL_KEYS = (  # of score model=
    *("images", "calibrate", "weights", "save_maps", "save_overlays", "scale"),
    *("max_false_alarms", "device", "batch_size"),
)
MAPS_KEYS = ("category", "data_root", "input", "scores", "labels", "pooled", "metric", "update")  # of score maps=


def command(arguments: Sequence[str]) -> int:
    if set(SWEEPING) & set(arguments):
        raise UsageError("score: takes no --multirun; run it once for each model or folder of maps")
    config = composed_once("score", arguments)
    return Exit.DONE if config is None else score(config, config_folders(arguments)[1:])


def score(config: DictConfig, folders: Sequence[Path]) -> int:
    """Score images, or compute metrics from maps; a key of the other use is rejected rather than ignored.

    Args:
        folders: of the user's configuration.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    if (values["model"] is None) == (values["maps"] is None):
        raise UsageError("score: expected either model=DIR images=DIR out=DIR, or maps=DIR dataset=NAME data_root=DIR")
    defaults: Any = OmegaConf.to_container(OmegaConf.load(conf_folder() / "score.yaml"))
    defaults["metric"] = {"standard": packaged_node("metric", "standard")}
    given, unused = ("maps", MODEL_KEYS) if values["model"] is None else ("model", MAPS_KEYS)
    for key in unused:
        if values.get(key) != defaults[key]:
            raise UsageError(f"score: {key} has no effect with {given}=DIR; see anomaly-bench --help")
    if given == "model":
        from anomaly_bench.cli.commands.score_images import score_images

        return Exit.DONE if score_images(values, folders) else Exit.FAILED
    from anomaly_bench.cli.commands.score_maps import score_maps

    return Exit.DONE if score_maps(values) else Exit.FAILED
