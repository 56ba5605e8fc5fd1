"""ResNet-18 (He et al. 2016, arXiv 1512.03385) trained from scratch."""

from __future__ import annotations

from torch import nn

from anomaly_bench.backbones.architectures import create


def resnet18(width: int = 64) -> nn.Module:
    """Random weights, no pooling and no classifier: (B, 3, H, W) -> (B, 8 width, H / 32, W / 32).

    Args:
        width: channels of the first stage; the stem has 64 all the same.
    """
    channels = [width, 2 * width, 4 * width, 8 * width]
    options = {"num_classes": 0, "global_pool": "", "zero_init_last": False, "channels": channels}
    network: nn.Module = create("resnet18", options)
    return network
