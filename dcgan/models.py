"""Generator and discriminator of DCGAN (Radford, Metz and Chintala 2016, arXiv 1511.06434, section 3).

Batch norm in both nets except at G's output and D's input, ReLU in G, LeakyReLU 0.2 in D, tanh at the output, weights
drawn from N(0, 0.02). D returns logits. The paper's 64-pixel, four-stage nets are here for any image size and depth.

R replicas (seeds of one config) are one net: convolutions of R groups, batch norms over R times the channels, R linear
maps. Nothing passes from one to another, so with losses summed over replicas and element-wise optimizers they train as R
nets would alone. Every parameter and statistic is theirs one after another along its first dimension (`stack`, `part`).

Maps are kept channels last throughout, also where they become vectors: a CPU takes ten times as long for an activation's
gradient where one side is laid out otherwise (docs/log.md).

Shapes: N batch, R replicas, Z latent size, C channels, S image size, W width, M width of the smallest map.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dcgan.config import TrainConfig

Weights = Mapping[str, Tensor]


def map_sizes(image_size: int, depth: int) -> list[int]:
    """Widths of the square maps from the image down to the smallest, halved and rounded down at each stage."""
    return [image_size >> stage for stage in range(depth + 1)]


class Linear(nn.Linear):
    """R linear maps side by side: (N, R, I) to (N, R, O)."""

    def __init__(self, replicas: int, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(inputs, replicas * outputs, bias=bias)
        self.replicas = replicas

    def forward(self, x: Tensor) -> Tensor:
        if self.replicas == 1:
            return super().forward(x)
        weight: Tensor = self.weight.unflatten(0, (self.replicas, -1))  # (R, O, I)
        y: Tensor = torch.einsum("nri,roi->nro", x, weight)
        if self.bias is not None:
            y += self.bias.unflatten(0, (self.replicas, -1))
        return y


class ToMap(nn.Module):
    """Vectors (N, R, W M^2) to maps (N, R W, M, M)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = x.unflatten(2, (self.size, self.size, -1))  # (N, R, M, M, W)
        return rows.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2)


class FromMap(nn.Module):
    """Maps (N, R W, M, M) to vectors (N, R, W M^2)."""

    def __init__(self, replicas: int) -> None:
        super().__init__()
        self.replicas = replicas

    def forward(self, x: Tensor) -> Tensor:
        pixels: Tensor = x.permute(0, 2, 3, 1).unflatten(3, (self.replicas, -1))  # (N, M, M, R, W)
        return pixels.permute(0, 3, 1, 2, 4).flatten(2)


class Generator(nn.Module):
    """G: noise (N, R Z) to images (N, R C, S, S) in [-1, 1].

    Project and reshape, `depth` transposed convolutions of stride 2, and `extra_convs` 3x3 blocks of stride 1 on the
    last hidden map.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        R = config.replicas
        sizes = map_sizes(config.image_size, config.generator_depth)
        width = R * config.generator_width << (config.generator_depth - 1)
        layers: list[nn.Module] = [
            nn.Unflatten(1, (R, config.latent_size)),
            Linear(R, config.latent_size, width // R * sizes[-1] ** 2, bias=False),
            ToMap(sizes[-1]),  # (N, R W 2^(depth-1), M, M)
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        for size, larger in zip(sizes[:1:-1], sizes[-2:0:-1], strict=True):
            padding = larger - 2 * size
            up = nn.ConvTranspose2d(width, width // 2, 4, 2, 1, output_padding=padding, groups=R, bias=False)
            layers += [up, nn.BatchNorm2d(width // 2), nn.ReLU(inplace=True)]
            width //= 2
        for _ in range(config.extra_convs):
            conv = nn.Conv2d(width, width, 3, 1, 1, groups=R, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        padding = sizes[0] - 2 * sizes[1]
        layers.append(nn.ConvTranspose2d(width, R * config.channels, 4, 2, 1, output_padding=padding, groups=R))
        self.layers = nn.Sequential(*layers, nn.Tanh())  # (N, R C, S, S)

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.layers(noise)
        return images


class Discriminator(nn.Module):
    """D: images (N, R C, S, S) to logits (N, R), positive for real. `depth` convolutions of stride 2 and a linear layer."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        R = config.replicas
        sizes = map_sizes(config.image_size, config.discriminator_depth)
        width = R * config.discriminator_width
        first = nn.Conv2d(R * config.channels, width, 4, 2, 1, groups=R)
        layers: list[nn.Module] = [first, nn.LeakyReLU(0.2, inplace=True)]
        for _ in sizes[2:]:
            down = nn.Conv2d(width, 2 * width, 4, 2, 1, groups=R, bias=False)
            layers += [down, nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, inplace=True)]
            width *= 2
        self.layers = nn.Sequential(*layers, FromMap(R), Linear(R, width // R * sizes[-1] ** 2, 1, bias=True))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)  # (N, R, 1)
        return logits.squeeze(2)


@torch.no_grad()
def initialise(net: nn.Module, rng: torch.Generator) -> None:
    """DCGAN's initial weights, drawn from `rng` on the CPU so that every device starts alike."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.weight.normal_(0.0, 0.02, generator=rng)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1.0, 0.02, generator=rng)
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            bias.zero_()


def build(config: TrainConfig) -> tuple[Generator, Discriminator]:
    """Both nets on the CPU with initial weights that each replica's seed alone determines."""
    generator, discriminator = Generator(config), Discriminator(config)
    if config.replicas > 1:
        singles = [build(dataclasses.replace(config, seed=config.seed + r, replicas=1)) for r in range(config.replicas)]
        generator.load_state_dict(stack([G.state_dict() for G, _ in singles]))
        discriminator.load_state_dict(stack([D.state_dict() for _, D in singles]))
        return generator, discriminator
    rng = torch.Generator().manual_seed(config.seed)
    initialise(generator, rng)
    initialise(discriminator, rng)
    return generator, discriminator


def stack(nets: Sequence[Weights]) -> dict[str, Tensor]:
    """The weights of a net of all replicas from those of each one's own. (Counts of batches have no dimension.)"""
    return {name: torch.cat([net[name] for net in nets]) if tensor.dim() else tensor for name, tensor in nets[0].items()}


def part(weights: Weights, replica: int, replicas: int) -> dict[str, Tensor]:
    """One replica's own weights from those of a net of all."""
    return {name: tensor.chunk(replicas)[replica] if tensor.dim() else tensor for name, tensor in weights.items()}


@torch.no_grad()
def update_average(average: nn.Module, live: nn.Module, decay: Tensor | float) -> None:
    """Moves `average` towards `live`: a = decay * a + (1 - decay) * w, for weights and batch-norm statistics alike."""
    for a, w in zip(average.state_dict().values(), live.state_dict().values(), strict=True):
        if a.is_floating_point():
            a.lerp_(w, 1 - decay)
        else:
            a.copy_(w)
