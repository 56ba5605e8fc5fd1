"""Every method as used in tests: on a backbone that needs no download, and small if the published size is slow."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

import pytest

from anomaly_bench.config.settings import choices, conf_folder
from anomaly_bench.testing.setup import Setup

METHODS = choices("method", [conf_folder()])
FAMILIES = (  # one or two of each kind, with which `make test` runs what `make test-all` does with every method
    "padim",
    "patchcore",
    "fastflow",
    "stfpm",
    "ae_l2",
    "dsvdd",
    "fcdd",
    "texture_inspection",
)
# Those that detect a defect only after hundreds of steps
SLOW_LEARNERS = (
    "ae_ssim",
    "cavga_ru",
    "depth_ae",
    "depth_gan",
    "draem",
    "ganomaly",
    "nsa",
    "vevae",
    "voxel_ae",
    "voxel_gan",
)
PRETRAINED = ("fyd", "panda")  # train a copy of the backbone
PAIRS = {"lite0": "lite0_lite1", "r18": "r34_r50"}  # for a method that compares two networks
TRANSFORMER = ("method.grid=4", "method.width=16", "method.heads=2", "method.layers=2", "method.hidden=32")
SMALL_GAN = (
    "method.views=2",
    "method.width=4",
    "method.latent=8",
    "method.batch=8",
    "method.lr=0.001",
    "method.encoder_lr=0.001",
    "method.adversarial=0.5",
)
SMALLER = {
    "adtr": (*TRANSFORMER, "method.lr=0.003"),
    "adtr_plus": (*TRANSFORMER, "method.lr=0.003"),
    "glance": ("method.side=17", "method.lessons=4", "method.grid=4", "method.batch=8", "method.lr=0.002"),
    "depth_ae": ("method.views=2", "method.latent=8", "method.batch=8", "method.lr=0.003"),
    "voxel_ae": ("method.grid=16", "method.views=2", "method.width=4", "method.latent=8", "method.lr=0.005"),
    "depth_gan": SMALL_GAN,
    "voxel_gan": (*SMALL_GAN, "method.grid=16"),
    "depth_vm": ("method.views=2",),
    "voxel_vm": ("method.grid=16", "method.views=2"),
    "pnet": (
        "method.width=4",
        "method.batch=6",
        "method.lr=0.005",
        "method.structure_lr=0.003",
        "method.adversarial=0.1",
    ),
    "scadn": ("method.width=4", "method.lr=0.002"),
    "smai": ("method.segments=[8,4]", "method.width=4", "method.lr=0.005"),
    "ae_l2": ("method.samples=64", "method.latent=8", "method.batch=16", "method.lr=0.002"),
    "ae_ssim": ("method.samples=64", "method.latent=8", "method.batch=16", "method.lr=0.002"),
    "draem": ("method.width=4", "method.discriminative_width=4"),
    "cs_flow": ("method.levels=[2]", "method.hidden=16"),  # at 64 pixels, level 4a has no grid that can be halved twice
    "cutpaste": (
        "method.updates=3",
        "method.batch=6",
        "method.width=4",
        "method.patch=32",
        "method.stride=8",
    ),
    "differnet": ("method.hidden=16", "method.views=4", "method.train_views=2"),
    "cnn_feature_dictionary": ("method.patches=400", "method.stride=8", "method.starts=2"),
    "texture_inspection": ("method.patches=1000", "method.held_out=200", "method.gaussians=[1,2]"),
    "lsa": (
        "method.size=16",
        "method.code=8",
        "method.width=4",
        "method.bins=10",
        "method.hidden=16",
        "method.lr=0.001",
        "method.batch=4",
    ),
    "ocgan": ("method.width=4", "method.critic_width=2", "method.batch=8", "method.lr=0.002"),
    "itae": ("method.width=4", "method.batch=6"),
    "nsa": ("method.width=16", "method.batch=6"),
    "dfr": ("method.latent=8", "method.lr=0.003", "method.batch=8"),
    "f_anogan": (
        "method.size=32",
        "method.width=2",
        "method.samples=64",
        "method.batch=8",
        "method.adversarial=0.5",
        "method.encoder_lr=0.001",
    ),
    "fyd": ("method.lr=0.1", "method.batch=12", "method.dimensions=20"),
    "gradcon": ("method.batch=4",),
    "fcdd": ("method.batch=8", "method.repeats=2", "method.lr=0.01"),
    "ganomaly": ("method.size=32", "method.width=4", "method.samples=32", "method.batch=8", "method.lr=0.002"),
    "anogan": ("method.size=32", "method.width=4", "method.samples=64", "method.batch=8", "method.moves=5"),
    "geom": ("method.width=1", "method.size=16", "method.shift=0", "method.batch=16"),
    "kdad": ("method.batch=8",),
    "uninformed_students": (
        "method.patches=[33]",
        "method.width=8",
        "method.stride=8",
        "method.crop=24",
        "method.students=2",
        "method.teacher_steps=8",
        "method.batch=8",
        "method.lr=0.003",
        "method.teacher_lr=0.003",
    ),
    "patch_svdd": ("method.width=4", "method.repeats=2", "method.batch=24", "method.lr=0.003"),
    "pefm": ("method.latents=[8,8,8]",),
    "vae": ("method.samples=64", "method.width=16", "method.latent=8", "method.batch=16", "method.lr=0.005"),
    "vae_grad": (
        "method.samples=64",
        "method.latent=8",
        "method.batch=16",
        "method.lr=0.002",
        "method.moves=5",
    ),
    "vevae": ("method.width=16", "method.lr=0.002"),
    "cavga_ru": ("method.width=16", "method.critic_width=16", "method.batch=8", "method.adversarial=0.1"),
}


def each(methods: Iterable[str] = METHODS, quick: Collection[str] = FAMILIES) -> list[Any]:
    """Parameters for a test of these methods; all but the quick ones are slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in methods]


@functools.cache
def setup(method: str, backbone: str = "lite0", device: str = "cpu", words: tuple[str, ...] = ()) -> Setup:
    """A method on "lite0" with its weights, or on "r18" with random ones; `words`: further overrides."""
    words += () if backbone == "lite0" else ("backbone.weights=random",)
    if backbone == "r18" and method in PRETRAINED:  # else gradients do not reach into a residual block
        words += ("+backbone.options={zero_init_last: false}",)
    words += SMALLER.get(method, ())
    return Setup(method, PAIRS[backbone] if method == "pefm" else backbone, words, device=device)
