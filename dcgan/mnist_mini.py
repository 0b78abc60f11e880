"""`mnist-mini`: a part of MNIST (LeCun, Cortes and Burges, CC BY-SA 3.0) to ship in the package.

8,000 training digits come from MNIST's training split, 2,000 validation digits from its validation
split and 2,000 test digits from its test file, so that nothing learned on one full split has seen
another split of the small one. The file is a plain `.npz` inside xz: keys
`{train,validation,test}_{images,labels}`, images (N, 28, 28) uint8, labels (N,) uint8.

`python -m dcgan.mnist_mini --data-dir DIR` makes it again, byte for byte the same arrays.
"""

import hashlib
import io
import lzma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcgan import cli
from dcgan.data import MINI_PATH, Arrays, Source, load_split

SIZES = {"train": 8_000, "validation": 2_000, "test": 2_000}


def stratified(labels: NDArray[np.uint8], size: int, seed: int) -> NDArray[np.intp]:
    """Indices of `size` items with each digit's share as in `labels` (largest remainders), in
    random order. (size,)"""
    rng = np.random.default_rng(seed)
    exact = np.bincount(labels, minlength=10) * size / len(labels)  # (10,)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact)[: size - counts.sum()]] += 1
    picked = [
        rng.permutation(np.flatnonzero(labels == digit))[:count]
        for digit, count in enumerate(counts)
    ]
    return rng.permutation(np.concatenate(picked))


def make(data_dir: Path, path: Path) -> str:
    """Picks the digits from the full MNIST under `data_dir`, writes them to `path`, returns the
    file's sha256."""
    arrays: Arrays = {}
    for seed, (split, size) in enumerate(SIZES.items()):
        full = load_split(Source("mnist", data_dir=data_dir), split)
        images, labels = full.images.numpy()[:, 0], full.labels.numpy().astype(np.uint8)
        index = stratified(labels, size, seed)
        arrays |= {f"{split}_images": images[index], f"{split}_labels": labels[index]}
    buffer = io.BytesIO()
    # numpy's stub takes the names for its own keywords
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    packed = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    path.write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


def main() -> None:
    parser = cli.Parser(
        prog="python -m dcgan.mnist_mini", description="Make mnist-mini from full MNIST."
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with MNIST/raw")
    text = "file to write (default: the one in the package)"
    parser.add_argument("--out", type=Path, default=MINI_PATH, help=text)
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        print(f"{args.out}: sha256 {make(args.data_dir, args.out)}")


if __name__ == "__main__":
    main()
