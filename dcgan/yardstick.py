"""The yardstick: a small digit classifier whose features and predictions every quality metric uses.

Inception features, the field's habit, know photographs, not digits. This network was trained for
this package on MNIST's training split alone (50,000 digits; validation and test never seen), and
ships with a card. Values measured with other extractors do not compare with these.

`python -m dcgan.yardstick` trains it again.

Shapes: N images, C channels, S image size, F = 128 features.
"""

import argparse
import datetime
import functools
import hashlib
import itertools
import json
import platform
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dcgan import cli
from dcgan.data import Source, Split, load_split, read_asset, to_unit_range
from dcgan.files import write_json
from dcgan.precision import default_device
from dcgan.settings import check_bounds

ASSETS = Path(__file__).parent / "assets"
PATH = ASSETS / "yardstick.safetensors"
CARD = ASSETS / "yardstick.json"
SHA256 = "1fa29a6cf59e2417c0ddeebad0b4615979bb7611ecbea7c1979b2c6332f83d59"
FEATURES = 128
SIZE = 28  # pixels a side that the network was trained on


class Yardstick(nn.Module):
    """Digit classifier: images (N, 1, 28, 28) in [-1, 1] to features (N, F) and logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.features = nn.Sequential(
            *_block(1, 32, 5, 2, pool),
            *_block(32, 64, 3, 1, pool),
            *_block(64, 64, 3, 1),
            *_block(64, FEATURES, 3, 0),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classify = nn.Linear(FEATURES, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, self.classify(features)


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
def extract(yardstick: Yardstick, images: Tensor) -> Extracted:
    """Features and predictions of images (N, C, S, S), uint8 or in [-1, 1], of any S and 1 or 3
    channels."""
    features, logits = [], []
    for batch in torch.split(images, batch_size(images.device)):
        x = to_unit_range(batch).mean(1, keepdim=True)  # (N, 1, S, S)
        if x.shape[-1] != SIZE:
            x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        f, y = yardstick(x.contiguous(memory_format=torch.channels_last))
        features.append(f)
        logits.append(y)
    return Extracted(torch.cat(features), torch.cat(logits).softmax(1))


@functools.cache
def load_yardstick(device: torch.device) -> Yardstick:
    """The shipped network in evaluation mode."""
    yardstick = Yardstick()
    yardstick.load_state_dict(unpack(read_asset(PATH, SHA256)))
    fold(yardstick.eval().features)
    yardstick.requires_grad_(False)
    yardstick.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return yardstick


def unpack(content: bytes) -> dict[str, Tensor]:
    """The float32 and int64 tensors of a safetensors file, by name: 8 bytes of header length, a
    JSON header of names, shapes and byte ranges, then the tensors. No library, since dcgan must run
    where only PyTorch is installed."""
    dtypes = {"F32": torch.float32, "I64": torch.int64}
    start = 8 + struct.unpack_from("<Q", content)[0]
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        low, high = entry["data_offsets"]
        raw = bytearray(content[start + low : start + high])  # a tensor must be writable
        tensors[name] = torch.frombuffer(raw, dtype=dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Random turns (to 15 degrees), scales (0.85 to 1.15) and shifts (to 2.8 pixels) of images
    (N, 1, 28, 28)."""
    n = len(images)
    drawn = torch.rand(4, n, generator=rng, device=images.device).mul_(2).sub_(1)  # (4, N)
    angle = drawn[0] * torch.pi / 12
    scale = 1 + 0.15 * drawn[1]
    dx, dy = drawn[2], drawn[3]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, -sin, 0.2 * dx], 1), torch.stack([sin, cos, 0.2 * dy], 1)]
    size = list(images.shape)
    grid = F.affine_grid(torch.stack(rows, 1), size, align_corners=False)  # (N, 28, 28, 2)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # background is -1, padding 0


def fit(
    split: Split, *, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> Yardstick:
    """Trains a yardstick. Label smoothing would erase what tells digits of one class apart."""
    device = split.images.device
    torch.manual_seed(seed)
    rng = torch.Generator(device).manual_seed(seed)
    net = Yardstick().to(device)
    steps = len(split.images) // batch_size
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=0.01)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    schedule = one_cycle(optimizer, learning_rate, total_steps=steps * epochs)
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        order = torch.randperm(len(split.images), generator=rng, device=device)
        for index in order[: steps * batch_size].split(batch_size):
            _, logits = net(augment(to_unit_range(split.images[index]), rng))
            loss = F.cross_entropy(logits, split.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        print(f"epoch {epoch + 1}/{epochs}: loss {total.item() / steps:.4f}", flush=True)
    return net.eval()


def accuracy(net: Yardstick, split: Split) -> float:
    """The share of a split's digits named right, 0 to 1."""
    predicted = extract(net, split.images).probabilities.argmax(1)
    return (predicted == split.labels).double().mean().item()


def make(args: argparse.Namespace) -> None:
    """Trains, measures and writes the network and its card."""
    from safetensors.torch import save  # installed with the [dev] extra; reading needs no library

    check_bounds("--epochs", args.epochs, 1)
    recipe = {"epochs": args.epochs, "batch_size": 128, "learning_rate": 4e-3, "seed": args.seed}
    device = default_device()
    data = Source("mnist", data_dir=args.data_dir, device=device)
    unseen = ("validation", "test")
    splits = {name: load_split(data, name) for name in ("train", *unseen)}
    net = fit(splits["train"], **recipe)
    content = save({name: tensor.cpu() for name, tensor in net.state_dict().items()})
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
