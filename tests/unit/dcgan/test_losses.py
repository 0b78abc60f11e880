"""`dcgan.losses` and `dcgan.augment`: each on its formula, written another way, and its gradient
against finite differences."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dcgan.augment import AUGMENTATIONS, CALLS, noise_size, split_noise, translate
from dcgan.config import TrainConfig, replicate
from dcgan.lanes import SpectralConv, SpectralLinear, spectral
from dcgan.losses import LOSSES, gradient_penalty, smoothing
from dcgan.models import build

LOGITS = torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0)) * 3
BCE = F.binary_cross_entropy_with_logits


def by_element(of_one: Callable[[float, float], float], real: Tensor, fake: Tensor) -> Tensor:
    """Means over a batch (N, L) of a formula of one pair of logits, in Python's floats."""
    pairs = zip(real.T.tolist(), fake.T.tolist(), strict=True)
    means = [sum(map(of_one, a, b)) / len(a) for a, b in pairs]
    return torch.tensor(means)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-abs(x))) + min(x, 0.0)


FORMULAS: dict[str, tuple[Callable[[float, float], float], Callable[[float, float], float]]] = {
    "non-saturating": (
        lambda real, fake: -log_sigmoid(real) - log_sigmoid(-fake),
        lambda real, fake: -log_sigmoid(fake),
    ),
    "hinge": (
        lambda real, fake: max(0.0, 1 - real) + max(0.0, 1 + fake),
        lambda real, fake: -fake,
    ),
    "least-squares": (
        lambda real, fake: ((real - 1) ** 2 + fake**2) / 2,
        lambda real, fake: (fake - 1) ** 2 / 2,
    ),
    "relativistic": (
        lambda real, fake: -log_sigmoid(real - fake),
        lambda real, fake: -log_sigmoid(fake - real),
    ),
}


def test_each_loss_has_a_formula_here() -> None:
    assert FORMULAS.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_formulas(name: str) -> None:
    real, fake = LOGITS
    for loss, formula in zip(LOSSES[name][:2], FORMULAS[name], strict=True):
        torch.testing.assert_close(loss(real, fake), by_element(formula, real, fake))


def test_the_usual_loss_is_binary_cross_entropy() -> None:
    (real, fake), loss = LOGITS[..., 0], LOSSES["non-saturating"]
    ones, zeros = torch.ones(500), torch.zeros(500)
    both = BCE(real, ones) + BCE(fake, zeros)
    torch.testing.assert_close(loss.discriminator(real, fake), both)
    torch.testing.assert_close(loss.generator(real, fake), BCE(fake, ones))
    smoothed = BCE(real, 0.9 * ones) + BCE(fake, zeros)
    torch.testing.assert_close(loss.discriminator(real, fake) + smoothing(real, 0.1), smoothed)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses_are_finite_differences(name: str) -> None:
    """float64 throughout, but for the losses themselves: a step of 1e-2 is far above rounding."""
    real, fake = (one.double().requires_grad_() for one in LOGITS[:, :4])
    for loss in LOSSES[name][:2]:
        gradients = torch.autograd.grad(loss(real, fake).sum(), (real, fake), allow_unused=True)
        for which, gradient in enumerate(gradients):
            for place in ((0, 0), (3, 2)):
                ends = []
                for step in (0.01, -0.01):
                    moved = [real.detach().clone(), fake.detach().clone()]
                    moved[which][place] += step
                    ends.append(loss(*moved).sum().item())
                expected = (ends[0] - ends[1]) / 0.02
                found = 0.0 if gradient is None else gradient[place].item()
                assert found == pytest.approx(expected, abs=2e-4), (which, place)


def test_a_loss_that_is_paired_says_so() -> None:
    real, fake = LOGITS
    for loss in LOSSES.values():
        depends = not torch.equal(loss.generator(real, fake), loss.generator(real + 1, fake))
        assert loss.paired == depends


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_float32_and_finite_far_out(name: str, dtype: torch.dtype) -> None:
    for logit in (-1e4, 0.0, 1e4):
        real = torch.full((4, 1), logit, dtype=dtype, requires_grad=True)
        for loss in LOSSES[name][:2]:
            value = loss(real, -real)
            assert value.dtype == torch.float32
            assert value.isfinite().all()
            (gradient,) = torch.autograd.grad(value.sum(), real, allow_unused=True)
            assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logit", [-1e4, 0.0, 1e4])
def test_the_usual_loss_is_exact_far_out(logit: float, dtype: torch.dtype) -> None:
    fake = torch.full((4,), logit, dtype=dtype, requires_grad=True)
    value = fake[0].item()  # what the type made of the logit
    expected = {-1e4: -value, 0.0: 0.693147180559945, 1e4: 0.0}[logit]
    usual = LOSSES["non-saturating"]
    loss = usual.generator(fake, fake)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert usual.discriminator(fake, -fake).item() == pytest.approx(2 * expected, rel=1e-6)
    loss.backward()
    slope = {-1e4: -1.0, 0.0: -0.5, 1e4: 0.0}[logit]
    assert fake.grad is not None
    torch.testing.assert_close(fake.grad, torch.full((4,), slope / 4, dtype=dtype))


# Gradient penalty


def test_a_penalty_is_the_squared_slope_of_a_plane() -> None:
    """Of s(x) = a x, whose gradient is a everywhere."""
    images = torch.randn(7, 2, 4, 4, requires_grad=True)  # two lanes of one channel
    slopes = torch.randn(2, 4, 4)
    logits = (images * slopes).sum((2, 3))
    expected = slopes.square().sum((1, 2))
    torch.testing.assert_close(gradient_penalty(logits, images), expected)


@pytest.mark.parametrize("norm", ["none", "spectral", "batch"])
def test_the_penaltys_own_gradient_is_a_finite_difference(norm: str) -> None:
    """Of a weight of D, in float64."""
    config = TrainConfig(discriminator_width=2, image_size=16, discriminator_norm=norm)
    D = build([config])[1].double()
    images = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    D(images)  # moves the singular vectors, which the finite difference holds fixed
    state = {name: value.clone() for name, value in D.state_dict().items()}

    def penalty(change: float) -> Tensor:
        D.load_state_dict(state)
        with torch.no_grad():
            next(D.parameters())[1, 0, 2, 1] += change
        own = images.clone().requires_grad_()
        return gradient_penalty(D(own), own)

    (gradient,) = torch.autograd.grad(penalty(0.0).sum(), [next(D.parameters())])
    step = 1e-4
    difference = (penalty(step) - penalty(-step)).item() / (2 * step)
    assert gradient[1, 0, 2, 1].item() == pytest.approx(difference, rel=0.02, abs=1e-7)


# Augmentation


def test_images_are_shifted_by_what_the_numbers_say() -> None:
    """One of 16 pixels by at most 2; uniformly; what comes in is -1."""
    images = torch.rand(400, 2 * 3, 16, 16)  # two lanes, three channels
    normal = torch.randn(400, 2, 2, generator=torch.Generator().manual_seed(3))
    moved = translate(images, normal)
    counts = torch.zeros(5, 5)
    for number, lane in ((n, lane) for n in range(400) for lane in range(2)):
        own = images[number, 3 * lane : 3 * lane + 3]
        shifts = (torch.special.ndtr(normal[number, lane]) * 5).floor().long() - 2
        dy, dx = shifts.tolist()
        counts[dy + 2, dx + 2] += 1
        expected = torch.full((3, 20, 20), -1.0)
        expected[:, 2:18, 2:18] = own
        expected = expected[:, 2 + dy : 18 + dy, 2 + dx : 18 + dx]
        assert torch.equal(moved[number, 3 * lane : 3 * lane + 3], expected)
    assert counts.min() > 10  # of 32 expected


def test_a_gradient_goes_back_to_where_a_pixel_came_from() -> None:
    images = torch.rand(2, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    normal = torch.tensor([[[3.0, -3.0]], [[0.0, 0.0]]])
    assert torch.autograd.gradcheck(lambda x: translate(x, normal), (images,))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_what_is_drawn_is_noise_and_numbers_of_each_call(name: str) -> None:
    numbers = AUGMENTATIONS[name].numbers
    assert noise_size(name, 7) == 7 + CALLS * numbers
    drawn = torch.arange(2.0 * 3 * noise_size(name, 7)).view(2, -1)
    noise, own = split_noise(drawn, name, 7)
    assert noise.shape == (2, 3 * 7)
    assert [tuple(one.shape) for one in own] == [(2, 3, numbers)] * CALLS
    assert noise[0, 7] == noise_size(name, 7)  # the second lane's first
    whole = torch.cat([noise.unflatten(1, (3, 7)), *own], 2)
    assert torch.equal(whole.flatten(1), drawn)


# D's norms


def test_spectral_norm_is_the_largest_singular_value_of_each_lane() -> None:
    config = TrainConfig(discriminator_norm="spectral", discriminator_width=4)
    configs = replicate(config, 2)
    D = build(configs)[1]
    images = torch.randn(3, 2, 28, 28)
    for _ in range(50):  # steps of power iteration
        D(images)
    layers = [layer for layer in D.layers if isinstance(layer, SpectralConv | SpectralLinear)]
    assert len(layers) == 3
    for layer in layers:
        weight = spectral(layer.weight, layer.left, 2, move=False)
        for lane in weight.unflatten(0, (2, -1)).flatten(2):
            assert torch.linalg.matrix_norm(lane, 2).item() == pytest.approx(1, abs=0.02)
    D.eval()
    left = layers[0].left.clone()
    D(images)
    assert torch.equal(left, layers[0].left)  # moves while training alone
