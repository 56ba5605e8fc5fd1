"""CNN feature dictionary: distances of small patches' features from a dictionary of normal ones.

Paolo Napoletano, Flavio Piccoli, Raimondo Schettini; 2018, Sensors 18(1):209. Here as the baseline of that name in the
MVTec AD paper (Paul Bergmann, Michael Fauser, David Sattlegger, Carsten Steger; CVPR 2019, section 4.1.3), whose
implementation was not released: patches of 16 x 16 pixels, ResNet18, a PCA that keeps 95 % of the variance, k-means
with ten centres, and a map from patches four pixels apart.

Differences from the text: every image has the protocol's size (the paper enlarges textures to 512 pixels). Open there,
and taken from an implementation of Napoletano's method: the coarse map is brought to full size by averaging over all
patches that cover a pixel. It also enlarges patches and standardises the principal components, which the MVTec AD paper
does not mention: `enlarge` and `whiten`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_bench.components.clustering import k_means
from anomaly_bench.components.neighbours import take_row_counts
from anomaly_bench.components.patches import cut_patches
from anomaly_bench.components.validation import check_fitted, check_sides
from anomaly_bench.errors import UsageError
from anomaly_bench.protocol import Scores

if TYPE_CHECKING:
    from anomaly_bench.protocol import Features, TrainingSet

AT_ONCE = 2048  # patches per pass of the network


class CNNFeatureDictionary(nn.Module):
    """The dictionary of the MVTec AD paper.

    Args:
        backbone: a frozen network read at one level, which is averaged over a patch.
        seed: for drawing patches and for k-means.
        patch: side of a patch in pixels.
        stride: between the patches of an image that is scored, in pixels; a divisor of `patch`.
        patches: drawn from the training images, with replacement.
        variance: that the principal components keep, as a share.
        clusters: centres of the dictionary.
        starts, rounds: of k-means.
        enlarge: side in pixels to which a patch is resized (bicubic) for the network; None: as it is.
        whiten: divide each component by its deviation before clustering.
        batch: images per step of fitting.
    """

    mean: Tensor  # (D,) of the features
    components: Tensor  # (R, D) principal axes
    centres: Tensor  # (R, K), each a column

    def __init__(
        self,
        backbone: Features,
        seed: int,
        patch: int = 16,
        stride: int = 4,
        patches: int = 50_000,
        variance: float = 0.95,
        clusters: int = 10,
        starts: int = 10,
        rounds: int = 100,
        enlarge: int | None = None,
        whiten: bool = False,
        batch: int = 32,
    ) -> None:
        if stride < 1 or patch % stride:
            raise UsageError(f"method.stride={stride}: expected a divisor of method.patch={patch}")
        if not 0 < variance < 1:
            raise UsageError(f"method.variance={variance}: expected a share between 0 and 1")
        if not 1 <= clusters <= patches:
            raise UsageError(f"method.clusters={clusters} of method.patches={patches}: expected 1 to {patches}")
        super().__init__()
        self.backbone, self.seed, self.patch, self.stride, self.patches = backbone, seed, patch, stride, patches
        self.variance, self.clusters, self.starts, self.rounds = variance, clusters, starts, rounds
        self.enlarge, self.whiten, self.batch = enlarge, whiten, batch

    def build(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Create an empty dictionary for the features of one (C, h, w) level.

        Raises:
            UsageError: several levels.
        """
        if len(shapes) != 1:
            raise UsageError(f"the backbone returns {len(shapes)} levels; expected one: set method.levels to it")
        self.register_buffer("mean", torch.empty(shapes[0][0]))
        self.register_buffer("components", torch.empty(0, shapes[0][0]))
        self.register_buffer("centres", torch.empty(0, self.clusters))

    def fit(self, normals: TrainingSet) -> None:
        """Draw patches, reduce their features, and cluster them.

        Raises:
            UsageError: the network cannot take such small patches, or the images' sides are no multiples of `stride`.
        """
        check_sides("cnn_feature_dictionary", normals.size, self.stride)
        self.check_backbone(normals.device)
        features = self.draw(normals)
        reduced = self.reduce(features)
        self.centres = k_means(reduced, self.clusters, self.seed, self.rounds, self.starts).T.contiguous()

    def check_backbone(self, device: torch.device | str) -> None:
        """Pass an empty patch, before the work.

        Raises:
            UsageError: the network cannot take it.
        """
        try:
            self.features(torch.zeros(1, 3, self.patch, self.patch, device=device))
        except (RuntimeError, UsageError) as error:
            side = self.enlarge or self.patch
            raise UsageError(
                f"the backbone cannot take patches of {side} x {side} pixels ({str(error).splitlines()[0]}); "
                "set method.enlarge to a larger size, such as 64, or take another backbone or level"
            ) from error

    def draw(self, normals: TrainingSet) -> Tensor:
        """(patches, D) features of patches at uniformly drawn places of uniformly drawn images."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        numbers = torch.randint(len(normals), (self.patches,), generator=generator).sort().values
        tops, lefts = (
            torch.randint(side - self.patch + 1, (self.patches,), generator=generator) for side in normals.size
        )
        found, first = [], 0
        for images in normals.images(self.batch):
            here = (numbers >= first) & (numbers < first + len(images))
            number, top, left = (each[here].to(images.device) for each in (numbers - first, tops, lefts))
            found.append(self.features(cut_patches(images, number, top, left, self.patch)))
            first += len(images)
        return torch.cat(found)

    def features(self, patches: Tensor) -> Tensor:
        """(n, 3, patch, patch) -> (n, D)."""
        size = (self.enlarge or self.patch,) * 2
        found = []
        for part in torch.split(patches, AT_ONCE):
            if self.enlarge:
                part = F.interpolate(part, size, mode="bicubic", align_corners=False)
            (level,) = self.backbone(part)
            found.append(level.mean(dim=(2, 3)))
        return torch.cat(found) if found else patches.new_empty(0, len(self.mean))

    def reduce(self, features: Tensor) -> Tensor:
        """Fit the PCA to (n, D) features; returns their projections (n, R)."""
        from sklearn.decomposition import PCA  # slow to import

        pca = PCA(self.variance, svd_solver="full").fit(features.cpu().double().numpy())
        axes = torch.from_numpy(pca.components_)
        if self.whiten:
            axes /= torch.from_numpy(pca.explained_variance_).sqrt()[:, None]
        self.mean.copy_(torch.from_numpy(pca.mean_))
        self.components = axes.to(features).contiguous()  # as a loaded one is, for the same bits
        return self.project(features)

    def project(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.components.T

    def score(self, images: Tensor) -> Scores:
        """Distances to the nearest centre, averaged over the patches that cover a pixel; image scores are the maxima.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Raises:
            NotFittedError: before `fit`.
            UsageError: sides that are no multiples of `stride`.
        """
        check_fitted(self)
        check_sides("cnn_feature_dictionary", images.shape[2:], self.stride)
        whole = torch.compiler.is_compiling()  # a graph has no loops
        coarse = torch.cat([self.coarse_map(part) for part in ((images,) if whole else torch.split(images, 1))])
        maps = average_over_patches(coarse, self.patch, self.stride)
        return Scores(maps.amax(dim=(1, 2)), maps)

    def coarse_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w) distances of the patches `stride` pixels apart."""
        columns = F.unfold(images, self.patch, stride=self.stride)  # (B, 3 * patch^2, h * w)
        projected = self.project(self.features(columns.mT.reshape(-1, 3, self.patch, self.patch)))
        distances = torch.cdist(projected, self.centres.T, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        return distances.view(-1, *((side - self.patch) // self.stride + 1 for side in images.shape[2:]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_row_counts(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def average_over_patches(coarse: Tensor, patch: int, stride: int) -> Tensor:
    """(B, h, w) values of patches -> (B, H, W): at each pixel, the mean over all patches that cover it."""
    spread = coarse.new_ones(1, 1, patch, patch)
    sums = F.conv_transpose2d(coarse[:, None], spread, stride=stride)
    counts = F.conv_transpose2d(torch.ones_like(coarse[:1, None]), spread, stride=stride)
    return (sums / counts)[:, 0]
