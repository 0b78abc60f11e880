"""The evaluation protocol: fixed noise through G, compared with a held-out split on the yardstick's features.

As many images are generated as the split holds (mnist 10,000, mnist-mini 2,000), since a Fréchet distance depends on the
count: values of different counts don't compare. G runs in evaluation mode and float32 whatever it was trained in. The
noise is the same for every run, seed and epoch.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcgan import metrics
from dcgan.config import TrainConfig
from dcgan.data import Source, load_split
from dcgan.precision import full_float32
from dcgan.schema import Row
from dcgan.yardstick import SHA256, batch_size, extract, load_yardstick

NOISE_SEED = 20_161_511  # of the evaluation noise, apart from every training seed


class Reference(NamedTuple):
    """What is known of the real split before anything is generated."""

    split: str
    features: Tensor  # (N, F)
    gaussian: metrics.Gaussian
    within: float  # mean kernel among real images
    radii: Tensor  # (N,)
    fid_real: float  # fid of N training images: no generator is expected to get below it


@functools.lru_cache(maxsize=4)
def load_reference(source: Source, split: str) -> Reference:
    """Features and statistics of a real split, worked out once per process."""
    yardstick = load_yardstick(source.device)
    with full_float32():
        features = extract(yardstick, load_split(source, split).images).features
        train_features = extract(yardstick, load_split(source, "train").images[: len(features)]).features
        gaussian = metrics.gaussian(features)
        return Reference(
            split=split,
            features=features,
            gaussian=gaussian,
            within=metrics.within_kernel_mean(features),
            radii=metrics.neighbour_radii(features),
            fid_real=metrics.frechet_distance(gaussian, metrics.gaussian(train_features)),
        )


def evaluation_noise(count: int, latent_size: int, device: torch.device) -> Tensor:
    """The fixed noise of every evaluation and sample grid, the same on every device. (count, Z)"""
    return torch.randn(count, latent_size, generator=torch.Generator().manual_seed(NOISE_SEED)).to(device)


@torch.inference_mode()
def generate(generator: nn.Module, noise: Tensor) -> Tensor:
    """Images (M, C, S, S) in [-1, 1] from noise (M, Z), with running batch-norm statistics; leaves G's mode as it was."""
    training = generator.training
    generator.eval()
    images = torch.cat([generator(batch) for batch in torch.split(noise, batch_size(noise.device))])
    generator.train(training)
    return images


@torch.inference_mode()
def score(images: Tensor, reference: Reference) -> Row:
    """All quality metrics of images (M, C, S, S), uint8 or in [-1, 1], against the reference, by column name.

    Raises:
        FloatingPointError: a non-finite value in an image, which some metrics would hide.
    """
    features, probabilities = extract(load_yardstick(images.device), images)
    if not features.isfinite().all():
        raise FloatingPointError("training diverged: G generates non-finite values; try a lower learning rate")
    radii = metrics.neighbour_radii(features)
    near = metrics.manifold(reference.features, features, reference.radii, radii)
    shares = metrics.digit_shares(probabilities)
    return {
        "fid": metrics.frechet_distance(reference.gaussian, metrics.gaussian(features)),
        "kid": metrics.kernel_distance(reference.features, features, reference.within),
        "sample_precision": near.precision,
        "sample_recall": near.recall,
        "sample_density": near.density,
        "sample_coverage": near.coverage,
        "classifier_score": metrics.classifier_score(probabilities),
        "digits_covered": metrics.digits_covered(shares),
        "digit_kl": metrics.kl_from_uniform(shares),
        "collapsed": metrics.collapsed(shares, reference.radii, radii),
    }


def evaluate(generator: nn.Module, config: TrainConfig, reference: Reference) -> Row:
    """Generates from the fixed noise and scores: the metrics of a row.

    Raises:
        FloatingPointError: as `score`.
    """
    noise = evaluation_noise(len(reference.features), config.latent_size, reference.features.device)
    with full_float32():
        return score(generate(generator, noise), reference)


def protocol(reference: Reference) -> Row:
    """The conditions that belong beside every score, by column name."""
    return {
        "eval_split": reference.split,
        "eval_samples": len(reference.features),
        "eval_seed": NOISE_SEED,
        "fid_real": reference.fid_real,
        "extractor": SHA256[:12],
        "device": device_name(reference.features.device),
    }


def device_name(device: torch.device) -> str:
    """`cpu`, or the model name of a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
