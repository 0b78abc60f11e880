"""Every metric against somebody else's implementation or a closed form, then the order of good and
bad images on real digits.

A reference library is imported where it is used, so that the rest runs on a machine that has only
PyTorch.

Shapes: N real and M generated images, F features.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from dcgan import metrics
from dcgan.data import Source, Split, load_split
from dcgan.evaluate import Reference, load_reference, mean_energy, score
from dcgan.schema import Row
from dcgan.yardstick import FEATURES, extract, load_yardstick

CPU = torch.device("cpu")
MINI = Source("mnist-mini")


class Case(NamedTuple):
    """How a pair of feature sets is drawn. More than `metrics.ROWS` real items need more than one
    block of rows."""

    real: int
    fake: int
    features: int
    shift: float = 0.0
    scale: float = 1.0


class Pair(NamedTuple):
    """Two sets of features, float32."""

    real: Tensor  # (N, F)
    fake: Tensor  # (M, F)


CASES = {
    "alike": Case(700, 1100, 8),
    "shifted": Case(1100, 700, 8, shift=0.7),
    "narrow": Case(1100, 600, 16, scale=0.5),
    "wide": Case(600, 1100, 16, scale=1.5),
    "as many": Case(1100, 1100, 12, shift=0.2, scale=0.8),
    "singular": Case(
        60, 80, FEATURES, shift=0.3, scale=1.5
    ),  # fewer items than features: covariances of rank 59 and 79
}


def draw(case: Case) -> Pair:
    """Correlated normal features, of full rank where the counts allow it."""
    rng = torch.Generator().manual_seed(7)
    mix = torch.randn(case.features, case.features, generator=rng) / math.sqrt(
        case.features
    )  # (F, F)
    real = torch.randn(case.real, case.features, generator=rng) @ mix
    fake = torch.randn(case.fake, case.features, generator=rng) @ mix * case.scale + case.shift
    return Pair(real, fake)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The real side of every score: mnist-mini's validation split."""
    return load_reference(MINI, "validation")


@pytest.fixture(scope="module")
def held_out() -> Split:
    """Real digits that the reference doesn't hold."""
    return load_split(MINI, "test")


@pytest.fixture(scope="module")
def digits(reference: Reference, held_out: Split) -> Pair:
    """What the metrics meet in use: the yardstick's features, non-negative and far from normal."""
    return Pair(reference.features, extract(load_yardstick(MINI), held_out.images).features)


@pytest.fixture(params=[*CASES, "digits"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each case, then real features with N != M."""
    if request.param == "digits":
        whole: Pair = request.getfixturevalue("digits")
        return Pair(whole.real[:1300], whole.fake[:900])
    return draw(CASES[request.param])


def value_or_nan(metric: Callable[[], float]) -> float:
    """A metric's value; NaN where it refuses its input, which some LAPACKs do and others don't."""
    try:
        return metric()
    except torch.linalg.LinAlgError:
        return math.nan


# Fréchet distance


def frechet(real: Tensor, fake: Tensor) -> float:
    return metrics.frechet_distance(metrics.gaussian(real), metrics.gaussian(fake))


def frechet_scipy(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    linalg = pytest.importorskip("scipy.linalg")
    covariances = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(
        np.square(real.mean(0) - fake.mean(0)).sum()
        + np.trace(covariances[0] + covariances[1] - 2 * root)
    )


def frechet_torchmetrics(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    fid = pytest.importorskip("torchmetrics.image.fid")
    arrays = real.mean(0), np.cov(real, rowvar=False), fake.mean(0), np.cov(fake, rowvar=False)
    return float(fid._compute_fid(*map(torch.from_numpy, arrays)))


def frechet_torch_fidelity(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (real, fake)]
    return float(fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID])


def frechet_nuclear(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    """Without a root of a covariance: for C1 = A'A and C2 = B'B, tr (C1 C2)^(1/2) is the nuclear
    norm of A B'.

    So nothing here is ill-conditioned where the covariances are singular.
    """
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (real, fake))
    squares = np.square(real.mean(0) - fake.mean(0)).sum() + np.square(a).sum() + np.square(b).sum()
    return float(squares - 2 * np.linalg.norm(a @ b.T, "nuc"))


@pytest.mark.parametrize(
    "other", [frechet_scipy, frechet_torchmetrics, frechet_torch_fidelity, frechet_nuclear]
)
def test_frechet_distance_agrees_with(
    other: Callable[[NDArray[np.float64], NDArray[np.float64]], float], pair: Pair
) -> None:
    expected = other(pair.real.double().numpy(), pair.fake.double().numpy())
    # a zero eigenvalue comes out at about 1e-16, so its root at 1e-8: singular covariances cost
    # half of the digits
    assert frechet(*pair) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("means", "variances"),
    [
        (([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]), ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])),
        (([1.0, -2.0, 0.5], [0.0, 4.0, 0.5]), ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])),
        (([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]), ([1.0, 4.0, 9.0], [16.0, 0.25, 1e-6])),
        (
            ([3.0, 1.0, 2.0], [1.0, 1.0, 7.0]),
            ([0.0, 4.0, 0.0], [2.0, 0.0, 0.0]),
        ),  # singular, ranks 1 and 1
        (([3.0, 1.0, 2.0], [1.0, 1.0, 7.0]), ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])),  # two points
    ],
)
@pytest.mark.parametrize("turned", [False, True], ids=["diagonal", "turned"])
def test_frechet_distance_of_commuting_gaussians_has_a_closed_form(
    means: tuple[list[float], list[float]], variances: tuple[list[float], list[float]], turned: bool
) -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2, with s the standard deviations along shared axes."""
    rng = torch.Generator().manual_seed(1)
    axes = (
        torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64)).Q
        if turned
        else torch.eye(3).double()
    )
    real, fake = (
        metrics.Gaussian(
            axes @ torch.tensor(m).double(), axes @ torch.tensor(v).double().diag() @ axes.T
        )
        for m, v in zip(means, variances, strict=True)
    )
    expected = (
        np.square(np.subtract(*means)).sum() + np.square(np.subtract(*np.sqrt(variances))).sum()
    )
    assert metrics.frechet_distance(real, fake) == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_frechet_distance_of_a_moved_set_is_the_move_squared(name: str) -> None:
    real = draw(CASES[name]).real.double()
    rounding = (
        1e-4 if name == "singular" else 1e-9
    )  # the roots of 69 zero eigenvalues: -3e-6 measured
    assert frechet(real, real) == pytest.approx(0, abs=rounding)
    assert frechet(real, real + 0.5) == pytest.approx(0.25 * real.shape[1], abs=rounding)


def test_gaussian_agrees_with_numpy(pair: Pair) -> None:
    x = pair.real.double().numpy()
    mean, covariance = metrics.gaussian(pair.real)
    np.testing.assert_allclose(mean.numpy(), x.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(covariance.numpy(), np.cov(x, rowvar=False), rtol=1e-12, atol=1e-12)


# Kernel distance


def kernel_numpy(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    """The unbiased estimator of arXiv 1801.01401, for any N and M."""

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: NDArray[np.float64]) -> float:
        return float(kernel(x, x)[~np.eye(len(x), dtype=bool)].mean())

    return within(real) + within(fake) - 2 * float(kernel(real, fake).mean())


def kernel_torchmetrics(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    kid = pytest.importorskip("torchmetrics.image.kid")
    return float(kid.poly_mmd(torch.from_numpy(real), torch.from_numpy(fake)))


def kernel_torch_fidelity(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    """One subset that is the whole set."""
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    sets = torch.from_numpy(real), torch.from_numpy(fake)
    return float(
        kid.kid_features_to_metric(*sets, kid_subsets=1, kid_subset_size=len(real), verbose=False)[
            kid.KEY_METRIC_KID_MEAN
        ]
    )


def assert_same_kernel_distance(pair: Pair, expected: float) -> None:
    """Equal up to float32's rounding of single kernels, which cancels in a double sum and would
    grow in a float32 one."""
    x = pair.real.double()
    size = (
        (x.square().sum(1) / x.shape[1] + 1).pow(3).mean().item()
    )  # mean kernel of an item with itself
    assert metrics.kernel_distance(*pair) == pytest.approx(expected, abs=1e-8 * size)
    assert metrics.kernel_distance(*pair, metrics.within_kernel_mean(pair.real)) == pytest.approx(
        expected, abs=1e-8 * size
    )


def test_kernel_distance_agrees_with_numpy(pair: Pair) -> None:
    assert_same_kernel_distance(
        pair, kernel_numpy(pair.real.double().numpy(), pair.fake.double().numpy())
    )


@pytest.mark.parametrize("other", [kernel_torchmetrics, kernel_torch_fidelity])
def test_kernel_distance_of_equal_counts_agrees_with(
    other: Callable[[NDArray[np.float64], NDArray[np.float64]], float], pair: Pair
) -> None:
    """Both references need N = M."""
    count = min(map(len, pair))
    cut = Pair(pair.real[:count], pair.fake[:count])
    assert_same_kernel_distance(cut, other(cut.real.double().numpy(), cut.fake.double().numpy()))


def test_kernel_distance_of_equal_distributions_is_zero_on_average() -> None:
    """The diagonal is left out; with it, halves of 100 items would average +0.16 instead."""
    halves = [
        metrics.kernel_distance(
            *torch.randn(200, 8, generator=torch.Generator().manual_seed(s)).split(100)
        )
        for s in range(200)
    ]
    error = np.std(halves) / math.sqrt(len(halves))
    assert abs(np.mean(halves)) < 4 * error
    assert 4 * error < 0.05
    assert min(halves) < 0 < max(halves)


# What is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [(3, 2), (slice(None), slice(None))], ids=["one", "all"])
@pytest.mark.parametrize("side", ["real", "fake"])
@pytest.mark.parametrize("metric", [frechet, metrics.kernel_distance])
def test_distances_never_hide_what_is_not_finite(
    metric: Callable[[Tensor, Tensor], float],
    side: str,
    where: tuple[int | slice, int | slice],
    bad: float,
) -> None:
    clean = draw(Case(40, 60, 8))
    spoilt = getattr(clean, side).clone()
    spoilt[where] = bad
    value = value_or_nan(lambda: metric(*clean._replace(**{side: spoilt})))
    assert not math.isfinite(value)
    assert math.isfinite(metric(*clean))


@pytest.mark.parametrize("side", [0, 1], ids=["real", "fake"])
@pytest.mark.parametrize("part", ["mean", "covariance"])
def test_frechet_distance_hides_neither_mean_nor_covariance(side: int, part: str) -> None:
    """One by one, since statistics of spoilt features are spoilt in both."""
    sides = [metrics.gaussian(features) for features in draw(Case(40, 60, 8))]
    getattr(sides[side], part)[:] = math.nan
    assert not math.isfinite(value_or_nan(lambda: metrics.frechet_distance(*sides)))


def test_one_pixel_that_is_not_finite_is_refused_a_score(
    reference: Reference, held_out: Split
) -> None:
    images = held_out.images[:20].float() / 127.5 - 1
    images[4, 0, 14, 14] = math.nan
    with pytest.raises(FloatingPointError, match="G generates non-finite values"):
        score(images, reference)


# Precision and recall, density and coverage


@pytest.mark.parametrize("count", [6, 300, metrics.ROWS["cpu"], metrics.ROWS["cpu"] + 1, 1100])
@pytest.mark.parametrize("k", [1, 5])
def test_neighbour_radii_agree_with_a_tree(count: int, k: int) -> None:
    spatial = pytest.importorskip("scipy.spatial")
    x = draw(Case(count, 1, 8)).real
    expected = spatial.cKDTree(x.double().numpy()).query(x.double().numpy(), k=k + 1)[0][:, -1]
    np.testing.assert_allclose(metrics.neighbour_radii(x, k).numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize(("count", "k"), [(0, 5), (1, 5), (5, 5), (3, 3)])
def test_neighbour_radii_of_too_few_images_are_refused(count: int, k: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^{count} images; the {k}-th nearest neighbour needs at least {k + 1}$"
    ):
        metrics.neighbour_radii(torch.zeros(count, 8), k)


def test_score_of_too_few_images_is_refused(reference: Reference, held_out: Split) -> None:
    with pytest.raises(ValueError, match=r"^5 images; .* needs at least 6$"):
        score(held_out.images[:5], reference)


@pytest.mark.parametrize("k", [3, metrics.NEIGHBOURS])
def test_manifold_agrees_with_prdc(pair: Pair, k: int) -> None:
    prdc = pytest.importorskip("prdc")
    real, fake = pair
    found = metrics.manifold(
        real, fake, metrics.neighbour_radii(real, k), metrics.neighbour_radii(fake, k), k
    )
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), k)
    # distances are rounded otherwise there, so an item on the edge of a neighbourhood may fall on
    # its other side
    edge = 1.5 / min(len(real), len(fake))
    assert found == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=edge
    )


def test_manifold_cases_tell_the_four_metrics_apart() -> None:
    """So that agreement above is not one of zeros with zeros, nor of one metric with another."""
    found = {}
    for name in ("alike", "shifted", "narrow", "wide"):
        real, fake = draw(CASES[name])
        found[name] = metrics.manifold(
            real, fake, metrics.neighbour_radii(real), metrics.neighbour_radii(fake)
        )
    assert min(found["alike"].values()) > 0.9
    assert max(found["shifted"].values()) < 0.9
    assert found["narrow"]["precision"] > 0.9 > 0.5 > found["narrow"]["recall"]
    assert found["wide"]["recall"] > 0.9 > 0.5 > found["wide"]["precision"]


# Classifier score and digits


@pytest.mark.parametrize(
    "scale", [0.0, 1.0, 5.0, 100.0]
)  # at 100, most probabilities are exactly 0 in float32
def test_classifier_score_agrees_with_torch_fidelity_and_scipy(scale: float) -> None:
    isc, stats = (
        pytest.importorskip("torch_fidelity.metric_isc"),
        pytest.importorskip("scipy.stats"),
    )
    logits = scale * torch.randn(900, 10, generator=torch.Generator().manual_seed(3))
    probabilities = logits.softmax(1)
    if scale == 100:
        assert (probabilities == 0).double().mean() > 0.5
    found = metrics.classifier_score(probabilities)
    theirs = isc.isc_features_to_metric(logits, splits=1, shuffle=False)
    assert found == pytest.approx(theirs[isc.KEY_METRIC_ISC_MEAN], rel=1e-5)
    p = probabilities.double().numpy()
    p /= p.sum(
        1, keepdims=True
    )  # a float32 softmax adds up to 1 within 1e-7, and scipy makes it exact
    divergences = [stats.entropy(row, p.mean(0)) for row in p]
    assert found == pytest.approx(math.exp(np.mean(divergences)), rel=1e-6)


@pytest.mark.parametrize("sure_of", [1, 2, 5, 10])
def test_classifier_score_counts_the_digits_it_is_sure_of(sure_of: int) -> None:
    even = torch.eye(10)[:sure_of].repeat(30, 1)
    assert metrics.classifier_score(even) == pytest.approx(sure_of, rel=1e-12)


def test_classifier_score_is_not_finite_where_a_prediction_is_not() -> None:
    probabilities = torch.full((20, 10), 0.1)
    probabilities[7] = math.nan
    assert math.isnan(metrics.classifier_score(probabilities))


@pytest.mark.parametrize(
    ("surest", "expected"),
    [
        ([0.9], 1.0),  # the boundary counts, as float32 holds it
        ([0.9 - 1e-7], 0.0),
        ([0.9 + 1e-7], 1.0),
        ([0.1], 0.0),
        ([1.0, 0.95, 0.9, 0.89, 0.5, 0.899999, 0.900001, 0.2], 0.5),
        ([0.91, 0.4, 0.3], 1 / 3),
    ],
)
def test_confident_share_by_hand(surest: list[float], expected: float) -> None:
    probabilities = torch.stack([torch.full((10,), (1 - p) / 9) for p in surest])
    for row, p in enumerate(surest):
        probabilities[row, 7 * row % 10] = p  # sure of whichever digit
    assert metrics.confident_share(probabilities) == pytest.approx(expected, rel=1e-15)


def test_confident_share_is_of_one_digit_at_a_time() -> None:
    """Two likely digits are no certainty, however little is left for the others."""
    assert (
        metrics.confident_share(torch.tensor([[0.5, 0.5] + 8 * [0.0], [0.89, 0.11] + 8 * [0.0]]))
        == 0
    )


COUNTS = {
    "even": [200] * 10,
    "one digit": [0, 0, 0, 2000, 0, 0, 0, 0, 0, 0],
    "halves": [0, 0, 1000, 0, 0, 0, 0, 1000, 0, 0],
    "1 % and just below": [20, 19, 1961, 0, 0, 0, 0, 0, 0, 0],
    "1 % of 10,000": [100, 99, 101, 9700, 0, 0, 0, 0, 0, 0],
    "last digits only": [0, 0, 0, 0, 0, 0, 0, 0, 1, 2],
    "uneven": [13, 55, 21, 8, 1, 2, 89, 34, 3, 5],
}


@pytest.mark.parametrize("name", COUNTS)
def test_digit_histogram_agrees_with_numpy_and_scipy(name: str) -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = np.array(COUNTS[name])
    rng = np.random.default_rng(4)
    labels = rng.permutation(np.repeat(np.arange(10), counts))  # (M,)
    probabilities = rng.uniform(0, 0.4, (len(labels), 10))
    probabilities[np.arange(len(labels)), labels] += 0.5  # likeliest, however unsure
    probabilities /= probabilities.sum(1, keepdims=True)

    shares = metrics.class_shares(torch.from_numpy(probabilities).float())
    assert shares.dtype == torch.float64
    np.testing.assert_allclose(shares.numpy(), counts / counts.sum(), rtol=1e-15)
    assert (
        metrics.classes_covered(shares) == (100 * counts >= counts.sum()).sum()
    )  # in whole numbers: no rounding at 1 %
    assert metrics.kl_from_uniform(shares) == pytest.approx(
        stats.entropy(counts, np.ones(10)), rel=1e-12, abs=1e-15
    )


@pytest.mark.parametrize("classes", [2, 3, 7, 26])
def test_the_number_of_classes_is_that_of_the_probabilities(classes: int) -> None:
    """Also if no image is of the last class."""
    labels = torch.arange(classes - 1).repeat(50)
    shares = metrics.class_shares(torch.eye(classes)[labels])
    np.testing.assert_allclose(
        shares.numpy(), [1 / (classes - 1)] * (classes - 1) + [0], rtol=1e-15
    )
    assert metrics.classes_covered(shares) == classes - 1
    even = math.log(classes / (classes - 1))
    assert metrics.kl_from_uniform(shares) == pytest.approx(even, rel=1e-12)


@pytest.mark.parametrize(
    ("classes", "seen", "expected"),
    [
        (26, 13, False),
        (26, 12, True),
        (7, 4, False),
        (7, 3, True),  # half of 7 is more than 3
        (3, 2, False),
        (3, 1, True),
        (2, 1, False),
    ],
)
def test_collapse_is_to_fewer_than_half_of_any_number_of_classes(
    classes: int, seen: int, expected: bool
) -> None:
    shares = torch.zeros(classes).double()
    shares[:seen] = 1 / seen
    assert metrics.collapsed(shares, torch.ones(9), torch.ones(9)) is expected


@pytest.mark.parametrize(
    ("digits_seen", "radius", "expected"),
    [
        (10, 1.0, False),
        (5, 1.0, False),
        (4, 1.0, True),  # fewer than half of the digits
        (1, 1.0, True),
        (10, 5.0, False),  # spread further than real images is no collapse
        (10, 0.11, False),
        (10, 0.09, True),  # ten times closer to each other than real images are
        (10, 0.0, True),
        (4, 0.0, True),
    ],
)
def test_collapse_by_digits_and_by_repeats(digits_seen: int, radius: float, expected: bool) -> None:
    shares = torch.zeros(10).double()
    shares[:digits_seen] = 1 / digits_seen
    real = torch.linspace(1, 3, 101)  # median 2
    assert metrics.collapsed(shares, real, radius * real) is expected


@pytest.mark.parametrize(("repeated", "expected"), [(0.4, False), (0.6, True)])
def test_collapse_is_of_the_typical_image(repeated: float, expected: bool) -> None:
    """Real neighbours are far apart here and there, so neither the mean nor the least radius will
    do."""
    fake = torch.full((100,), 2.0)
    fake[: int(100 * repeated)] = 0.0
    real = torch.cat([torch.full((99,), 2.0), torch.tensor([1e6])])
    assert metrics.collapsed(torch.full((10,), 0.1).double(), real, fake) is expected


# High-frequency energy


def high_part(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """What of images (N, C, S, S) lies above a quarter of a cycle a pixel. The cut-off is of whole
    numbers: no rounding."""
    fft, size = pytest.importorskip("scipy.fft"), images.shape[-1]
    k = np.rint(fft.fftfreq(size) * size).astype(int)
    part = fft.ifft2(fft.fft2(images) * (16 * (k[:, None] ** 2 + k**2) > size**2))
    assert np.abs(part.imag).max() < 1e-12
    return np.asarray(part.real)


def energy_by_filter(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without Parseval's theorem: filtered, then squared pixel by pixel. (N,)"""
    return np.asarray(np.square(high_part(images)).mean((1, 2, 3)))


def energy_by_sums(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without an FFT: one wave after the other. (N,)"""
    size, energy = images.shape[-1], np.zeros(len(images))
    y, x = np.mgrid[:size, :size]
    for u in range(size):
        for v in range(size):
            if 16 * (min(u, size - u) ** 2 + min(v, size - v) ** 2) > size**2:
                wave = np.exp(-2j * np.pi * (u * y + v * x) / size)
                energy += np.square(np.abs((images * wave).mean((2, 3)))).mean(1)
    return energy


@pytest.mark.parametrize("other", [energy_by_filter, energy_by_sums])
@pytest.mark.parametrize(
    ("count", "channels", "size"),
    [
        (3, 1, 28),
        (3, 3, 16),
        (2, 1, 32),
        (2, 3, 15),
        (3, 1, 9),
        (2, 1, 29),
        (1, 1, 1),
        (1100, 1, 4),
        (1100, 3, 5),
    ],
)
def test_high_frequency_energy_agrees_with(
    other: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    count: int,
    channels: int,
    size: int,
) -> None:
    images = (
        torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1
    )
    found = metrics.high_frequency_energy(images)
    assert found.shape == (count,)
    np.testing.assert_allclose(found.numpy(), other(images.double().numpy()), rtol=1e-5, atol=1e-12)


def wave(size: int, down: int, across: int) -> Tensor:
    """`down` and `across` cycles in an image of amplitude 1. (S, S)"""
    y, x = np.mgrid[:size, :size]
    return torch.from_numpy(np.cos(2 * np.pi * (down * y + across * x) / size + 0.4)).float()


WAVES = [
    (28, 0, 8, True),
    (28, 8, 0, True),
    (28, 0, 13, True),
    (28, 3, 7, True),
    (28, 5, 5, True),  # neither direction alone is above
    (28, -5, 5, True),
    (28, 0, 7, False),  # at the cut-off
    (28, 7, 0, False),
    (28, 4, 5, False),
    (28, 4, -5, False),
    (28, 1, 0, False),
    (15, 0, 4, True),
    (15, 7, 7, True),
    (15, 3, 0, False),
    (29, 8, 0, True),
    (29, 0, 7, False),
    (64, 16, 1, True),
    (64, 16, 0, False),
]


@pytest.mark.parametrize(("size", "down", "across", "above"), WAVES)
def test_energy_of_a_wave_is_half_its_amplitude_squared_or_nothing(
    size: int, down: int, across: int, above: bool
) -> None:
    of_one = 0.5 if above else 0.0
    images = torch.stack([0.6 * wave(size, down, across), wave(size, down, across) - 0.7])[
        :, None
    ]  # the mean is no energy
    np.testing.assert_allclose(
        metrics.high_frequency_energy(images), [0.36 * of_one, of_one], rtol=1e-5, atol=1e-10
    )
    coloured = torch.tensor([0.2, 0.4, 0.9])[:, None, None] * wave(
        size, down, across
    )  # a mean over channels
    expected = of_one * (0.04 + 0.16 + 0.81) / 3
    np.testing.assert_allclose(
        metrics.high_frequency_energy(coloured[None]), [expected], rtol=1e-5, atol=1e-10
    )


@pytest.mark.parametrize("size", [1, 16, 28, 33])
def test_energy_of_an_even_image_is_none_and_of_a_chequerboard_all(size: int) -> None:
    assert metrics.high_frequency_energy(torch.full((2, 3, size, size), -1.0)).abs().max() < 1e-12
    if size % 2 == 0:
        board = torch.ones(size, size)
        board[::2, ::2] = board[1::2, 1::2] = -1
        np.testing.assert_allclose(
            metrics.high_frequency_energy(0.5 * board[None, None]), [0.25], rtol=1e-6
        )


def test_energies_of_waves_add_up_and_the_low_ones_are_left_out() -> None:
    mixed = 0.3 * wave(28, 0, 9) + 0.5 * wave(28, 11, -2) + 0.9 * wave(28, 2, 3) - 0.1
    assert metrics.high_frequency_energy(mixed[None, None]).item() == pytest.approx(
        (0.09 + 0.25) / 2, rel=1e-5
    )


# Path length


def arc(radius: float, angle: float, steps: int) -> list[list[float]]:
    return [[radius * math.cos(a), radius * math.sin(a)] for a in np.linspace(0, angle, steps)]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([[[0, 0], [3, 4], [6, 8]]], 10),  # a line
        ([[[0, 0], [0.6, 0.8], [6, 8]]], 10),  # however it is divided
        ([[[0, 0], [3, 4], [0, 0]]], 10),  # there and back, though the ends are the same
        ([[[2, 1], [2, 1], [2, 1]]], 0),
        ([[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]], 4),
        ([arc(5, math.pi / 2, 4)], 3 * 2 * 5 * math.sin(math.pi / 12)),  # chords
        ([arc(5, math.pi / 2, 5000)], 5 * math.pi / 2),
        (
            [[[0, 0], [3, 4]], [[100, 0], [100, 1]]],
            3,
        ),  # a mean over paths, and no step from one to the next
        ([[[1, 1]]], 0),
    ],
)
def test_path_length_by_hand(paths: list[list[list[float]]], expected: float) -> None:
    assert metrics.path_length(torch.tensor(paths, dtype=torch.float64)) == pytest.approx(
        expected, rel=1e-6
    )
    moved = torch.tensor(paths, dtype=torch.float32) - 7
    assert metrics.path_length(moved) == pytest.approx(expected, rel=1e-3)


def test_path_length_agrees_with_numpy() -> None:
    features = torch.randn(6, 8, FEATURES, generator=torch.Generator().manual_seed(2))
    x = features.double().numpy()
    lengths = [sum(float(np.linalg.norm(path[t + 1] - path[t])) for t in range(7)) for path in x]
    assert metrics.path_length(features) == pytest.approx(np.mean(lengths), rel=1e-12)


# The order of good and bad images, on real digits


def fill(images: Tensor, count: int) -> Tensor:
    """`count` images, by repeating them."""
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


@pytest.fixture(scope="module")
def rows(reference: Reference, held_out: Split) -> dict[str, Row]:
    """Scores of sets as large as the reference, the best first."""
    images, labels = held_out
    count, of_class = len(images), [images[labels == digit] for digit in range(10)]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sets = {
        "real": images,
        "blurred": gaussian_blur(images, [5, 5], [1.0, 1.0]),
        "one class": fill(of_class[3], count),
        "one image": fill(of_class[3][:1], count),
        "noise": noise,
        "ten images": fill(torch.cat([some[:1] for some in of_class]), count),
    }
    return {name: score(some, reference) for name, some in sets.items()}


def test_fid_orders_good_and_bad_images(rows: dict[str, Row], reference: Reference) -> None:
    order = ["real", "blurred", "one class", "one image", "noise"]
    fids = [float(rows[name]["fid"]) for name in order]
    assert fids == sorted(fids)
    assert fids[1] > 50 * fids[0]
    # held-out real images are about as far as training images are
    assert 0 < reference.fid_real < 1
    assert 0.5 < fids[0] / reference.fid_real < 2


@pytest.mark.parametrize("poor", ["one class", "one image"])
def test_kid_orders_good_and_bad_images(rows: dict[str, Row], poor: str) -> None:
    """One image is not always worse than its class on kid, only on average: see the next test."""
    kids = [float(rows[name]["kid"]) for name in ("real", "blurred", poor, "noise")]
    assert kids == sorted(kids)
    assert kids[1] > 50 * abs(kids[0])


@pytest.mark.parametrize("digit", range(10))
def test_one_image_is_on_average_worse_than_its_class(
    digit: int, digits: Pair, reference: Reference, held_out: Split
) -> None:
    """For kid this is Jensen's inequality; a single bland image near the mean of all digits may
    beat its class.

    Neither distance depends on how often an image is repeated.
    """
    some = digits.fake[held_out.labels == digit][:30]
    alone = [image.repeat(6, 1) for image in some]
    fids = [metrics.frechet_distance(reference.gaussian, metrics.gaussian(x)) for x in alone]
    kids = [metrics.kernel_distance(reference.features, x, reference.within) for x in alone]
    assert np.mean(fids) > metrics.frechet_distance(reference.gaussian, metrics.gaussian(some))
    assert np.mean(kids) > metrics.kernel_distance(reference.features, some, reference.within)


@pytest.mark.parametrize(
    ("name", "covered", "collapsed"),
    [
        ("real", 10, False),
        ("blurred", 10, False),
        ("one class", 1, True),
        ("one image", 1, True),
        ("noise", 1, True),
        ("ten images", 10, True),
    ],
)
def test_collapse_and_covered_digits(
    rows: dict[str, Row], name: str, covered: int, collapsed: bool
) -> None:
    assert rows[name]["classes_covered"] == covered
    assert rows[name]["collapsed"] is collapsed


def test_real_images_cover_real_images(rows: dict[str, Row]) -> None:
    """Expected coverage of equal distributions and counts is near 1 - 2^-k, and density 1 (arXiv
    2002.09797)."""
    real = rows["real"]
    assert real["sample_coverage"] == pytest.approx(1 - 2**-metrics.NEIGHBOURS, abs=0.03)
    assert real["sample_density"] == pytest.approx(1, abs=0.1)
    assert min(real["sample_precision"], real["sample_recall"]) > 0.9
    assert real["classifier_score"] == pytest.approx(10, abs=0.3)
    for name in ("one class", "one image", "noise", "ten images"):
        assert rows[name]["sample_coverage"] < 0.2


def test_sharpness_tells_blurred_and_noisy_from_real_digits(
    rows: dict[str, Row], reference: Reference, held_out: Split
) -> None:
    assert 0.85 < rows["real"]["sharpness"] < 1.15
    assert rows["blurred"]["sharpness"] < 0.1
    assert rows["noise"]["sharpness"] > 5
    unit = held_out.images.float() / 127.5 - 1
    noise = torch.randn(unit.shape, generator=torch.Generator().manual_seed(1))
    for blur, grain in ((0.5, 0.2), (0.7, 0.5)):  # milder than above
        assert 0 < mean_energy(gaussian_blur(unit, [5, 5], [blur, blur])) / reference.energy < 0.7
        assert mean_energy(unit + grain * noise) / reference.energy > 1.5
    for split in ("train", "validation"):
        assert (
            0.85
            < mean_energy(load_split(MINI, split).images[: len(unit)]) / reference.energy
            < 1.15
        )


@pytest.mark.parametrize("name", ["real", "blurred"])
def test_sharpness_is_a_quotient_of_energies(
    name: str, rows: dict[str, Row], held_out: Split
) -> None:
    images = {
        "real": held_out.images,
        "blurred": gaussian_blur(held_out.images, [5, 5], [1.0, 1.0]),
    }[name]
    mean, of_real = (
        energy_by_filter(x.double().numpy() / 127.5 - 1).mean()
        for x in (images, load_split(MINI, "validation").images)
    )
    assert rows[name]["sharpness"] == pytest.approx(mean / of_real, rel=1e-5)


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (28, 3), (64, 1)])
def test_sharpness_of_real_digits_is_1_at_any_size_and_in_colour(size: int, channels: int) -> None:
    of_test, of_validation = (
        mean_energy(load_split(Source("mnist-mini", size, channels), split).images[:400])
        for split in ("test", "validation")
    )
    assert 0.85 < of_test / of_validation < 1.15


def test_energy_is_the_same_for_uint8_float_and_double(held_out: Split) -> None:
    images = held_out.images[:200]
    unit = images.double() / 127.5 - 1
    for same in (unit, unit.float()):
        assert mean_energy(images) == pytest.approx(mean_energy(same), rel=1e-6)
    assert mean_energy(images) == pytest.approx(energy_by_filter(unit.numpy()).mean(), rel=1e-5)


def test_the_yardstick_is_sure_of_real_digits(rows: dict[str, Row], held_out: Split) -> None:
    probabilities = extract(load_yardstick(MINI), held_out.images).probabilities
    assert rows["real"]["confident_share"] == np.mean(
        [max(p) >= np.float32(0.9) for p in probabilities.numpy()]
    )
    assert rows["real"]["confident_share"] > 0.97
    assert rows["one image"]["confident_share"] in (0, 1)
    some = held_out.images[:300].float()
    crossed = (some + some.roll(1, 0)) / 255 - 1  # two digits, one over the other
    assert metrics.confident_share(extract(load_yardstick(MINI), crossed).probabilities) < 0.7


# From images to features


def test_score_is_the_same_for_uint8_and_for_unit_range(
    reference: Reference, held_out: Split
) -> None:
    images = held_out.images[:500]
    assert score(images, reference) == score(images.float() / 127.5 - 1, reference)


@pytest.mark.parametrize(
    ("size", "channels", "agreement"),
    [(28, 3, 1.0), (32, 1, 0.98), (32, 3, 0.98), (64, 3, 0.98)],
)
def test_features_of_any_size_and_of_colour(
    size: int, channels: int, agreement: float, held_out: Split
) -> None:
    """Grey in three channels is the same image; resizing there and back blurs it a little."""
    images = load_split(Source("mnist-mini", size, channels), "test").images[:200]
    assert images.shape == (200, channels, size, size)
    features, probabilities = extract(load_yardstick(MINI), images)
    assert features.shape == (200, FEATURES)
    assert features.dtype == torch.float32
    assert probabilities.shape == (200, 10)
    as_they_are = extract(load_yardstick(MINI), held_out.images[:200])
    assert (
        probabilities.argmax(1) == as_they_are.probabilities.argmax(1)
    ).double().mean() >= agreement
    if size == 28:
        torch.testing.assert_close(features, as_they_are.features, rtol=1e-4, atol=1e-4)


def test_colours_count_alike(held_out: Split) -> None:
    """Three different channels are read as their mean."""
    unit = held_out.images[:150].float() / 127.5 - 1
    coloured = unit.reshape(50, 3, 28, 28)
    found = extract(load_yardstick(MINI), coloured)
    grey = extract(load_yardstick(MINI), coloured.sum(1, keepdim=True) / 3)
    torch.testing.assert_close(found.features, grey.features, rtol=1e-4, atol=1e-4)
