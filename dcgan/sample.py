"""`python -m dcgan.sample CHECKPOINT`: pictures from a trained generator."""

from pathlib import Path

import torch

from dcgan import cli
from dcgan.checkpoint import load_generator
from dcgan.config import MOST_SEED, TrainConfig
from dcgan.images import interpolate, sample, sample_grid, save_grid
from dcgan.settings import check_bounds

MOST_IMAGES = 10_000
MOST_STEPS = 1_000


def check_label(label: int, config: TrainConfig) -> None:
    """Refuses a label that the generator was not trained for by a ValueError."""
    if not config.label_size:
        raise ValueError(
            f"--label is {label}, but this generator knows no labels; train one with "
            f"--conditional projection"
        )
    check_bounds("--label", label, 0, config.label_size - 1)


def main() -> None:
    parser = cli.Parser(
        prog="python -m dcgan.sample",
        description="Draw images from a checkpoint's generator as a PNG.",
    )
    add = parser.add_argument
    text = "a checkpoint.pt, or a folder that holds one or was written by dcgan.export"
    add("checkpoint", type=Path, help=text)
    add("--out", type=Path, default=Path("samples.png"), help="PNG to write (default: samples.png)")
    text = (
        "images in the grid, of a conditional generator about as many, or strips to interpolate "
        "(default: 64)"
    )
    add("--count", type=int, default=64, help=text)
    text = "draw strips of STEPS images between two noises"
    add("--interpolate", type=int, metavar="STEPS", help=text)
    add("--seed", type=int, help="seed of the noise (default: the fixed evaluation noise)")
    add("--last", action="store_true", help="the last epoch's generator, not the best epoch's")
    text = "the class of all images, of a conditional generator (default: a class a row)"
    add("--label", type=int, metavar="K", help=text)
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        check_bounds("--count", args.count, 1, MOST_IMAGES, "a grid is one picture in memory")
        if args.seed is not None:
            check_bounds("--seed", args.seed, 0, MOST_SEED)
        steps = args.interpolate
        if steps is not None:
            check_bounds("--interpolate", steps, 2, MOST_STEPS, "a strip is a row of a picture")
        generator, config, epoch = load_generator(args.checkpoint, last=args.last)
        size, columns = config.latent_size, steps
        if args.label is not None:
            check_label(args.label, config)
        if steps:
            seed = args.seed or 0
            images = interpolate(generator, size, steps, args.count, seed, args.label)
        elif args.label is not None:
            labels = torch.full((args.count,), args.label)
            images = sample(generator, size, args.count, args.seed, labels)
        else:
            images, columns = sample_grid(generator, size, args.count, args.seed)
        picture = save_grid(images, args.out, columns=columns)
        of_epoch = f" of epoch {epoch}" if epoch else ""  # an exported one does not say
        print(f"{picture}: {len(images)} images{of_epoch}")


if __name__ == "__main__":
    main()
