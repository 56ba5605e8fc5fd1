"""Uninformed Students: Student-Teacher Anomaly Detection with Discriminative Latent Embeddings.

Paul Bergmann, Michael Fauser, David Sattlegger, Carsten Steger; CVPR 2020, arXiv 1911.02357.

A teacher learns to describe small patches as a pretrained network does. Students, which differ in their random initial
weights, learn the teacher's descriptors on normal images. Where they are wrong or disagree, an image is anomalous.

There is no code by the authors. The metric loss, which the paper leaves out for MVTec AD, is not built. Its teacher
learns from ImageNet's photographs, here by default from the training images. The correlation of descriptors and the
image score are ours: the paper has no formulas.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.distillation import correlations, random_patch, squared_distance
from anomaly_bench.components.moments import standardisers
from anomaly_bench.components.patch_network import LAYERS, PatchNetwork
from anomaly_bench.components.synthetic_anomalies.perlin import folder_texture
from anomaly_bench.components.training import Loop
from anomaly_bench.components.validation import check_fitted, check_positive, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.backbones.backbone import Backbone
    from anomaly_bench.protocol import TrainingSet

logger = logging.getLogger(__name__)
STRIDES = (1, 2, 4, 8)
PIXELS = 2**16  # of images scored at a time
LEAST = 10  # images from which some are held out


class UninformedStudents(nn.Module):
    """Uninformed Students at one or several sizes of patches; the teachers' losses are L_k and L_c of section 3.1.

    Args:
        backbone: the network that the teachers learn from, read at one level, whose mean over positions counts.
        epochs, lr: of the students, for training with Adam on one image at a time.
        teacher_steps, teacher_lr, batch: of the teachers, before the students; `weight_decay` is of both.
        patches: sides of the patches, of 17, 33 and 65 pixels.
        students: of each size.
        stride: pixels between descriptors; 1: one at every pixel, as published.
        crop: side in pixels of the part of an image that a step of the students takes; None: the whole image.
        width: channels of descriptors; the networks' other layers have as many or twice that.
        teacher_images: folder of photographs for the teachers; None: the training images.
        held_out, seed: share of the training images that the scores are standardised by, and of this split.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        epochs: int,
        lr: float = 1e-4,
        teacher_steps: int = 50_000,
        teacher_lr: float = 2e-4,
        weight_decay: float = 1e-5,
        batch: int = 64,
        patches: Sequence[int] = (17, 33, 65),
        students: int = 3,
        stride: int = 1,
        crop: int | None = None,
        width: int = 128,
        teacher_images: str | None = None,
        held_out: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not patches or len(set(patches)) < len(patches) or not set(patches) <= LAYERS.keys():
            raise UsageError(f"method.patches={list(patches)}: expected some of {list(LAYERS)}, such as [33]")
        if students < 2:
            raise UsageError(f"method.students={students}: expected at least 2")
        check_positive(teacher_steps=teacher_steps)
        if stride not in STRIDES:
            raise UsageError(f"method.stride={stride}: expected 1, 2, 4 or 8 pixels")
        if crop is not None and crop < stride:
            raise UsageError(f"method.crop={crop}: expected at least method.stride={stride} pixels, or null")
        super().__init__()
        self.backbone, self.epochs, self.lr, self.weight_decay = backbone, epochs, lr, weight_decay
        self.teacher_steps, self.teacher_lr, self.batch = teacher_steps, teacher_lr, batch
        self.patches, self.students, self.stride, self.width = patches, students, stride, width
        self.crop, self.held_out, self.seed = crop, held_out, seed
        self.photograph = None
        if teacher_images is not None:
            self.photograph = folder_texture(Path(str(teacher_images)).expanduser(), "teacher_images")

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create teachers and students.

        Raises:
            UsageError: several levels.
        """
        if len(shapes) != 1:
            raise UsageError(f"Uninformed Students: {len(shapes)} levels; expected one of one network, such as [4]")
        self.features = shapes[0][0]
        self.each_scale = [Scale(patch, self.students, self.width) for patch in self.patches]
        self.scales = nn.ModuleList(self.each_scale)
        self.register_buffer("mean", self.backbone.mean.clone(), persistent=False)
        self.register_buffer("std", self.backbone.std.clone(), persistent=False)

    def fit(self, normals: TrainingSet) -> None:
        """Train the teachers, then the students, and standardise the scores on held-out images.

        Raises:
            UsageError: sides that are no multiples of the stride.
            ValueError: the loss is not finite.
        """
        check_sides("Uninformed Students", normals.size, self.stride)
        trained, held_out = self.split(normals)
        decoders = nn.ModuleList([nn.Linear(self.width, self.features) for _ in self.patches]).to(self.mean.device)
        teach = self.adam([*decoders, *(scale.teacher for scale in self.each_scale)], self.teacher_lr)
        learn = self.adam([scale.students for scale in self.each_scale], self.lr)
        loop = Loop(nn.ModuleList([self, decoders]), [teach, learn], normals, self.epochs)
        for epoch in loop:
            if epoch.number == 0:
                for _ in range(self.steps_of_teachers(len(trained), loop.limit)):
                    epoch.step(self.teachers_losses(decoders, trained), teach)
                    epoch.add_point()
                self.standardise("target", trained)
            for numbers in epoch.batches(len(trained), 1):
                epoch.step(self.students_losses(trained.select(numbers)), learn)
        self.standardise("score", held_out)
        self.facts = loop.facts

    def adam(self, parts: Sequence[nn.Module], lr: float) -> torch.optim.Adam:
        return torch.optim.Adam(nn.ModuleList(parts).parameters(), lr, weight_decay=self.weight_decay, fused=True)

    def split(self, normals: TrainingSet) -> tuple[TrainingSet, TrainingSet]:
        """The images for training, and those held out."""
        if len(normals) < LEAST and normals.validation is None:
            logger.warning("%s: none of less than %d training images is held out", normals.name, LEAST)
            return normals, normals
        return normals.hold_out(self.held_out, self.seed)

    def steps_of_teachers(self, count: int, limit: int | None) -> int:
        """Steps before those of the students on `count` images; of a budget, the published share."""
        if limit is None:
            return self.teacher_steps
        share = self.teacher_steps / (self.teacher_steps + self.epochs * count)
        return min(max(1, round(share * limit)), limit - 1)

    def teachers_losses(self, decoders: nn.ModuleList, normals: TrainingSet) -> Iterator[Tensor]:
        """For each scale: the squared distance of decoded descriptors from the features, plus their correlation."""
        for scale, decoder in zip(self.each_scale, decoders, strict=True):
            patches = torch.stack([random_patch(image, scale.patch) for image in self.lesson(normals)])
            features = self.backbone(patches)[0].mean(dim=(2, 3))
            descriptors = scale.teacher(self.normalised(patches), scale.teacher.most)[:, :, 0, 0]
            distance, related = squared_distance(decoder(descriptors), features), correlations(descriptors)
            yield distance + (related.square().sum() - related.diagonal().square().sum())

    def lesson(self, normals: TrainingSet) -> Tensor:
        """(batch, 3, H, W) in [0, 1] for the teachers: random photographs of the folder, or training images."""
        if self.photograph is None:
            return normals.select(torch.randint(len(normals), (self.batch,)))
        photographs = torch.stack([self.photograph(normals.size) for _ in range(self.batch)])
        return (photographs.float() / 255).to(self.mean.device)

    def students_losses(self, images: Tensor) -> Iterator[Tensor]:
        """For each student: the squared distance from the teacher's standardised descriptors, mean over positions."""
        spans = [self.stride if self.crop is None else max(1, side - self.crop + 1) for side in images.shape[2:]]
        shift = tuple(int(torch.randint(span, ())) for span in spans)
        for scale in self.each_scale:
            view, step = scale.teacher.view(self.normalised(images), self.stride, shift, self.crop)
            with torch.no_grad():
                targets = scale.targets(view, step)
            for student in scale.students:
                yield squared_distance(student(view, step), targets)

    @torch.no_grad()
    def standardise(self, name: Literal["target", "score"], normals: TrainingSet) -> None:
        """Set mean and deviation of the teachers' descriptors, or of the score's terms, over all positions."""
        for scale in self.each_scale:
            measure = scale.teacher.dense if name == "target" else scale.terms
            mean, deviation = standardisers(measure(part, self.stride) for part in self.parts(normals))
            scale.get_buffer(f"{name}_mean").copy_(mean)
            scale.get_buffer(f"{name}_std").copy_(deviation)

    def parts(self, normals: TrainingSet) -> Iterator[Tensor]:
        """Normalised images, as many at a time as in scoring."""
        return (self.normalised(images) for images in normals.images(max(1, PIXELS // math.prod(normals.size))))

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """The scales' mean of standardised error and variance (section 3.3); the image score is the map's maximum.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
        """
        check_fitted(self)
        size, maps = images.shape[2:], []
        for part in torch.split(self.normalised(images), max(1, PIXELS // math.prod(size))):
            each = [F.interpolate(scale.map(part, self.stride), size, mode="bilinear") for scale in self.each_scale]
            maps.append(torch.stack(each).mean(dim=0)[:, 0])
        whole = torch.cat(maps)
        return Scores(whole.amax(dim=(1, 2)), whole)

    def normalised(self, images: Tensor) -> Tensor:
        """By the backbone's mean and standard deviation."""
        return (images - self.mean) / self.std


class Scale(nn.Module):
    """Teacher and students for one size of patches, and what standardises descriptors and scores."""

    target_mean: Tensor  # (D, 1, 1)
    target_std: Tensor
    score_mean: Tensor  # (2, 1, 1) of error and variance
    score_std: Tensor

    def __init__(self, patch: int, students: int, width: int) -> None:
        super().__init__()
        self.patch, self.teacher = patch, PatchNetwork(patch, width)
        self.students = nn.ModuleList([PatchNetwork(patch, width) for _ in range(students)])
        for name, channels in {"target": width, "score": 2}.items():
            self.register_buffer(f"{name}_mean", torch.zeros(channels, 1, 1))
            self.register_buffer(f"{name}_std", torch.ones(channels, 1, 1))

    def targets(self, view: Tensor, stride: int) -> Tensor:
        """(B, D, h, w) standardised descriptors of the teacher."""
        described: Tensor = self.teacher(view, stride)
        return (described - self.target_mean) / self.target_std

    def terms(self, images: Tensor, stride: int) -> Tensor:
        """(B, 2, h, w): error of the students' mean (equation 6) and their variance (equation 7), never negative."""
        view, step = self.teacher.view(images, stride)
        found = [student(view, step) for student in self.students]
        mean = found[0] + torch.stack([each - found[0] for each in found]).mean(dim=0)
        error = (mean - self.targets(view, step)).square().sum(dim=1)
        variance = torch.stack([(each - mean).square().sum(dim=1) for each in found]).mean(dim=0)
        return torch.stack([error, variance], dim=1)

    def map(self, images: Tensor, stride: int) -> Tensor:
        """(B, 1, h, w): the sum of both terms, each standardised."""
        return ((self.terms(images, stride) - self.score_mean) / self.score_std).sum(dim=1, keepdim=True)
