"""What one training run can vary, checked where it is made.

The defaults are the baseline: DCGAN (Radford et al. 2016, arXiv 1511.06434) of two stages in each net on MNIST.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

DATASETS = ("mnist", "mnist-mini")
OPTIMIZERS = ("adam", "rmsprop")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run, complete: with the code and the device it determines every number.

    Raises:
        ValueError: a value outside what is allowed; the message names the value, the bounds and the way out.
    """

    dataset: str = "mnist"
    """Data set: `mnist` (50,000/10,000/10,000 digits) or `mnist-mini` (8,000/2,000/2,000 of them, in the package)."""
    image_size: int = 28
    """Height and width of the images, pixels: a multiple of 4 from 16 to 128."""
    channels: int = 1
    """Image channels: 1 (grey) or 3 (colour)."""
    latent_size: int = 100
    """Length of the noise vector z, standard normal."""
    generator_depth: int = 2
    """Stride-2 stages of G; the smallest map must be at least 2 pixels wide."""
    discriminator_depth: int = 2
    """Stride-2 stages of D; the smallest map must be at least 2 pixels wide."""
    generator_width: int = 64
    """Channels of G's last hidden map; they double with each stage towards the latent."""
    discriminator_width: int = 64
    """Channels of D's first map; they double with each stage towards the logit."""
    extra_convs: int = 0
    """Extra stride-1 3x3 conv blocks in G, on its last hidden map."""
    optimizer: str = "adam"
    """Optimizer of both nets: `adam` or `rmsprop`."""
    generator_lr: float = 2e-4
    """Learning rate of G."""
    discriminator_lr: float = 2e-4
    """Learning rate of D."""
    beta1: float = 0.5
    """Adam's decay of the gradient mean. RMSprop has none."""
    beta2: float = 0.999
    """Adam's decay of the squared-gradient mean."""
    rmsprop_alpha: float = 0.99
    """RMSprop's decay of the squared-gradient mean."""
    batch_size: int = 64
    """Images per update. The incomplete last batch of an epoch is left out, since batch norm needs whole batches."""
    epochs: int = 25
    """Passes over the training split."""
    precision: str = "float32"
    """`float32`, `tf32` (CUDA), `bfloat16` autocast, or `float16` autocast with gradient scaling (CUDA)."""
    ema_decay: float = 0.0
    """Decay per update of the averaged copy of G that is evaluated; 0 evaluates G itself."""
    seed: int = 0
    """Seed of the initial weights, the noise and the order of the data."""
    replicas: int = 1
    """Independent seeds trained side by side: seed, seed + 1 and so on."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        _check_choice("dataset", self.dataset, DATASETS)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("channels", self.channels, (1, 3))
        if self.image_size % 4 or not 16 <= self.image_size <= 128:
            raise ValueError(f"image_size is {self.image_size}; allowed is a multiple of 4 from 16 to 128, such as 28 or 32")
        deepest = int(math.log2(self.image_size)) - 1
        for name, most in (
            ("latent_size", 4096),
            ("generator_depth", deepest),
            ("discriminator_depth", deepest),
            ("generator_width", 1024),
            ("discriminator_width", 1024),
            ("batch_size", None),
            ("epochs", None),
            ("replicas", 64),
        ):
            _check_count(name, getattr(self, name), least=1, most=most)
        _check_count("extra_convs", self.extra_convs, least=0, most=16)
        _check_count("seed", self.seed, least=0, most=2**32 - self.replicas)
        if self.batch_size < 2:
            raise ValueError("batch_size is 1; batch norm needs at least 2 images a batch")
        for name in ("generator_lr", "discriminator_lr"):
            rate = getattr(self, name)
            if not 0 < rate < math.inf or rate > sys.float_info.max:  # an int can be larger than any float
                raise ValueError(f"{name} is {rate}; allowed is a finite number above 0, such as 2e-4")
        for name in ("beta1", "beta2", "rmsprop_alpha", "ema_decay"):
            decay = getattr(self, name)
            if not 0 <= decay < 1:
                raise ValueError(f"{name} is {decay}; allowed is 0 up to, not including, 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a config from names and values, such as a JSON file's.

        Raises:
            ValueError: a key that is no field, or a value that is not allowed.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in names]
        if unknown:
            raise ValueError(f"unknown config key {', '.join(map(repr, unknown))}; allowed: {', '.join(names)}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Reads a config from a JSON object in `path`, or in `path/config.json` or `path/params.json` of a run folder.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no JSON object, an unknown key or a value that is not allowed.
        """
        found = next((p for p in (path, path / "config.json", path / "params.json") if p.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"no config at {path}; give a JSON file, or a folder with config.json or params.json")
        try:
            values = json.loads(found.read_text())
        except ValueError as error:
            raise ValueError(f"{found} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{found} holds {type(values).__name__}; expected a JSON object of config keys")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{found}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as plain JSON values."""
        return dataclasses.asdict(self)


def field_docs() -> dict[str, str]:
    """The string under each field of `TrainConfig`, by field name: the text that `--help` shows."""
    import ast
    import inspect

    body = ast.parse(inspect.getsource(TrainConfig)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[ast.unparse(field.target)] = str(text.value.value)
    return docs


def _check_type(name: str, value: object, kind: object) -> None:
    assert isinstance(kind, type)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):  # a bool is an int to Python, but no setting is one
        raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; expected {kind.__name__}")


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def _check_count(name: str, value: int, *, least: int, most: int | None) -> None:
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} is {value}; allowed is {bounds}")
