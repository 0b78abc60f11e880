"""`dcgan.images` and `dcgan.memory`: pictures read back by Pillow, noise seen by a net that returns
it, and peak memory."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dcgan import memory
from dcgan.config import TrainConfig
from dcgan.evaluate import evaluation_noise, generate
from dcgan.images import interpolate, sample, save_grid
from dcgan.models import Generator, build

CPU = torch.device("cpu")
Z = 100


@pytest.fixture(scope="module")
def generator() -> Generator:
    return build([TrainConfig(generator_width=2, discriminator_width=2, image_size=16)])[0]


class Echo(nn.Module):
    """Returns its noise, so that a test sees what a generator is given."""

    def forward(self, noise: Tensor) -> Tensor:
        return noise


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
        return np.array(picture)


@pytest.mark.parametrize(
    ("count", "columns", "size", "factor", "rows", "used"),
    [
        (64, None, 28, 2, 8, 8),
        (5, None, 28, 2, 2, 3),
        (5, 5, 16, 4, 1, 5),
        (4, 3, 20, 3, 2, 3),
        (2, 8, 56, 1, 1, 2),
        (3, 1, 64, 1, 3, 1),
        (2, None, 128, 1, 1, 2),
    ],
)
def test_a_grid_has_the_expected_size(
    tmp_path: Path, count: int, columns: int | None, size: int, factor: int, rows: int, used: int
) -> None:
    path = save_grid(torch.zeros(count, 1, size, size), tmp_path / "new" / "grid.png", columns)
    assert path == tmp_path / "new" / "grid.png"
    assert pixels(path).shape == (
        factor * (rows * (size + 1) + 1),
        factor * (used * (size + 1) + 1),
        3,
    )
    assert factor * size >= 56


@pytest.mark.parametrize("size", [16, 28, 100])
def test_one_image_is_a_picture_too(tmp_path: Path, size: int) -> None:
    height, width, _ = pixels(save_grid(torch.ones(1, 1, size, size), tmp_path / "one.png")).shape
    assert height == width >= 56


def test_a_grid_shows_each_image_upright_in_its_place(tmp_path: Path) -> None:
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[4, 0, 3, 20] = 7.0  # out of range: shown white
    before = images.clone()
    shown = pixels(save_grid(images, tmp_path / "grid.png", columns=3))
    assert torch.equal(images, before)
    small = shown[::2, ::2]
    assert np.array_equal(shown, small.repeat(2, 0).repeat(2, 1))  # enlarged by 2, nothing smoothed
    assert (small[[0, 29, 58]] == 64).all()  # lines between
    expected = ((images[:, 0].numpy().clip(-1, 1) + 1) / 2 * 255).round().astype(int)
    for index, image in enumerate(expected):
        top, left = index // 3 * 29 + 1, index % 3 * 29 + 1
        tile = small[top : top + 28, left : left + 28].astype(int)
        assert np.abs(tile - image[:, :, None]).max() <= 1  # a rounding
    assert small[30 + 3, 30 + 20].tolist() == [255, 255, 255]
    assert (small[30:58, 59:87] == 64).all()  # no sixth image


def test_colours_keep_their_order(tmp_path: Path) -> None:
    images = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 56, 56)
    assert pixels(save_grid(images, tmp_path / "grid.png"))[20, 20].tolist() == [255, 0, 128]


def test_samples_come_from_the_fixed_noise_or_a_seed(generator: Generator) -> None:
    fixed = sample(generator, Z, 9)
    assert fixed.shape == (9, 1, 16, 16)
    assert torch.equal(fixed, generate(generator, evaluation_noise(9, Z, CPU)))
    torch.manual_seed(1)
    assert torch.equal(fixed, sample(generator, Z, 9))
    assert torch.equal(sample(generator, Z, 9, seed=0), sample(generator, Z, 9, seed=0))
    assert not torch.equal(sample(generator, Z, 9, seed=0), sample(generator, Z, 9, seed=1))
    assert not torch.equal(sample(generator, Z, 9, seed=0), fixed)


@pytest.mark.parametrize("training", [False, True])
def test_sampling_leaves_the_generator_as_it_was(generator: Generator, training: bool) -> None:
    generator.train(training)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    images = sample(generator, Z, 3)
    assert torch.equal(images[:1], sample(generator, Z, 3)[:1])
    assert generator.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())


def test_interpolation_follows_the_great_circle() -> None:
    steps, rows, seed = 7, 5, 3
    a, b = torch.randn(2, rows, Z, generator=torch.Generator().manual_seed(seed)).double().numpy()
    noise = interpolate(Echo(), Z, steps, rows, seed)
    assert noise.shape == (rows * steps, Z)
    strips = noise.view(rows, steps, Z).double().numpy()
    np.testing.assert_allclose(strips[:, 0], a, atol=1e-5)
    np.testing.assert_allclose(strips[:, -1], b, atol=1e-5)
    for strip, start, end in zip(strips, a, b, strict=True):
        ends = np.linalg.norm([start, end], axis=1)
        angle = np.arccos(start @ end / ends.prod())
        for t, point in zip(np.linspace(0, 1, steps), strip, strict=True):
            expected = (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)
            np.testing.assert_allclose(point, expected, atol=1e-5)
            assert 0.9 * ends.min() < np.linalg.norm(point) < 1.1 * ends.max()
        assert (
            np.linalg.norm((start + end) / 2) < 0.9 * ends.min()
        )  # which a straight line would not hold


def test_interpolation_starts_and_ends_in_images_of_its_noises(generator: Generator) -> None:
    ends = torch.randn(2, 3, Z, generator=torch.Generator().manual_seed(8))
    images = interpolate(generator, Z, steps=4, rows=3, seed=8).view(3, 4, 1, 16, 16)
    for strip, end in ((images[:, 0], ends[0]), (images[:, -1], ends[1])):
        torch.testing.assert_close(strip, generate(generator, end), atol=1e-5, rtol=1e-4)
    assert not torch.equal(images[:, 0], images[:, 1])


@pytest.mark.parametrize("latent_size", [1, 2])
def test_interpolation_is_finite_at_small_latent_sizes(latent_size: int) -> None:
    assert interpolate(Echo(), latent_size, 4, 20, seed=0).isfinite().all()


LINUX = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset the peak resident set"
)


@LINUX
def test_peak_memory_rises_with_an_allocation_and_can_be_reset() -> None:
    memory.reset_peak(CPU)
    before = memory.peak_bytes(CPU)
    assert 30e6 < before < 100e9  # PyTorch alone takes more than the least
    allocation = torch.ones(75_000_000)  # 300 MB
    del allocation
    peak = memory.peak_bytes(CPU)
    assert 280e6 < peak - before < 600e6
    memory.reset_peak(CPU)
    assert memory.peak_bytes(CPU) < peak - 200e6


def test_peak_memory_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocation = torch.ones(50_000_000)  # 200 MB
    monkeypatch.setattr(memory, "PROC", tmp_path / "none")
    memory.reset_peak(CPU)  # cannot, and says nothing
    assert allocation.nbytes < memory.peak_bytes(CPU) < 100e9, sys.platform
