"""Generator and discriminator of DCGAN (Radford et al. 2016, arXiv 1511.06434, section 3).

Batch norm in both nets except at G's output and D's input (D may have another norm, or none), ReLU
in G, LeakyReLU 0.2 in D, tanh at the output, weights drawn from N(0, 0.02). D returns logits. The
paper's 64-pixel, four-stage nets are here for any image size and depth, and for L lanes side by
side (`dcgan.lanes`).

Shapes: N batch, L lanes, Z latent size, C channels, S image size, W width, M smallest map's side.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dcgan.config import TrainConfig
from dcgan.lanes import (
    BatchNorm,
    FromMap,
    Linear,
    PatchConv,
    PatchUpConv,
    Projection,
    SpectralConv,
    SpectralLinear,
    ToMap,
    join_lanes,
)
from dcgan.ways import WAYS, Way

GROUPED = WAYS["grouped"]


class Generator(nn.Module):
    """G: noise (N, L Z), with one-hot labels (N, L, K) of a conditional net beside it, to images
    (N, L C, S, S) in [-1, 1]: a projection, `depth` transposed convolutions of stride 2, and
    `extra_convs` 3x3 blocks of stride 1 on the last hidden map."""

    def __init__(self, config: TrainConfig, lanes: int = 1, way: Way = GROUPED) -> None:
        super().__init__()
        depth = config.generator_depth
        # sides and channels of the maps, from the smallest to the image, and to the last hidden one
        size, *sizes = (config.image_size >> stage for stage in reversed(range(depth + 1)))
        width, *widths = (config.generator_width << stage for stage in reversed(range(depth)))
        layers: list[nn.Module] = [
            nn.Unflatten(1, (lanes, config.latent_size)),
            Linear(lanes, config.latent_size + config.label_size, width * size**2, bias=False),
            ToMap(size, way.layout),  # (N, L W 2^(depth-1), M, M)
            BatchNorm(lanes * width),
            nn.ReLU(inplace=True),
        ]
        for larger, narrower in zip(sizes[:-1], widths, strict=True):
            up = up_convolution(lanes, width, narrower, size, larger, bias=False)
            layers += [up, BatchNorm(lanes * narrower), nn.ReLU(inplace=True)]
            size, width = larger, narrower
        for _ in range(config.extra_convs):
            conv = nn.Conv2d(lanes * width, lanes * width, 3, 1, 1, groups=lanes, bias=False)
            layers += [conv, BatchNorm(lanes * width), nn.ReLU(inplace=True)]
        kind = PatchUpConv if way.patches else nn.ConvTranspose2d
        last = up_convolution(lanes, width, config.channels, size, sizes[-1], bias=True, kind=kind)
        self.layers = nn.Sequential(*layers, last, nn.Tanh())  # (N, L C, S, S)

        self.classes = config.label_size

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        split, *others = self.layers
        x: Tensor = split(noise)  # (N, L, Z)
        if labels is not None:
            x = torch.cat([x, labels.to(x.dtype)], 2)
        for layer in others:
            x = layer(x)
        return x


def up_convolution(
    lanes: int,
    inputs: int,
    outputs: int,
    size: int,
    larger: int,
    *,
    bias: bool,
    kind: type[nn.ConvTranspose2d] = nn.ConvTranspose2d,
) -> nn.ConvTranspose2d:
    """A transposed convolution in each lane, to maps twice the size or one pixel more."""
    output_padding = larger - 2 * size
    inputs, outputs = lanes * inputs, lanes * outputs
    return kind(inputs, outputs, 4, 2, 1, output_padding, groups=lanes, bias=bias)


class Discriminator(nn.Module):
    """D: images (N, L C, S, S), with one-hot labels (N, L, K) of a conditional net, to logits
    (N, L), positive for real: `depth` convolutions of stride 2 and a linear layer."""

    def __init__(self, config: TrainConfig, lanes: int = 1, way: Way = GROUPED) -> None:
        super().__init__()
        depth, narrowest = config.discriminator_depth, config.discriminator_width
        smallest = config.image_size >> depth
        widths = [narrowest << stage for stage in range(depth)]
        layers: list[nn.Module] = []
        maps = config.label_size if config.conditional == "concat" else 0
        for inputs, outputs in pairwise([config.channels + maps, *widths]):
            first = not layers
            layers.append(down_convolution(config, lanes, inputs, outputs, way, first=first))
            if config.discriminator_norm == "batch" and not first:
                layers.append(BatchNorm(lanes * outputs))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        kind = SpectralLinear if config.discriminator_norm == "spectral" else Linear
        features = widths[-1] * smallest**2
        self.layers = nn.Sequential(*layers, FromMap(lanes), kind(lanes, features, 1, bias=True))
        self.maps, self.layout = maps, way.layout
        self.projection: Projection | None = None
        if config.conditional == "projection":
            self.projection = Projection(lanes, features, config.label_size)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None and self.maps:
            images = with_maps(images, labels).contiguous(memory_format=self.layout)
        *others, linear = self.layers
        features = images
        for layer in others:
            features = layer(features)  # (N, L, F) at last
        logits: Tensor = linear(features).squeeze(2)
        if labels is not None and self.projection is not None:
            logits = logits + self.projection(features, labels.to(features.dtype))
        return logits


def with_maps(images: Tensor, labels: Tensor) -> Tensor:
    """Images (N, L C, S, S) with a map of ones for each lane's label (N, L, K) and maps of zeros
    for the other classes: (N, L (C + K), S, S)."""
    lanes, S = labels.shape[1], images.shape[-1]
    maps = labels.to(images.dtype)[..., None, None].expand(-1, -1, -1, S, S)
    return torch.cat([images.unflatten(1, (lanes, -1)), maps], 2).flatten(1, 2)


def down_convolution(
    config: TrainConfig, lanes: int, inputs: int, outputs: int, way: Way, *, first: bool
) -> nn.Conv2d:
    """A convolution of D in each lane, to maps of half the size; without a bias where batch norm
    follows."""
    inputs, outputs = lanes * inputs, lanes * outputs
    if config.discriminator_norm == "spectral":
        return SpectralConv(inputs, outputs, groups=lanes)
    kind = PatchConv if way.patches and first else nn.Conv2d
    bias = first or config.discriminator_norm == "none"
    return kind(inputs, outputs, 4, 2, 1, groups=lanes, bias=bias)


@torch.no_grad()
def initialise(net: nn.Module, rng: torch.Generator) -> None:
    """DCGAN's initial weights, drawn from `rng` on the CPU so that every device starts alike."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | Projection):
            layer.weight.normal_(0.0, 0.02, generator=rng)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1.0, 0.02, generator=rng)
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            bias.zero_()


def build(lanes: Sequence[TrainConfig], way: Way = GROUPED) -> tuple[Generator, Discriminator]:
    """Both nets of all lanes, on the CPU; each lane's seed alone determines its weights."""
    singles = []
    for lane in lanes:
        G, D = Generator(lane, way=way), Discriminator(lane, way=way)
        rng = torch.Generator().manual_seed(lane.seed)
        initialise(G, rng)
        initialise(D, rng)
        singles.append((G, D))
    if len(lanes) == 1:
        return singles[0]
    G, D = Generator(lanes[0], len(lanes), way), Discriminator(lanes[0], len(lanes), way)
    G.load_state_dict(join_lanes([G.state_dict() for G, _ in singles]))
    D.load_state_dict(join_lanes([D.state_dict() for _, D in singles]))
    return G, D


@torch.no_grad()
def update_average(average: nn.Module, live: nn.Module, decay: Tensor | float) -> None:
    """Moves the average's weights and statistics: a = decay * a + (1 - decay) * w."""
    move_towards(average, live, 1 - decay)


@torch.no_grad()
def move_towards(average: nn.Module, live: nn.Module, share: Tensor | float) -> None:
    """Moves the average's weights and statistics: a = a + share * (w - a). (By private functions of
    torch: a kernel for all tensors instead of one for each.)"""
    pairs = zip(average.state_dict().values(), live.state_dict().values(), strict=True)
    moving = [(a, w) for a, w in pairs if a.is_floating_point()]  # counts of batches are not read
    averages, weights = (list(tensors) for tensors in zip(*moving, strict=True))
    differences = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(differences, share)
    torch._foreach_add_(averages, differences)
