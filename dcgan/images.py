"""Pictures of generated digits."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dcgan.evaluate import asked_labels, evaluation_noise, generate, great_circles
from dcgan.models import Generator

LINES = 0.25  # brightness of the lines between the images of a grid


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> Path:
    """Writes images (N, C, S, S) in [-1, 1] as one PNG, `columns` to a row (default: as square as
    can be), enlarged so that each is at least 56 pixels wide."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    pixels = images.float().cpu().add(1).div(2).clamp(0, 1)
    grid = side_by_side(pixels, min(columns, len(images)))
    factor = max(1, math.ceil(56 / images.shape[-1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")  # others may be looking at the old one
    enlarged = grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    rounded = enlarged.mul(255).add(0.5).to(torch.uint8).permute(1, 2, 0)  # (H, W, 3)
    Image.fromarray(rounded.numpy()).save(unfinished, format="png")
    unfinished.replace(path)
    return path


def side_by_side(images: Tensor, columns: int) -> Tensor:
    """One picture (3, H, W) of images (N, C, S, S), with lines around each. As
    `torchvision.utils.make_grid`, whose import takes seconds of each process that draws."""
    side = images.shape[-1] + 1
    rows = math.ceil(len(images) / columns)
    grid = images.new_full((3, rows * side + 1, columns * side + 1), LINES)
    for i, image in enumerate(images):
        top, left = i // columns * side + 1, i % columns * side + 1
        grid[:, top : top + side - 1, left : left + side - 1] = image
    return grid


def sample(
    generator: Generator,
    latent_size: int,
    count: int,
    seed: int | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """`count` images (N, C, S, S): from the fixed evaluation noise, or from the noise of `seed`. Of
    a conditional G they are of the labels (N,), or of all classes in turn."""
    if seed is None:
        noise = evaluation_noise(count, latent_size, torch.device("cpu"))
    else:
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, latent_size, generator=rng)
    return generate(generator, noise, labels)


def sample_grid(
    generator: Generator, latent_size: int, count: int, seed: int | None = None
) -> tuple[Tensor, int | None]:
    """About `count` images to show, and how many to a row: of a conditional G a class to a row."""
    if not generator.classes:
        return sample(generator, latent_size, count, seed), None
    columns = max(1, count // generator.classes)
    count = columns * generator.classes
    labels = asked_labels(count, generator.classes, torch.device("cpu"), each=columns)
    return sample(generator, latent_size, count, seed, labels), columns


def interpolate(
    generator: Generator,
    latent_size: int,
    steps: int,
    rows: int,
    seed: int,
    label: int | None = None,
) -> Tensor:
    """Strips of images along great circles between random noises; of a conditional G each of one
    class, which is `label` or the next in turn. (rows * steps, C, S, S)"""
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, rows, latent_size, generator=rng)
    classes = getattr(generator, "classes", 0)
    labels = asked_labels(rows * steps, classes, a.device, each=steps)
    if label is not None:
        labels.fill_(label)
    return generate(generator, great_circles(a, b, steps).flatten(0, 1), labels)
