"""Variation model: grey values compared with the mean and standard deviation of their pixel.

Carsten Steger, Markus Ulrich, Christian Wiedemann; Machine Vision Algorithms and Applications (2nd edition 2018). Here
as the baseline of that name in the MVTec AD paper (Paul Bergmann, Michael Fauser, David Sattlegger, Carsten Steger;
CVPR 2019, section 4.1.5), which used the closed implementation of HALCON: |x - mean| / deviation on grey images, with
30 training images, for the six categories that can be aligned.

A reconstruction: HALCON aligns by shape-based matching. Here a coarse search over all angles and shifts, by
cross-correlation of gradient magnitudes, is refined by maximising the enhanced correlation coefficient (Georgios
Evangelidis, Emmanouil Psarakis; 2008). The deviation has a floor of one grey level; one of 5 gives the decision of
HALCON's default thresholds, |x - mean| > max(10, 2 deviation), as a map above 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.grey import to_grey
from anomaly_bench.components.neighbours import take_row_counts
from anomaly_bench.components.upsampling import smooth_upsample
from anomaly_bench.components.validation import check_count, check_fitted, check_grid
from anomaly_bench.errors import UsageError
from anomaly_bench.hardware.torch_setup import float64_device
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import TrainingSet

COARSE = 128  # most pixels a side of the search over angles and shifts
ANGLES = 360  # of that search
ROUNDS = 30  # of the refinement
SIGMA = 2.0  # in pixels, of the blur before the refinement
ALIKE = 0.5  # least correlation of an aligned image with the reference; below it is used as it is


class VariationModel(nn.Module):
    """The variation model.

    Args:
        seed: for drawing the training images.
        align: tasks whose images are aligned by rotation and shift; True: all; False: none.
        images: drawn from the training images; all if they are fewer.
        floor: least standard deviation, in grey levels of 256.
        batch: images per step of fitting.
    """

    mean: Tensor  # (H, W)
    deviation: Tensor  # (H, W); infinite where fewer than two training images lie
    reference: Tensor  # (1, H, W) the image that others are aligned with; (0, H, W): they are not

    def __init__(
        self, seed: int, align: Sequence[str] | bool, images: int = 30, floor: float = 1.0, batch: int = 8
    ) -> None:
        if images < 2 or floor <= 0:
            raise UsageError(f"method.images={images}, method.floor={floor}: expected at least 2, and above 0")
        super().__init__()
        self.seed, self.align, self.images, self.floor, self.batch = seed, align, images, floor, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Allocate the statistics for (C, H, W) images."""
        size = shapes[0][1:]
        self.register_buffer("mean", torch.empty(size))
        self.register_buffer("deviation", torch.empty(size))
        self.register_buffer("reference", torch.empty(0, *size))

    def fit(self, normals: TrainingSet) -> None:
        """Align the drawn images with the one closest to their mean; take each pixel's mean and deviation.

        Raises:
            ValueError: fewer than two images.
        """
        check_count(normals, 2, "a standard deviation")
        generator = torch.Generator("cpu").manual_seed(self.seed)
        numbers = torch.randperm(len(normals), generator=generator)[: self.images].sort().values
        images = torch.cat([to_grey(normals.select(part))[:, 0] for part in torch.split(numbers, self.batch)])
        inside = torch.ones_like(images, dtype=torch.bool)
        if self.align if isinstance(self.align, bool) else normals.name in self.align:
            self.reference = images[(images - images.mean(dim=0)).square().mean(dim=(1, 2)).argmin()][None]
            found = [find_poses(part, self.reference[0]) for part in torch.split(images, self.batch)]
            poses, aligned = (torch.cat(each) for each in zip(*found, strict=True))
            self.facts = {"unaligned_images": int((~aligned).sum())}
            warped, inside = warp(images[:, None], poses)
            images = warped[:, 0]
        values = images.to(float64_device(images.device), torch.float64)
        inside = inside.to(values.device)
        count = inside.sum(dim=0)
        mean = (values * inside).sum(dim=0) / count.clamp(min=1)
        variance = ((values - mean).square() * inside).sum(dim=0) / count.clamp(min=1)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(count < 2, torch.inf, variance.sqrt()))

    def score(self, images: Tensor) -> Scores:
        """|x - mean| / deviation, where the image lies on the model, else 0; the image score is the maximum.

        Args:
            images: (B, 3, H, W) in [0, 1], of the size used in `fit`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: images of a different size.
        """
        check_fitted(self)
        check_grid(images.shape[2:], self.mean.shape)
        greys = to_grey(images)[:, 0]
        if len(self.reference) == 0:
            maps = self.distances(greys)
        else:
            poses, _ = find_poses(greys, self.reference[0])
            warped, inside = warp(greys[:, None], poses)
            maps = warp(self.distances(warped[:, 0])[:, None] * inside[:, None], inverse(poses))[0][:, 0]
        return Scores(maps.amax(dim=(1, 2)), maps)

    def distances(self, greys: Tensor) -> Tensor:
        """(B, H, W) grey values on the model -> (B, H, W)."""
        return (greys - self.mean).abs() / self.deviation.clamp(min=self.floor / 255)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_row_counts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


# A pose (angle, x, y) takes a point p of the model, from the centre, to the image's R(angle) p + (x, y), in pixels.


def warp(images: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) images as their poses (B, 3) show them to the model; and where they lie on it (B, H, W)."""
    height, width = images.shape[2:]
    half = torch.tensor([width - 1, height - 1], device=poses.device) / 2
    at = (rotate(points(height, width, poses), poses) + poses[:, None, 1:]) / half  # (B, H * W, 2) in [-1, 1]
    places = at.view(-1, height, width, 2)
    inside = (places.abs() <= 1 + 1e-4).all(dim=3)
    return F.grid_sample(images, places, "bilinear", "zeros", align_corners=True), inside


def points(height: int, width: int, like: Tensor) -> Tensor:
    """(1, H * W, 2) x and y of every pixel from the centre."""
    y, x = (torch.arange(side, device=like.device).to(like) - (side - 1) / 2 for side in (height, width))
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=2).view(1, -1, 2)


def rotate(at: Tensor, poses: Tensor) -> Tensor:
    """(B, n, 2) points turned by the poses' angles."""
    sine, cosine = poses[:, :1].sin(), poses[:, :1].cos()
    x, y = at.unbind(dim=2)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], dim=2)


def inverse(poses: Tensor) -> Tensor:
    """The poses that take the image's points to the model's."""
    turned_back = torch.cat([-poses[:, :1], torch.zeros_like(poses[:, 1:])], dim=1)
    return torch.cat([-poses[:, :1], -rotate(poses[:, None, 1:], turned_back)[:, 0]], dim=1)


def find_poses(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Align (B, H, W) images with a reference (H, W).

    Returns:
        Poses (B, 3), and whether each image is aligned (B,); one that is not keeps the pose 0.
    """
    size = [max(1, round(side * min(1.0, COARSE / max(reference.shape)))) for side in reference.shape]
    small = F.interpolate(torch.cat([reference[None], images])[:, None], size, mode="area")[:, 0]
    poses = search(small[1:], small[0])
    scale = [1.0, reference.shape[1] / size[1], reference.shape[0] / size[0]]
    poses = poses * torch.tensor(scale, device=poses.device)
    poses, correlation = refine(images, reference, poses)
    aligned = correlation > ALIKE
    return torch.where(aligned[:, None], poses, 0.0), aligned


def search(images: Tensor, reference: Tensor) -> Tensor:
    """The poses (B, 3) with the largest normalised cross-correlation of gradient magnitudes.

    In whole degrees and pixels; what is shifted over a border comes in at the other side.
    """
    edges = torch.cat([reference[None], images])
    slopes = torch.gradient(edges, dim=(1, 2))
    edges = (slopes[0].square() + slopes[1].square()).sqrt()
    edges -= edges.mean(dim=(1, 2), keepdim=True)  # 0 outside is the mean
    angles = torch.arange(ANGLES, device=images.device).to(images) * (2 * torch.pi / ANGLES)
    turns = F.pad(angles[:, None], (0, 2))
    turned = warp(edges[:1, None].expand(ANGLES, -1, -1, -1), inverse(turns))[0][:, 0]
    turned /= turned.square().sum(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12)
    spectrum = torch.fft.rfft2(turned).conj()
    height, width = reference.shape
    best = []
    for image in edges[1:]:
        place = torch.fft.irfft2(torch.fft.rfft2(image) * spectrum, s=(height, width)).argmax()
        angle, y, x = place // (height * width), place // width % height, place % width
        x, y = x - width * (x > width // 2), y - height * (y > height // 2)
        best.append(torch.stack([angles[angle], x.to(images), y.to(images)]))
    return torch.stack(best)


def refine(images: Tensor, reference: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """Poses after Gauss-Newton steps that maximise the enhanced correlation coefficient, and that coefficient (B,)."""
    blurred = smooth_upsample(torch.cat([reference[None], images]), reference.shape, SIGMA)
    slope_y, slope_x = torch.gradient(blurred[1:], dim=(1, 2))
    layers = torch.stack([blurred[1:], slope_x, slope_y], dim=1)
    at = points(reference.shape[0], reference.shape[1], poses)
    quarter = torch.tensor([torch.pi / 2, 0, 0], device=poses.device)
    correlation = torch.zeros_like(poses[:, 0])
    for step in range(ROUNDS + 1):
        warped, inside = warp(layers, poses)
        seen = inside.flatten(1).to(warped)  # (B, H * W)
        image, template = centred(warped[:, 0].flatten(1), seen), centred(blurred[:1].flatten(1), seen)
        lengths = image.norm(dim=1) * template.norm(dim=1)
        correlation = (image * template).sum(dim=1) / lengths.clamp(min=1e-12)
        if step == ROUNDS:
            break
        slopes = warped[:, 1:].flatten(2).transpose(1, 2) * seen[..., None]  # (B, H * W, 2)
        turning = (slopes * rotate(at, poses + quarter)).sum(dim=2, keepdim=True)
        jacobian = torch.cat([turning, slopes], dim=2)
        hessian = jacobian.mT @ jacobian + 1e-6 * torch.eye(3, device=images.device)
        ours, theirs = ((jacobian * each[..., None]).sum(dim=1) for each in (image, template))  # (B, 3) each
        solved = torch.linalg.solve(hessian, torch.stack([ours, theirs], dim=2))
        upper = image.square().sum(dim=1) - (ours * solved[..., 0]).sum(dim=1)
        lower = (image * template).sum(dim=1) - (theirs * solved[..., 0]).sum(dim=1)
        gain = torch.where(lower > 0, upper / lower, 1.0)[:, None]
        poses = poses + gain * solved[..., 1] - solved[..., 0]
    return poses, correlation


def centred(values: Tensor, seen: Tensor) -> Tensor:
    """(B, n) values minus their mean over what is seen; 0 elsewhere."""
    mean = (values * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True).clamp(min=1)
    return (values - mean) * seen
