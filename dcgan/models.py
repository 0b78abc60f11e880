"""Generator and discriminator of DCGAN (Radford, Metz and Chintala 2016, arXiv 1511.06434, section 3).

Batch norm in both nets except at G's output and D's input, ReLU in G, LeakyReLU 0.2 in D, tanh at the output, weights
drawn from N(0, 0.02). D returns logits. The paper's 64-pixel, four-stage nets are here for any image size and depth.

Shapes: N batch, Z latent size, C channels, S image size, W width, M width of the smallest map.
"""

import torch
from torch import Tensor, nn

from dcgan.config import TrainConfig


def map_sizes(image_size: int, depth: int) -> list[int]:
    """Widths of the square maps from the image down to the smallest, halved and rounded down at each stage."""
    return [image_size >> stage for stage in range(depth + 1)]


class Generator(nn.Module):
    """G: noise (N, Z) to images (N, C, S, S) in [-1, 1].

    Project and reshape, `depth` transposed convolutions of stride 2, and `extra_convs` 3x3 blocks of stride 1 on the
    last hidden map.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        sizes = map_sizes(config.image_size, config.generator_depth)
        width = config.generator_width << (config.generator_depth - 1)
        layers: list[nn.Module] = [
            nn.Linear(config.latent_size, width * sizes[-1] ** 2, bias=False),
            nn.Unflatten(1, (width, sizes[-1], sizes[-1])),  # (N, W * 2^(depth-1), M, M)
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        for size, larger in zip(sizes[:1:-1], sizes[-2:0:-1], strict=True):
            up = nn.ConvTranspose2d(width, width // 2, 4, 2, 1, output_padding=larger - 2 * size, bias=False)
            layers += [up, nn.BatchNorm2d(width // 2), nn.ReLU(inplace=True)]
            width //= 2
        for _ in range(config.extra_convs):
            conv = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers.append(nn.ConvTranspose2d(width, config.channels, 4, 2, 1, output_padding=sizes[0] - 2 * sizes[1]))
        self.layers = nn.Sequential(*layers, nn.Tanh())  # (N, C, S, S)

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.layers(noise)
        return images


class Discriminator(nn.Module):
    """D: images (N, C, S, S) to logits (N,), positive for real. `depth` convolutions of stride 2 and a linear layer."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        sizes = map_sizes(config.image_size, config.discriminator_depth)
        width = config.discriminator_width
        layers: list[nn.Module] = [nn.Conv2d(config.channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for _ in sizes[2:]:
            down = nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False)
            layers += [down, nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, inplace=True)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * sizes[-1] ** 2, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)  # (N, 1)
        return logits.squeeze(1)


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
    """Both nets on the CPU with initial weights that the seed alone determines."""
    rng = torch.Generator().manual_seed(config.seed)
    generator, discriminator = Generator(config), Discriminator(config)
    initialise(generator, rng)
    initialise(discriminator, rng)
    return generator, discriminator


@torch.no_grad()
def update_average(average: nn.Module, live: nn.Module, decay: float) -> None:
    """Moves `average` towards `live`: a = decay * a + (1 - decay) * w, for weights and batch-norm statistics alike."""
    for a, w in zip(average.state_dict().values(), live.state_dict().values(), strict=True):
        if a.is_floating_point():
            a.lerp_(w, 1 - decay)
        else:
            a.copy_(w)
