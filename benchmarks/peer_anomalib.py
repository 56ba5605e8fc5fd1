"""The peer: anomalib 2.7 fitted and tested on one MVTec AD category, timed as a whole process.

It runs in anomalib's own environment, not in this project's:

    python -m venv peer && peer/bin/pip install 'anomalib==2.7.*'
    peer/bin/python benchmarks/peer_anomalib.py --root DIR --category bottle --method padim \\
        --weights efficientnet-lite0-57934424.pth --threads 2 --out result.json

Model, datamodule, Engine and metrics are anomalib's. The backbone is timm's tf_efficientnet_lite0 at
strides 4, 8 and 16 (PatchCore: 8 and 16), filled from the given checkpoint; nothing is downloaded.

lean     anomalib at its best, the default here: Lightning's barebones mode, no validation pass (by default
         a second pass over the test set) and raw scores. The AUROC metric applies a float32 sigmoid, which
         saturates, to scores outside [0, 1], so scores are scaled by a power of two: exact, order-preserving.
default  what the two-line example gives: a validation pass on the test set, the F1-adaptive threshold, scores
         normalised and clamped to [0, 1] (ties are possible at the ends), a checkpoint on disk.

Neither draws pictures of test images. `seconds` are times since the script's start: imports done, model
built and fitted, metrics computed. A second stage times anomalib's k-centre greedy on a float32 array of
points; the covering radius is the largest Euclidean distance from a point to its nearest chosen centre:

    peer/bin/python benchmarks/peer_anomalib.py --stage kcenter --array X.npy --ratio 0.01 --out k.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

START = time.perf_counter()  # before the heavy imports, which are all inside the functions
BACKBONE = "tf_efficientnet_lite0"
LAYERS = {"padim": ["blocks.1", "blocks.2", "blocks.4"], "patchcore": ["blocks.2", "blocks.4"]}
STRIDES = {"blocks.1": 4, "blocks.2": 8, "blocks.4": 16}
SCALE = 2.0**-20  # brings raw distances into [0, 1] without rounding
PACKAGES = ("anomalib", "lightning", "torch", "torchvision", "timm", "torchmetrics")
METRICS = {"image_auroc": "image_AUROC", "pixel_auroc": "pixel_AUROC", "pro": "pixel_AUPRO"}


def since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def load_backbone(extractor: torch.nn.Module, weights: Path) -> None:
    """Fill anomalib's feature extractor from a checkpoint whose entries follow timm's order."""
    import timm
    import torch

    def tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}

    source = tensors(torch.load(weights, map_location="cpu", weights_only=True))
    whole = tensors(timm.create_model(BACKBONE, pretrained=False).state_dict())
    if [value.shape for value in source.values()] != [value.shape for value in whole.values()]:
        raise SystemExit(f"{weights.name} does not match {BACKBONE} in order and shape")
    mapped = dict(zip(whole, source.values(), strict=True))
    extractor.load_state_dict({name: mapped[name] for name in tensors(extractor.state_dict())}, strict=False)


def build(args: argparse.Namespace) -> Any:
    """The anomalib model of `args.method`, with lite0's input normalisation and this benchmark's metrics."""
    import lightning
    import torch
    from anomalib.metrics import AUPRO, AUROC, Evaluator
    from anomalib.models import Padim, Patchcore
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

    class RawScores(torch.nn.Module, lightning.Callback):
        """Replaces the post-processor: no min-max, no clamp, no threshold."""

        def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
            outputs.anomaly_map = outputs.anomaly_map * SCALE
            outputs.pred_score = outputs.pred_score * SCALE

    steps = [Resize((args.resize,) * 2, antialias=True), CenterCrop(args.crop), Normalize([0.5] * 3, [0.5] * 3)]
    metrics = [
        AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
        AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_"),
        AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_", fpr_limit=0.3),
    ]
    common: dict[str, Any] = {
        "backbone": BACKBONE,
        "layers": LAYERS[args.method],
        "pre_trained": False,
        "pre_processor": PreProcessor(Compose(steps)),
        "post_processor": RawScores() if args.profile == "lean" else True,
        "evaluator": Evaluator(test_metrics=metrics),
        "visualizer": False,
    }
    own = {"n_features": 100} if args.method == "padim" else {"coreset_sampling_ratio": args.ratio}
    model = (Padim if args.method == "padim" else Patchcore)(**common, **own)
    assert list(model.model.feature_extractor.reductions) == [STRIDES[x] for x in LAYERS[args.method]]
    load_backbone(model.model.feature_extractor.feature_extractor, args.weights)
    return model


def detect(args: argparse.Namespace) -> dict[str, Any]:
    """Fit and test one method on one category."""
    import anomalib.models  # noqa: F401 (used by build; here so that its time counts as import)
    import torch
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from lightning import seed_everything

    seconds = {"import": since(START)}
    torch.set_num_threads(args.threads)
    seed_everything(args.seed, verbose=False)
    model = build(args)
    data = MVTecAD(root=args.root, category=args.category, num_workers=args.workers)
    lean = {"barebones": True, "limit_val_batches": 0} if args.profile == "lean" else {}
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(default_root_dir=folder, accelerator="cpu", **lean)
        engine.fit(model, datamodule=data)
        seconds["fit"] = since(START)
        engine.test(model, datamodule=data, verbose=False)
        scores = {key: float(engine.trainer.callback_metrics[name]) for key, name in METRICS.items()}
        return scores | {"seconds": seconds | {"test": since(START)}, "peak_rss_mb": peak_rss_mb()}


def kcenter(args: argparse.Namespace) -> dict[str, Any]:
    """Time anomalib's coreset selection alone and measure how well it covers the points."""
    import numpy as np
    import torch
    from anomalib.models.components import KCenterGreedy

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # the sparse projection draws from numpy too
    points = torch.from_numpy(np.load(args.array, allow_pickle=False).astype(np.float32, copy=False))
    began = time.perf_counter()
    chosen = KCenterGreedy(embedding=points, sampling_ratio=args.ratio).select_coreset_idxs()
    result = {"seconds": since(began), "peak_rss_mb": peak_rss_mb()}
    centres = points[chosen].double()
    radius = max(torch.cdist(part.double(), centres).amin(1).max().item() for part in points.split(4096))
    return result | {"shape": list(points.shape), "centres": len(set(chosen)), "covering_radius": radius}


def main() -> None:
    parser = argparse.ArgumentParser(description="anomalib on one category, timed as a whole process")
    parser.add_argument("--stage", choices=["detect", "kcenter"], default="detect")
    parser.add_argument("--root", type=Path, help="the folder that holds the categories")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--method", choices=["padim", "patchcore"], default="padim")
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0 checkpoint (.pth)")
    parser.add_argument("--profile", choices=["lean", "default"], default="lean")
    for name, value in {"resize": 256, "crop": 224, "threads": 2, "workers": 0, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ratio", type=float, default=0.01, help="the coreset's share of the points")
    parser.add_argument("--array", type=Path, help="stage kcenter: a float32 array of points (.npy)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    needed = ["array"] if args.stage == "kcenter" else ["root", "weights"]
    if missing := [f"--{name}" for name in needed if getattr(args, name) is None]:
        parser.error(f"stage {args.stage} needs {' and '.join(missing)}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    result = kcenter(args) if args.stage == "kcenter" else detect(args)
    settings = {key: value.name if isinstance(value, Path) else value for key, value in vars(args).items()}
    result = {"settings": settings, **result, "versions": {name: version(name) for name in PACKAGES}}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
