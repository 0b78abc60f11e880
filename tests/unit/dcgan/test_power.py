"""`dcgan.power`: exponents and inner products against numerical integration, and combinations of
snapshots against averages kept directly."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dcgan.power import EXPONENTS, KEPT, MOST_LENGTH, combination, exponent, product, share

LENGTHS = (0.01, 0.03, 0.05, 0.1, 0.2, MOST_LENGTH)


def profile(times: Tensor, time: float, gamma: float) -> Tensor:
    """The definition: what an average at `time` takes of the weights at `times`."""
    inside = (gamma + 1) * (times / time) ** gamma / time
    return torch.where(times <= time, inside, 0)


def integral(values: Tensor, times: Tensor) -> float:
    return torch.trapezoid(values, times).item()


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_is_the_profiles_standard_deviation(length: float) -> None:
    times = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)
    weights = profile(times, 1, exponent(length))
    mean = integral(weights * times, times)
    variance = integral(weights * (times - mean) ** 2, times)
    assert integral(weights, times) == pytest.approx(1, abs=1e-5)
    assert math.sqrt(variance) == pytest.approx(length, rel=1e-5)


def test_the_kept_exponents_are_the_papers() -> None:
    assert {name: round(gamma, 2) for name, gamma in EXPONENTS.items()} == {
        "short": 16.97,
        "long": 6.94,
    }


@pytest.mark.parametrize(
    ("a", "b"), list(itertools.product([(0.4, 0.5), (0.4, 17.0), (1.0, 7.0)], repeat=2))
)
def test_products_are_integrals(a: tuple[float, float], b: tuple[float, float]) -> None:
    times = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)
    expected = integral(profile(times, *a) * profile(times, *b), times)
    numbers = torch.tensor([*a, *b], dtype=torch.float64)
    assert product(*numbers).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, *EXPONENTS.values()])
def test_shares_are_those_of_the_formula_also_after_a_million_updates(gamma: float) -> None:
    updates = torch.tensor([1, 2, 3, 100, 10_000, 1_000_000, 10_000_000])
    t = updates.double()
    expected = -torch.expm1((gamma + 1) * torch.log1p(-1 / t))
    plain = 1 - (1 - 1 / t) ** (gamma + 1)
    torch.testing.assert_close(expected, plain, rtol=1e-8, atol=0)
    assert share(updates[0], gamma) == 1
    for number, one in zip(updates, plain, strict=True):
        assert share(number, gamma).item() == pytest.approx(one.item(), rel=1e-5)


def steps(count: int, size: int = 200) -> Tensor:
    """Weights as training moves them: to somewhere, and around it. (count, size) float64"""
    rng = torch.Generator().manual_seed(0)
    start, end = (torch.randn(size, generator=rng, dtype=torch.float64) for _ in range(2))
    time = torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    noise = torch.randn(count, size, generator=rng, dtype=torch.float64)
    walk = noise.cumsum(0) / count**0.5
    return start + (end - start) * time**0.5 + walk + 0.1 * noise


def kept_directly(weights: Tensor, length: float) -> Tensor:
    """The average of a length after each step, by the paper's recursion. (steps, size)"""
    gamma, average, kept = exponent(length), torch.zeros_like(weights[0]), []
    for t, now in enumerate(weights, 1):
        beta = (1 - 1 / t) ** (gamma + 1)
        average = beta * average + (1 - beta) * now
        kept.append(average)
    return torch.stack(kept)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.2, 0.25])
def test_combinations_are_the_averages_kept_directly(length: float) -> None:
    """The closer, the more snapshots there are: of 4,000 steps, over how far the weights moved."""
    weights = steps(4000)
    short, long = (kept_directly(weights, kept) for kept in KEPT.values())
    expected = kept_directly(weights, length)[-1]
    scale = (expected - short[-1]).norm() + (expected - long[-1]).norm()
    missed, said = [], []
    for count in (4, 8, 20, 50):
        ends = torch.arange(1, count + 1) * len(weights) // count
        times = (ends / len(weights)).double().repeat(2)
        gammas = torch.tensor(list(EXPONENTS.values()), dtype=torch.float64)
        x, error = combination(times, gammas.repeat_interleave(count), length)
        assert x.sum().item() == pytest.approx(1)
        combined = x @ torch.cat([short[ends - 1], long[ends - 1]])
        missed.append(((combined - expected).norm() / scale).item())
        said.append(error)
    assert missed == sorted(missed, reverse=True)
    assert said == sorted(said, reverse=True)
    assert missed[-1] < 0.003


@pytest.mark.parametrize(("name", "length"), KEPT.items())
def test_of_a_kept_length_the_combination_is_the_last_snapshot(name: str, length: float) -> None:
    times = torch.tensor([0.5, 0.5, 1.0, 1.0], dtype=torch.float64)
    gammas = torch.tensor([*EXPONENTS.values()] * 2, dtype=torch.float64)
    x, error = combination(times, gammas, length)
    expected = [0.0, 0.0, *(float(name == own) for own in KEPT)]
    assert x.tolist() == pytest.approx(expected, abs=1e-9)
    assert error == pytest.approx(0, abs=1e-6)
