"""Yardsticks: small classifiers whose features and predictions every quality metric uses.

Inception features, the field's habit, know photographs, not digits. The digits' yardstick was
trained for this package on MNIST's training split alone (50,000 digits; validation and test never
seen), and ships with a card. Any other data set gets one of its own: the same net, trained on its
training split by the same recipe as it is first needed, and kept in a file. Where there are no
labels it learns to tell by how many quarters an image is turned (Gidaris et al. 2018, arXiv
1803.07728). Values measured with different yardsticks do not compare.

`python -m dcgan.yardstick` trains that of the digits again.

Shapes: N images, C channels, S image size, F = 128 features, K classes.
"""

import argparse
import datetime
import functools
import hashlib
import itertools
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dcgan import cli
from dcgan.data import (
    Source,
    Split,
    dataset_of,
    default_data_dir,
    digest_of,
    load_split,
    read_asset,
    to_unit_range,
)
from dcgan.files import replace, write_json
from dcgan.precision import default_device
from dcgan.recipe import RECIPE, TURNS, augment, fit, recipe_for
from dcgan.settings import check_bounds
from dcgan.weights import is_whole, pack, unpack

ASSETS = Path(__file__).parent / "assets"
PATH = ASSETS / "yardstick.safetensors"
CARD = ASSETS / "yardstick.json"
SHA256 = "1fa29a6cf59e2417c0ddeebad0b4615979bb7611ecbea7c1979b2c6332f83d59"
FEATURES = 128
SIZE = 28  # pixels a side that the digits' network was trained on
MOST_SIZE = 32  # that another is trained on
VERSION = 1  # to be raised when a yardstick is trained in another way
SECONDS_BETWEEN_LINES = 30.0  # of progress
HANDED: dict[str, bytes] = {}
"""Weights by data set that another process has trained and handed to this one."""


class Yardstick(nn.Module):
    """Classifier: images (N, C, S, S) in [-1, 1] to features (N, F) and logits (N, K)."""

    sha256 = SHA256  # of the weights

    def __init__(self, size: int = SIZE, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.size, self.channels = size, channels
        self.features = nn.Sequential(
            *_block(channels, 32, 5, 2, pool),
            *_block(32, 64, 3, 1, pool),
            *_block(64, 64, 3, 1),
            *_block(64, FEATURES, 3, 0),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classify = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, self.classify(features)


class Stacked(nn.Module):
    """The digits' yardstick on each of three colours: features (N, 3 F), logits (N, 1000)."""

    def __init__(self, digits: Yardstick) -> None:
        super().__init__()
        self.digits = digits
        self.size, self.channels = digits.size, 3
        self.sha256 = hashlib.sha256(f"stacked {digits.sha256}".encode()).hexdigest()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = [self.digits(colour) for colour in images.split(1, 1)]
        hundreds, tens, ones = (logits for _, logits in found)  # (N, 10)
        # the softmax of sums is the product of the digits' probabilities
        logits = hundreds[:, :, None, None] + tens[:, None, :, None] + ones[:, None, None, :]
        return torch.cat([features for features, _ in found], 1), logits.flatten(1)


def _block(inputs: int, outputs: int, side: int, padding: int, *pool: nn.Module) -> list[nn.Module]:
    # a maximum of rectified values is the rectified maximum, a quarter of the work
    conv = nn.Conv2d(inputs, outputs, side, padding=padding, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *pool, nn.ReLU(inplace=True)]


class Extracted(NamedTuple):
    """Features and predictions of N images."""

    features: Tensor  # (N, F) float32
    probabilities: Tensor  # (N, 10) float32


def fold(features: nn.Sequential) -> None:
    """Folds each batch norm, in evaluation mode, into the convolution before it: a pass less."""
    for i, (conv, norm) in enumerate(itertools.pairwise(list(features))):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            features[i] = fuse_conv_bn_eval(conv, norm)
            features[i + 1] = nn.Identity().eval()


def batch_size(device: torch.device) -> int:
    """Images at once when nothing is learned: few stay in a CPU's cache, many fill a GPU."""
    return 100 if device.type == "cpu" else 1000


@torch.inference_mode()
def extract(yardstick: Yardstick | Stacked, images: Tensor) -> Extracted:
    """Features and predictions of images (N, C, S, S), uint8 or in [-1, 1], of any S and 1 or 3
    channels."""
    features, logits = [], []
    device = next(yardstick.parameters()).device
    for batch in torch.split(images, batch_size(device)):
        f, y = yardstick(as_seen(yardstick, batch.to(device)))
        features.append(f)
        logits.append(y)
    return Extracted(torch.cat(features), torch.cat(logits).softmax(1))


def as_seen(yardstick: Yardstick | Stacked, images: Tensor) -> Tensor:
    """Images in the yardstick's size and channels, in [-1, 1]."""
    x = to_unit_range(images)
    if yardstick.channels == 1:
        x = x.mean(1, keepdim=True)
    elif x.shape[1] == 1:
        x = x.expand(-1, yardstick.channels, -1, -1)
    if x.shape[-1] != yardstick.size:
        size = (yardstick.size, yardstick.size)
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
    return x.contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=8)
def load_yardstick(source: Source) -> Yardstick | Stacked:
    """The yardstick of a source's data set, in evaluation mode, on its device. One that is not
    shipped is trained if neither this process nor the data folder has it, which takes minutes.
    Raises as `load_split`."""
    kind = dataset_of(source).yardstick
    if kind != "own":
        digits = ready(Yardstick(), read_asset(PATH, SHA256), source.device)
        return digits if kind == "digits" else Stacked(digits)
    return ready(own_yardstick(source), own_weights(source), source.device)


def ready(net: Yardstick, weights: bytes, device: torch.device) -> Yardstick:
    """A net with its weights, for use alone."""
    net.load_state_dict(unpack(weights))
    net.sha256 = hashlib.sha256(weights).hexdigest()
    fold(net.eval().features)
    net.requires_grad_(False)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def own_source(source: Source) -> Source:
    """The images that a data set's own yardstick is trained on, whatever those of a run."""
    own = dataset_of(source)
    size = min(own.size, MOST_SIZE)
    return source._replace(image_size=size, channels=own.channels)


def own_yardstick(source: Source) -> Yardstick:
    """An untrained yardstick of a source's data set."""
    own = own_source(source)
    classes = dataset_of(source).classes
    return Yardstick(own.image_size, own.channels, classes if classes > 1 else TURNS)


def own_weights(source: Source) -> bytes:
    """The weights of a data set's own yardstick: those handed to this process, or in the data
    folder, else trained, for which other processes wait. None but these are used from then on."""
    if source.dataset not in HANDED:
        HANDED[source.dataset] = found_weights(source)
    return HANDED[source.dataset]


def found_weights(source: Source) -> bytes:
    """The weights of a data set's own yardstick in the data folder, trained if it has none."""
    split = load_split(own_source(source), "train")
    file = default_data_dir() / "yardsticks" / f"{yardstick_key(source, split)}.safetensors"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if file.is_file() and is_whole(file):
                return file.read_bytes()
            weights = trained_weights(source, split)
            replace(file, weights)
            return weights
    except OSError:  # cannot be written: this process trains it for itself
        return trained_weights(source, split)


def yardstick_key(source: Source, split: Split) -> str:
    """A digest of what a data set's own yardstick is made from."""
    net = own_yardstick(source)
    recipe = recipe_for(len(split.images))
    about = [VERSION, recipe, net.size, net.channels, net.classify.out_features, digest_of(*split)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def trained_weights(source: Source, split: Split) -> bytes:
    """Trains a data set's own yardstick; the content of its safetensors file."""
    labelled = dataset_of(source).classes > 1
    aim = "classes" if labelled else "turns, since it has no labels"
    print(f"training the yardstick of {source.dataset} on its {aim}, once", file=sys.stderr)
    shown = time.monotonic()

    def log(text: str) -> None:
        nonlocal shown
        if time.monotonic() > shown + SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            print(f"  {text}", file=sys.stderr, flush=True)

    trained = fit(
        split,
        **recipe_for(len(split.images)),
        build=functools.partial(own_yardstick, source),
        turned=not labelled,
        log=log,
    )
    return pack({name: tensor.cpu() for name, tensor in trained.state_dict().items()})


def accuracy(net: Yardstick, split: Split) -> float:
    """The share of a split's images named right, 0 to 1."""
    predicted = extract(net, split.images).probabilities.argmax(1)
    return (predicted == split.labels).double().mean().item()


def make(args: argparse.Namespace) -> None:
    """Trains, measures and writes the network and its card."""
    check_bounds("--epochs", args.epochs, 1)
    recipe: dict[str, Any] = {**RECIPE, "epochs": args.epochs, "seed": args.seed}
    device = default_device()
    data = Source("mnist", data_dir=args.data_dir, device=device)
    unseen = ("validation", "test")
    splits = {name: load_split(data, name) for name in ("train", *unseen)}
    net = fit(splits["train"], build=Yardstick, **recipe)
    content = pack({name: tensor.cpu() for name, tensor in net.state_dict().items()})
    card = {
        "what": "digit classifier behind dcgan's metrics; features are the 128 pooled activations "
        "before the last layer",
        "trained_on": "the first 50,000 images of MNIST's training file; nothing else",
        "recipe": {
            **recipe,
            "optimizer": "AdamW, one-cycle learning rate",
            "augmentation": " ".join(str(augment.__doc__).split()),
        },
        "accuracy": {name: round(accuracy(net, splits[name]), 4) for name in unseen},
        "parameters": sum(p.numel() for p in net.parameters()),
        "sha256": hashlib.sha256(content).hexdigest(),
        "made": f"{datetime.date.today()}, torch {torch.__version__}, {device.type}, "
        f"{platform.machine()}",
        "licence": "as this package; MNIST is by LeCun, Cortes and Burges (CC BY-SA 3.0)",
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / PATH.name).write_bytes(content)
    write_json(args.out / CARD.name, card)
    print(json.dumps(card, indent=2))


def main() -> None:
    parser = cli.Parser(
        prog="python -m dcgan.yardstick",
        description="Train the digit classifier behind the metrics on full MNIST's training split; "
        "writes the weights (yardstick.safetensors) and their card (yardstick.json).",
    )
    cli.add_data_dir(parser)
    add = parser.add_argument
    text = "folder to write (default: yardstick)"
    add("--out", type=Path, default=Path("yardstick"), help=text)
    add("--epochs", type=int, default=12, help="passes over the 50,000 digits (default: 12)")
    text = "seed of weights, order and augmentation (default: 0)"
    add("--seed", type=int, default=0, help=text)
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        make(args)


if __name__ == "__main__":
    main()
