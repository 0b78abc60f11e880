"""The evaluation protocol: fixed noise through G, on the yardstick's features, against real images.

As many images are generated as the split holds (mnist 10,000, mnist-mini 2,000), since a Fréchet
distance depends on the count: values of different counts don't compare. G runs in evaluation mode
and float32 whatever it was trained in. The noise is the same for every run, seed and epoch.

Shapes: N real and M generated images, F features, Z latent size, P paths of T steps.
"""

import contextlib
import functools
import hashlib
import json
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.backends.cpu import get_cpu_capability

from dcgan import checkpoint, metrics
from dcgan.config import TrainConfig
from dcgan.data import (
    Source,
    dataset_of,
    default_data_dir,
    digest_of,
    load_split,
    one_hot,
    to_unit_range,
)
from dcgan.precision import full_float32
from dcgan.recipe import TURNS
from dcgan.schema import Row
from dcgan.yardstick import (
    HANDED,
    Stacked,
    Yardstick,
    batch_size,
    extract,
    load_yardstick,
)

NOISE_SEED = 20_161_511  # of the evaluation noise, apart from every training seed
PROTOCOL_VERSION = 1  # to be raised when a reference is worked out in another way
PATHS, STEPS = 32, 8  # great circles whose length is measured, and images on each


class Reference(NamedTuple):
    """What is known of the real split before anything is generated."""

    split: str
    features: Tensor  # (N, F)
    gaussian: metrics.Gaussian
    within: float  # mean kernel among real images
    radii: Tensor  # (N,)
    energy: float  # mean high-frequency energy
    fid_real: float  # fid of N training images: no generator is expected to get below it
    labels: Tensor  # (N,)
    classes: int  # 0 where there are no labels, and nothing is known of classes
    accuracy: float  # share of the images that the yardstick names right, or their turns
    yardstick: Yardstick | Stacked


def hand_over(dataset: str, weights: bytes) -> None:
    """Has this process use a yardstick that another one has trained: machines of another kind would
    not train the same, and their values would not compare."""
    if HANDED.get(dataset) != weights:
        HANDED[dataset] = weights
        load_yardstick.cache_clear()
        load_reference.cache_clear()


SAVED = [name for name in Reference._fields if name != "yardstick"]  # in a reference's file


@functools.lru_cache(maxsize=4)
def load_reference(source: Source, split: str) -> Reference:
    """Features and statistics of a real split: worked out once per machine, then read from a file
    under `default_data_dir()`, if one can be written there."""
    real, labels = load_split(source, split)
    train = load_split(source, "train").images[: len(real)]
    net = load_yardstick(source)
    key = reference_key(source, split, real, net.sha256)
    file = default_data_dir() / "references" / f"{key}.pt"
    with contextlib.suppress(OSError, ValueError):  # none yet, or a damaged one
        saved = checkpoint.read(file)
        if saved.keys() == set(SAVED):  # else another version wrote it
            saved["gaussian"] = metrics.Gaussian(*saved["gaussian"])
            for name in ("features", "radii", "labels"):
                saved[name] = saved[name].to(source.device)
            return Reference(**saved, yardstick=net)
    classes = dataset_of(source).classes
    labelled = classes > 1
    with full_float32():
        features, probabilities = extract(net, real)
        right = probabilities.argmax(1) == labels
        gaussian = metrics.gaussian(features)
        trained = metrics.gaussian(extract(net, train).features)
        reference = Reference(
            split=split,
            features=features,
            gaussian=gaussian,
            within=metrics.within_kernel_mean(features),
            radii=metrics.neighbour_radii(features),
            energy=mean_energy(real),
            fid_real=metrics.frechet_distance(gaussian, trained),
            labels=labels,
            classes=classes if labelled else 0,
            accuracy=right.double().mean().item() if labelled else turns_seen(net, real),
            yardstick=net,
        )
    with contextlib.suppress(OSError):  # cannot be written: the next process works it out again
        content = {name: getattr(reference, name) for name in SAVED}
        checkpoint.write(file, content | {"gaussian": tuple(reference.gaussian)})
    return reference


def turns_seen(net: Yardstick | Stacked, images: Tensor) -> float:
    """The share of images, by turns upright and turned, whose turn a yardstick names right."""
    shares = []
    for quarters in range(TURNS):
        turned = images[quarters::TURNS].rot90(quarters, (2, 3))
        shares.append(extract(net, turned).probabilities.argmax(1) == quarters)
    return torch.cat(shares).double().mean().item()


def reference_key(source: Source, split: str, images: Tensor, yardstick: str) -> str:
    """A digest of what a reference depends on to the last bit."""
    on_cpu = source.device.type == "cpu"
    parts = {
        "protocol": PROTOCOL_VERSION,
        "data set": source.dataset,
        "split": split,
        "images": len(images),
        "content": digest_of(images),
        "image size": source.image_size,
        "channels": source.channels,
        "extractor": yardstick,
        "torch": torch.__version__,
        "device": device_name(source.device),
        "cpu": get_cpu_capability() if on_cpu else "",
        "threads": torch.get_num_threads() if on_cpu else 0,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def mean_energy(images: Tensor) -> float:
    """Mean `high_frequency_energy` of images (N, C, S, S), uint8 or in [-1, 1]."""
    return metrics.high_frequency_energy(to_unit_range(images)).mean().item()


@functools.lru_cache(maxsize=8)
def evaluation_noise(count: int, latent_size: int, device: torch.device) -> Tensor:
    """The fixed noise of every evaluation and sample grid, the same on every device; not to be
    written into. (count, Z)"""
    rng = torch.Generator().manual_seed(NOISE_SEED)
    return torch.randn(count, latent_size, generator=rng).to(device)


def asked_labels(count: int, classes: int, device: torch.device, *, each: int = 1) -> Tensor:
    """The labels that images are asked for, `each` times every class in turn. (count,)"""
    return torch.arange(count, device=device) // each % max(1, classes)


@torch.inference_mode()
def generate_lanes(
    generator: nn.Module, noise: Tensor, lanes: int, labels: Tensor | None = None
) -> list[Tensor]:
    """Images (M, C, S, S) of each lane from the same noise (M, Z), with running batch-norm
    statistics; of a conditional G, of the labels (M,), or of all classes in turn."""
    classes = getattr(generator, "classes", 0)
    training = generator.training
    generator.eval()
    size = max(1, batch_size(noise.device) // lanes)
    blocks = [(block.repeat(1, lanes),) for block in torch.split(noise, size)]
    given: list[tuple[Tensor, ...]] = list(blocks)
    if classes:
        if labels is None:
            labels = asked_labels(len(noise), classes, noise.device)
        vectors = one_hot(labels, classes)[:, None].expand(-1, lanes, -1)  # (M, L, K)
        given = [(*own, of) for own, of in zip(blocks, torch.split(vectors, size), strict=True)]
    images = torch.cat([generator(*own) for own in given])  # (M, L C, S, S)
    generator.train(training)
    return list(images.chunk(lanes, 1))


def generate(generator: nn.Module, noise: Tensor, labels: Tensor | None = None) -> Tensor:
    """Images (M, C, S, S) of a G of one lane from noise (M, Z); labels as of `generate_lanes`."""
    (images,) = generate_lanes(generator, noise, 1, labels)
    return images


def great_circles(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Noises along the great circles from a (P, Z) to b (P, Z), which keep the norm that G has seen
    in training (White 2016, arXiv 1609.04468). (P, steps, Z)"""
    a, b = a[:, None], b[:, None]  # (P, 1, Z)
    angle = nn.functional.cosine_similarity(a, b, dim=-1).acos()[..., None]  # (P, 1, 1)
    t = torch.linspace(0, 1, steps, device=a.device)[:, None]  # (steps, 1)
    arc = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()  # (P, steps, Z)
    # no circle through (nearly) parallel noises
    return torch.where(angle.sin() > 1e-3, arc, (1 - t) * a + t * b)


@functools.lru_cache(maxsize=8)
def circles(latent_size: int, device: torch.device) -> Tensor:
    """Noises along `PATHS` great circles, the same for every run. (P T, Z)"""
    noise = evaluation_noise(2 * PATHS, latent_size, device)
    return great_circles(noise[:PATHS], noise[PATHS:], STEPS).flatten(0, 1)


@torch.inference_mode()
def path_length(images: Tensor, yardstick: Yardstick | Stacked) -> float:
    """Mean length, in feature space, of the paths of what G makes of `circles` (P T, C, S, S)."""
    features, _ = extract(yardstick, images)
    return metrics.path_length(features.unflatten(0, (PATHS, STEPS)))


@torch.inference_mode()
def score(images: Tensor, reference: Reference, labels: Tensor | None = None) -> Row:
    """All quality metrics of images (M, C, S, S), uint8 or in [-1, 1], by column name, with the
    share that is recognised if labels (M,) were asked for; FloatingPointError at a non-finite
    value, which some metrics would hide."""
    features, probabilities = extract(reference.yardstick, images)
    if not features.isfinite().all():
        raise FloatingPointError(
            "training diverged: G generates non-finite values; try a lower learning rate"
        )
    radii = metrics.neighbour_radii(features)
    near = metrics.manifold(reference.features, features, reference.radii, radii)
    shares = metrics.class_shares(probabilities) if reference.classes else None
    return {
        "fid": metrics.frechet_distance(reference.gaussian, metrics.gaussian(features)),
        "kid": metrics.kernel_distance(reference.features, features, reference.within),
        "sample_precision": near["precision"],
        "sample_recall": near["recall"],
        "sample_density": near["density"],
        "sample_coverage": near["coverage"],
        **(class_scores(probabilities, shares) if shares is not None else {}),
        "sharpness": mean_energy(images) / reference.energy,
        "collapsed": metrics.collapsed(shares, reference.radii, radii),
        **(label_scores(features, probabilities, labels, reference) if labels is not None else {}),
    }


def class_scores(probabilities: Tensor, shares: Tensor) -> Row:
    """What is known of the classes of generated images, from their predictions (M, K), and from the
    shares of the classes (K,)."""
    return {
        "classifier_score": metrics.classifier_score(probabilities),
        "confident_share": metrics.confident_share(probabilities),
        "classes_covered": metrics.classes_covered(shares),
        "class_kl": metrics.kl_from_uniform(shares),
    }


def label_scores(
    features: Tensor, probabilities: Tensor, labels: Tensor, reference: Reference
) -> Row:
    """How generated images, of features (M, F) and predictions (M, K), are of the labels (M,) that
    were asked for."""
    scores = {"label_accuracy": (probabilities.argmax(1) == labels).double().mean().item()}
    counts = torch.stack(
        [torch.bincount(one, minlength=reference.classes) for one in (labels, reference.labels)]
    )
    # a covariance of F features from fewer images is singular
    if counts.min() > features.shape[1]:
        distances = [
            metrics.frechet_distance(
                metrics.gaussian(reference.features[reference.labels == one]),
                metrics.gaussian(features[labels == one]),
            )
            for one in range(reference.classes)
        ]
        scores["fid_in_class"] = statistics.fmean(distances)
    return scores


def evaluate_lanes(
    generator: nn.Module, lanes: Sequence[TrainConfig], reference: Reference, *, named: bool = False
) -> list[Row]:
    """Generates from the fixed noise and scores: the metrics of each lane's row. Raises as
    `score`; `named` has errors name the lane's seed."""
    L, like = len(lanes), reference.features
    noise = evaluation_noise(len(like), lanes[0].latent_size, like.device)
    rows, classes = [], lanes[0].label_size
    labels = reference.labels if classes else None  # each class as often as among real images
    of_paths = asked_labels(PATHS * STEPS, classes, like.device, each=STEPS)  # one a path
    with full_float32():
        paths = generate_lanes(generator, circles(lanes[0].latent_size, like.device), L, of_paths)
        images = generate_lanes(generator, noise, L, labels)
        for lane, own, path in zip(lanes, images, paths, strict=True):
            try:
                scores = score(own, reference, labels)
                rows.append(scores | {"path_length": path_length(path, reference.yardstick)})
            except FloatingPointError as error:
                seed = f"seed {lane.seed}: " if named else ""
                raise FloatingPointError(f"{seed}{error}") from None
    return rows


def evaluate(generator: nn.Module, config: TrainConfig, reference: Reference) -> Row:
    """Generates from the fixed noise and scores a G of one lane. Raises as `score`."""
    (row,) = evaluate_lanes(generator, [config], reference)
    return row


def protocol(reference: Reference) -> Row:
    """The conditions that belong beside every score, by column name."""
    return {
        "eval_split": reference.split,
        "eval_samples": len(reference.features),
        "eval_seed": NOISE_SEED,
        "fid_real": reference.fid_real,
        "extractor": reference.yardstick.sha256[:12],
        "extractor_accuracy": reference.accuracy,
        "device": device_name(reference.features.device),
    }


def device_name(device: torch.device) -> str:
    """`cpu`, or the model name of a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
