"""What one training run can vary, checked where it is made.

The defaults are the baseline: DCGAN (Radford et al. 2016, arXiv 1511.06434) of two stages in each
net on MNIST. A lane is one `TrainConfig` with one seed, trained side by side with others that
differ from it in the `LANE_FIELDS` alone.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from dcgan.augment import AUGMENTATIONS
from dcgan.data import DATASETS, Source
from dcgan.files import write_json
from dcgan.losses import LOSSES
from dcgan.pictures import PREFIX, whole_name
from dcgan.schema import PARAMS_FILE
from dcgan.settings import check_bounds, check_settings, setting

OPTIMIZERS = ("adam", "rmsprop")
NORMS = ("batch", "spectral", "none")
CONDITIONS = ("none", "concat", "projection")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
RATES = ("generator_lr", "discriminator_lr")
LANE_FIELDS = ("seed", *RATES, "beta1", "beta2")
"""Settings in which lanes that train side by side may differ."""
MOST_SEED = 2**32 - 1
MOST_EPOCHS = 100_000
MOST_LANES = 64
MOST_CLASSES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run, complete: with the code and the device it determines every number."""

    dataset: str = setting("mnist", choices=DATASETS)
    """Data set: `mnist-mini` (8,000/2,000/2,000 digits, in the package), another one that is
    downloaded once (docs/files.md), or `folder:PATH`, your own pictures."""
    image_size: int = 0
    """Height and width of the images, pixels: a multiple of 4 from 16 to 128; 0 takes the data
    set's own."""
    channels: int = setting(0, choices=(0, 1, 3))
    """Image channels: 1 (grey) or 3 (colour); 0 takes the data set's own."""
    classes: int = setting(-1, least=-1, most=MOST_CLASSES)
    """Classes of the labels, 0 where there are none; -1 takes the data set's own."""
    latent_size: int = setting(100, least=1, most=4096)
    """Length of the noise vector z, standard normal."""
    generator_depth: int = 2
    """Stride-2 stages of G; the smallest map must be at least 2 pixels wide."""
    discriminator_depth: int = 2
    """Stride-2 stages of D; the smallest map must be at least 2 pixels wide."""
    generator_width: int = setting(64, least=1, most=1024)
    """Channels of G's last hidden map; they double with each stage towards the latent."""
    discriminator_width: int = setting(64, least=1, most=1024)
    """Channels of D's first map; they double with each stage towards the logit."""
    extra_convs: int = setting(0, least=0, most=16)
    """Extra stride-1 3x3 conv blocks in G, on its last hidden map."""
    loss: str = setting("non-saturating", choices=LOSSES)
    """Loss of both nets."""
    label_smoothing: float = 0.0
    """What D's target for real images is below 1, of the non-saturating loss."""
    penalty: float = 0.0
    """Weight of D's gradient penalties of real and of generated images (R1 and R2); 0 is off."""
    discriminator_norm: str = setting("batch", choices=NORMS)
    """What normalises D: `batch` norm, `spectral` norm of its weights, or `none`."""
    conditional: str = setting("none", choices=CONDITIONS)
    """Whether both nets are given labels, and how D takes them: `none`, `concat` (a map for each
    class beside the image) or `projection` (a product of the label's vector with its features). G
    takes them beside the noise."""
    augment: str = setting("none", choices=AUGMENTATIONS)
    """What happens to all images that D sees: `none`, or `translation` by up to an eighth."""
    optimizer: str = setting("adam", choices=OPTIMIZERS)
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
    batch_size: int = setting(64, least=1)
    """Images per update. The incomplete last batch of an epoch is left out, since batch norm needs
    whole batches."""
    epochs: int = setting(25, least=1, most=MOST_EPOCHS, why="each keeps a row")
    """Passes over the training split."""
    precision: str = setting("float32", choices=PRECISIONS)
    """`float32`, `tf32` (CUDA), `bfloat16` autocast, or `float16` autocast with gradient scaling
    (CUDA)."""
    ema_decay: float = 0.0
    """Decay per update of the averaged copy of G that is evaluated; 0 evaluates G itself."""
    snapshots_every: int = setting(0, least=0, most=MOST_EPOCHS)
    """Epochs between snapshots of two averages of G, from which `dcgan.average` makes an average of
    any length afterwards; 0 keeps none."""
    seed: int = setting(0, least=0, most=MOST_SEED)
    """Seed of the initial weights, the noise and the order of the data."""

    def __post_init__(self) -> None:
        check_settings(self)
        self._take_from_data()
        if self.image_size % 4 or not 16 <= self.image_size <= 128:
            raise ValueError(
                f"image_size is {self.image_size}; "
                f"allowed is a multiple of 4 from 16 to 128, such as 28 or 32"
            )
        deepest = int(math.log2(self.image_size)) - 1
        for name in ("generator_depth", "discriminator_depth"):
            check_bounds(name, getattr(self, name), 1, deepest)
        if self.batch_size < 2:
            raise ValueError("batch_size is 1; batch norm needs at least 2 images a batch")
        for name in RATES:
            rate = getattr(self, name)
            if not 0 < rate <= sys.float_info.max:  # an int can be larger than any float
                raise ValueError(
                    f"{name} is {rate}; allowed is a finite number above 0, such as 2e-4"
                )
        check_objective(self)
        for name in ("beta1", "beta2", "rmsprop_alpha", "ema_decay"):
            decay = getattr(self, name)
            if not 0 <= decay < 1:
                raise ValueError(f"{name} is {decay}; allowed is 0 up to, not including, 1")

    def _take_from_data(self) -> None:
        """Fills in what the data set decides. A folder is looked into only as far as it is needed:
        results are read where it is not, too."""
        if self.dataset.startswith(PREFIX):
            object.__setattr__(self, "dataset", whole_name(self.dataset))
            if self.image_size and self.channels and self.classes >= 0:
                return
        own = DATASETS[self.dataset]
        if self.classes not in (-1, own.classes):
            raise ValueError(f"classes is {self.classes}; {self.dataset} has {own.classes}")
        object.__setattr__(self, "image_size", self.image_size or own.size)
        object.__setattr__(self, "channels", self.channels or own.channels)
        object.__setattr__(self, "classes", own.classes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a config from names and values; ValueError at a key that is no field, too."""
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in names]
        if unknown:
            keys = ", ".join(map(repr, unknown))
            raise ValueError(f"unknown config key {keys}; allowed: {', '.join(names)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as plain JSON values."""
        return dataclasses.asdict(self)

    @property
    def label_size(self) -> int:
        """Length of the label's vector that both nets are given; 0 if they are given none."""
        return 0 if self.conditional == "none" else self.classes

    def source(self, data_dir: Path | str | None, device: torch.device) -> Source:
        """Where its images come from, and the device they are kept on."""
        folder = Path(data_dir) if data_dir else None
        return Source(self.dataset, self.image_size, self.channels, folder, device)


def check_objective(config: TrainConfig) -> None:
    """Refuses regularisers out of bounds, and those that do not go with a loss or precision."""
    if config.conditional != "none" and config.classes < 2:
        raise ValueError(
            f"conditional is {config.conditional}, but {config.dataset} has no classes; give a "
            f"data set with labels, or a folder with a subfolder for each class"
        )
    check_bounds("label_smoothing", config.label_smoothing, 0, 0.5)
    check_bounds("penalty", config.penalty, 0, 1000)
    if config.label_smoothing and not LOSSES[config.loss].labels:
        raise ValueError(
            f"label_smoothing is {config.label_smoothing} with loss {config.loss}, which has no "
            f"labels; it goes with loss non-saturating"
        )
    if config.penalty and config.precision == "float16":
        raise ValueError(
            f"penalty is {config.penalty} with precision float16, in which the gradients that it "
            f"is made of vanish; use bfloat16"
        )


def replicate(config: TrainConfig, count: int) -> list[TrainConfig]:
    """Lanes of one config and `count` seeds: its own, and those that follow."""
    check_bounds("replicas", count, 1, MOST_LANES)
    return [dataclasses.replace(config, seed=config.seed + i) for i in range(count)]


def check_lanes(lanes: Sequence[TrainConfig]) -> None:
    """Refuses lanes that cannot train side by side by a ValueError."""
    if not lanes:
        raise ValueError("there are no lanes; expected at least one config")
    first = lanes[0].to_dict()
    for number, lane in enumerate(lanes):
        for name, value in lane.to_dict().items():
            if name not in LANE_FIELDS and value != first[name]:
                raise ValueError(
                    f"lane {number} has {name} {value!r}, lane 0 {first[name]!r}; "
                    f"lanes may differ in {', '.join(LANE_FIELDS)} alone"
                )


def read_lanes(path: Path) -> list[TrainConfig]:
    """Reads the lanes of a run: one JSON object of settings, or a list of them, from a file or a
    folder that has one; FileNotFoundError or ValueError where it holds none."""
    names = (path, path / "config.json", path / PARAMS_FILE)
    found = next((name for name in names if name.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no config at {path}; give a JSON file, or a folder with config.json or {PARAMS_FILE}"
        )
    try:
        content = json.loads(found.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{found} is not valid JSON: {error}") from None
    try:
        return parse_lanes(content)
    except ValueError as error:
        raise ValueError(f"{found}: {error}") from None


def parse_lanes(content: object) -> list[TrainConfig]:
    """The lanes of what `read_lanes` found."""
    lanes = []
    for values in content if isinstance(content, list) else [content]:
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise ValueError(f"it holds {kind}; expected a JSON object of config keys")
        # files of earlier versions have the number of seeds, in one object
        own = dict(values)
        replicas = own.pop("replicas", 1)
        lanes += replicate(TrainConfig.from_dict(own), replicas)
    check_lanes(lanes)
    return lanes


def write_lanes(path: Path, lanes: Sequence[TrainConfig]) -> None:
    """Writes what `read_lanes` reads: an object of one lane, a list of several."""
    settings = [lane.to_dict() for lane in lanes]
    write_json(path, settings[0] if len(settings) == 1 else settings)
