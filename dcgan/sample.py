"""`python -m dcgan.sample CHECKPOINT`: pictures from a trained generator."""

from pathlib import Path

from dcgan import cli
from dcgan.checkpoint import load_generator
from dcgan.images import interpolate, sample, save_grid


def main() -> None:
    parser = cli.Parser(prog="python -m dcgan.sample", description="Draw digits from a checkpoint's generator as a PNG.")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint.pt, or a folder that holds one")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="PNG to write (default: samples.png)")
    parser.add_argument("--count", type=int, default=64, help="images in the grid, or strips to interpolate (default: 64)")
    parser.add_argument("--interpolate", type=int, metavar="STEPS", help="draw strips of STEPS images between two noises")
    parser.add_argument("--seed", type=int, help="seed of the noise (default: the fixed evaluation noise)")
    parser.add_argument("--last", action="store_true", help="the last epoch's generator instead of the best epoch's")
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        if args.count < 1:
            raise ValueError(f"--count is {args.count}; allowed is at least 1")
        if args.seed is not None and not 0 <= args.seed < 2**32:
            raise ValueError(f"--seed is {args.seed}; allowed is 0 to {2**32 - 1}")
        if args.interpolate is not None and args.interpolate < 2:
            raise ValueError(f"--interpolate is {args.interpolate}; a strip needs at least 2 images")
        generator, config, epoch = load_generator(args.checkpoint, last=args.last)
        if args.interpolate:
            images = interpolate(generator, config.latent_size, args.interpolate, args.count, args.seed or 0)
        else:
            images = sample(generator, config.latent_size, args.count, args.seed)
        print(f"{save_grid(images, args.out, columns=args.interpolate)}: {len(images)} images of epoch {epoch}")


if __name__ == "__main__":
    main()
