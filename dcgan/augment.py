"""Differentiable augmentation of what D sees, real and generated alike (Zhao et al. 2020,
DiffAugment, arXiv 2006.10738): one entry of `AUGMENTATIONS` each.

Random numbers are drawn beforehand, with the noise, since a captured update draws none.

Shapes: N batch, L lanes, C channels, S image size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CALLS = 3  # an update: D's of real and of generated images, and G's


class Augmentation(NamedTuple):
    """A function of images (N, L C, S, S) and standard normal numbers (N, L, K), and K."""

    apply: Callable[[Tensor, Tensor], Tensor]
    numbers: int


def unchanged(images: Tensor, normal: Tensor) -> Tensor:
    """The images themselves."""
    return images


def translate(images: Tensor, normal: Tensor) -> Tensor:
    """Shifts each image by up to an eighth of its size in both directions; what comes in from
    outside is -1, the background. `normal` (N, L, 2) gives rows and columns, uniformly."""
    L, S = normal.shape[1], images.shape[-1]
    most = S // 8
    uniform = torch.special.ndtr(normal.float())  # in (0, 1)
    shifts = (uniform * (2 * most + 1)).floor().clamp(max=2 * most).long()  # 0 to 2 most
    padded = F.pad(images, (most,) * 4, value=-1.0).unflatten(1, (L, -1))  # (N, L, C, S', S')
    places = shifts[..., None] + torch.arange(S, device=images.device)  # (N, L, 2, S)
    rows, columns = places[:, :, 0, None, :, None], places[:, :, 1, None, None, :]
    C, larger = padded.shape[2], padded.shape[-1]
    moved: Tensor = padded.gather(3, rows.expand(-1, -1, C, S, larger))
    moved = moved.gather(4, columns.expand(-1, -1, C, S, S))
    return moved.flatten(1, 2)


def noise_size(name: str, latent_size: int) -> int:
    """Random numbers that an image takes: its noise, and those of its augmentation."""
    return latent_size + CALLS * AUGMENTATIONS[name].numbers


def split_noise(drawn: Tensor, name: str, latent_size: int) -> tuple[Tensor, list[Tensor]]:
    """The noise (N, L Z) and the numbers (N, L, K) of each call, of what was drawn for a batch:
    (N, L (Z + 3 K))."""
    own = drawn.unflatten(1, (-1, noise_size(name, latent_size)))
    noise, numbers = own[..., :latent_size].flatten(1), own[..., latent_size:]
    return noise, list(numbers.chunk(CALLS, 2)) if numbers.shape[2] else [numbers] * CALLS


AUGMENTATIONS = {"none": Augmentation(unchanged, 0), "translation": Augmentation(translate, 2)}
