"""`dcgan.evaluate`: what is known of the real split, its file that spares other processes the work,
the fixed noise, and the paths between noises."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcgan import checkpoint, evaluate, metrics
from dcgan.config import TrainConfig
from dcgan.data import Source, load_split
from dcgan.evaluate import (
    Reference,
    circles,
    evaluation_noise,
    generate,
    great_circles,
    load_reference,
    path_length,
    reference_key,
    score,
)
from dcgan.models import build
from dcgan.schema import COLUMNS
from dcgan.weights import unpack
from dcgan.yardstick import PATH, SHA256, Extracted, Yardstick, extract, fold, load_yardstick

CPU = torch.device("cpu")
MINI = Source("mnist-mini")
SMALL = Source("mnist-mini", image_size=16)
ROOT = Path(__file__).parents[3]
LOAD = """
import sys, torch
import dcgan.evaluate
from dcgan.data import Source
torch.set_num_threads(1)
if sys.argv[2] == "read":
    dcgan.evaluate.extract = lambda *given: sys.exit("it was worked out")
reference = dcgan.evaluate.load_reference(Source("mnist-mini"), "validation")
content = {name: getattr(reference, name) for name in dcgan.evaluate.SAVED}
torch.save(content | {"gaussian": tuple(reference.gaussian)}, sys.argv[1])
"""


def files(data_dir: Path) -> list[Path]:
    """All files below a folder, unfinished ones too."""
    return sorted(path for path in data_dir.rglob("*") if path.is_file())


def assert_same(found: Reference, expected: Reference) -> None:
    """Every field to the last bit."""
    assert isinstance(found.gaussian, metrics.Gaussian)
    assert found.yardstick.sha256 == expected.yardstick.sha256
    for name in evaluate.SAVED:
        ours, value = getattr(found, name), getattr(expected, name)
        assert type(ours) is type(value), name
        if isinstance(value, str | float | int):
            assert ours == value, name
            continue
        for a, b in zip(
            *(tuple(v) if isinstance(v, tuple) else (v,) for v in (ours, value)), strict=True
        ):
            assert (a.dtype, a.device) == (b.dtype, b.device), name
            assert torch.equal(a, b), name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    """The reference as worked out by a first process, and its file."""
    torch.set_num_threads(1)  # fixtures of a module come before those of its tests
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCGAN_DATA_DIR", str(folder))
        load_reference.cache_clear()
        reference = load_reference(MINI, "validation")
    load_reference.cache_clear()
    (file,) = files(folder)
    return reference, file


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of this machine's, and nothing remembered before or after."""
    folder = tmp_path / "data"
    monkeypatch.setenv("DCGAN_DATA_DIR", str(folder))
    load_reference.cache_clear()
    yield folder
    load_reference.cache_clear()


@pytest.fixture
def place(made: tuple[Reference, Path], data_dir: Path) -> Path:
    """Where this machine keeps the reference, still empty."""
    return data_dir / "references" / made[1].name


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, no image gets through the yardstick."""

    def refuse(net: Yardstick, images: Tensor) -> Extracted:
        pytest.fail("it was worked out")

    return lambda: monkeypatch.setattr(evaluate, "extract", refuse)


def key(source: Source, split: str, count: int = 2000, extractor: str = SHA256) -> str:
    images = load_split(source, split).images[:count]
    return reference_key(source, split, images, extractor)


# What a reference holds


def test_a_reference_describes_its_split(made: tuple[Reference, Path]) -> None:
    reference, _ = made
    real, train = (load_split(MINI, split).images for split in ("validation", "train"))
    features, of_train = (
        extract(load_yardstick(MINI), images[:2000]).features for images in (real, train)
    )
    assert reference.split == "validation"
    assert torch.equal(reference.features, features)
    assert torch.equal(reference.radii, metrics.neighbour_radii(features))
    assert reference.within == metrics.within_kernel_mean(features)
    torch.testing.assert_close(reference.gaussian.mean, features.double().mean(0))
    torch.testing.assert_close(reference.gaussian.covariance, features.double().T.cov())
    unit = real.double().div(127.5).sub(1)
    assert reference.energy == pytest.approx(
        metrics.high_frequency_energy(unit).mean().item(), rel=1e-6
    )
    assert reference.fid_real == metrics.frechet_distance(
        metrics.gaussian(features), metrics.gaussian(of_train)
    )
    assert 0 < reference.fid_real < 1


# Its file


def test_the_first_load_writes_one_file(made: tuple[Reference, Path]) -> None:
    _, file = made
    assert file.parent.name == "references"
    assert file.name == f"{key(MINI, 'validation')}.pt"


def test_a_later_load_reads_the_file(
    made: tuple[Reference, Path], data_dir: Path, no_work: Callable[[], None]
) -> None:
    reference = load_reference(MINI, "validation")
    (file,) = files(data_dir)
    before = file.stat()
    load_reference.cache_clear()
    no_work()
    read = load_reference(MINI, "validation")
    assert read is not reference
    for found in (reference, read):
        assert_same(found, made[0])
    assert files(data_dir) == [file]
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_within_a_process_it_is_loaded_once(
    place: Path, made: tuple[Reference, Path], no_work: Callable[[], None]
) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(made[1].read_bytes())
    no_work()
    reference = load_reference(MINI, "validation")
    place.unlink()
    assert load_reference(MINI, "validation") is reference


def load_elsewhere(out: Path, how: str) -> subprocess.Popen[str]:
    """Loads the reference in a new process, which writes it to a file."""
    command = [sys.executable, "-c", LOAD, str(out), how]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )


def loaded_elsewhere(process: subprocess.Popen[str], out: Path) -> Reference:
    _, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, "")
    saved = torch.load(out, weights_only=True)
    saved["gaussian"] = metrics.Gaussian(*saved["gaussian"])
    return Reference(**saved, yardstick=load_yardstick(MINI))


def test_another_process_reads_the_same_bits(
    made: tuple[Reference, Path], place: Path, tmp_path: Path
) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(made[1].read_bytes())
    assert_same(
        loaded_elsewhere(load_elsewhere(tmp_path / "out", "read"), tmp_path / "out"), made[0]
    )


def test_processes_that_begin_together_leave_one_whole_file(
    made: tuple[Reference, Path],
    data_dir: Path,
    place: Path,
    tmp_path: Path,
    no_work: Callable[[], None],
) -> None:
    outs = [tmp_path / "a", tmp_path / "b"]
    for process, out in [(load_elsewhere(out, "any"), out) for out in outs]:
        assert_same(loaded_elsewhere(process, out), made[0])
    assert files(data_dir) == [place]
    no_work()
    assert_same(load_reference(MINI, "validation"), made[0])


def flipped(content: bytes) -> bytes:
    """One bit in the middle, as a bad disk would."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda content: b"",
        lambda content: b"not it" * 99,
    ],
    ids=["flipped bit", "empty", "something else"],
)
def test_a_damaged_file_is_worked_out_and_written_again(
    damage: Callable[[bytes], bytes],
    made: tuple[Reference, Path],
    place: Path,
    data_dir: Path,
    no_work: Callable[[], None],
) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(damage(made[1].read_bytes()))
    assert_same(load_reference(MINI, "validation"), made[0])
    assert files(data_dir) == [place]
    assert checkpoint.read(place).keys() == set(evaluate.SAVED)
    load_reference.cache_clear()
    no_work()
    assert_same(load_reference(MINI, "validation"), made[0])


@pytest.mark.parametrize(
    "forge",
    [
        lambda saved: {
            name: value for name, value in saved.items() if name != "energy"
        },  # as an older one
        lambda saved: saved | {"sharpness": 1.0},
    ],
    ids=["without energy", "one more"],
)
def test_a_whole_file_of_other_fields_is_worked_out_and_written_again(
    forge: Callable[[dict[str, Any]], dict[str, Any]],
    made: tuple[Reference, Path],
    place: Path,
    no_work: Callable[[], None],
) -> None:
    checkpoint.write(place, forge(checkpoint.read(made[1])))
    assert checkpoint.read(place).keys() != set(Reference._fields)
    assert_same(load_reference(MINI, "validation"), made[0])
    assert checkpoint.read(place).keys() == set(evaluate.SAVED)
    load_reference.cache_clear()
    no_work()
    assert_same(load_reference(MINI, "validation"), made[0])


def test_a_data_dir_that_cannot_be_made_costs_only_the_time(
    made: tuple[Reference, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCGAN_DATA_DIR", "/proc/nowhere")
    assert_same(load_reference(MINI, "validation"), made[0])


def test_a_full_disk_costs_only_the_time(
    made: tuple[Reference, Path], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert_same(load_reference(MINI, "validation"), made[0])
    assert files(data_dir) == []


# Its key


def test_splits_are_kept_apart(
    data_dir: Path, made: tuple[Reference, Path], no_work: Callable[[], None]
) -> None:
    validation, test = (load_reference(MINI, split) for split in ("validation", "test"))
    assert {file.stem for file in files(data_dir)} == {key(MINI, "validation"), key(MINI, "test")}
    assert not torch.equal(validation.features, test.features)
    load_reference.cache_clear()
    no_work()
    assert_same(load_reference(MINI, "test"), test)
    assert_same(load_reference(MINI, "validation"), made[0])


def test_the_key_is_the_same_for_the_same_and_another_for_another() -> None:
    sources = [MINI, SMALL, Source("mnist-mini", channels=3)]
    keys = [key(source, split) for source in sources for split in ("validation", "test", "train")]
    assert len(set(keys)) == len(keys)
    assert keys == [
        key(source, split) for source in sources for split in ("validation", "test", "train")
    ]
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in keys)


def test_the_key_does_not_depend_on_where_the_data_lie(tmp_path: Path) -> None:
    assert key(MINI._replace(data_dir=tmp_path), "validation") == key(MINI, "validation")


def test_the_key_depends_on_the_data_set() -> None:
    """Of two with the same images."""
    images = load_split(MINI, "validation").images
    other = reference_key(Source("mnist"), "validation", images, SHA256)
    assert other != key(MINI, "validation")


def test_the_key_depends_on_the_images() -> None:
    """A person's folder may have others today."""
    images = load_split(MINI, "validation").images.clone()
    images[3, 0, 14, 14] += 1
    changed = reference_key(MINI, "validation", images, SHA256)
    assert len({changed, key(MINI, "validation"), key(MINI, "validation", 1000)}) == 3


def test_the_key_depends_on_the_yardstick() -> None:
    assert key(MINI, "validation", extractor="0" * 64) != key(MINI, "validation")


def test_the_key_depends_on_the_number_of_threads() -> None:
    """It decides in which order a CPU sums."""
    one = key(MINI, "validation")
    torch.set_num_threads(2)
    two = key(MINI, "validation")
    torch.set_num_threads(1)
    assert one == key(MINI, "validation") != two


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torch.__version__", "2.0.0"),
        ("dcgan.evaluate.PROTOCOL_VERSION", 0),
        ("dcgan.evaluate.get_cpu_capability", lambda: "none"),
        ("dcgan.evaluate.device_name", lambda device: "another"),
    ],
)
def test_the_key_depends_on_what_computes(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(SMALL, "validation")
    monkeypatch.setattr(name, value)
    assert key(SMALL, "validation") != before


# The noise


def test_evaluation_noise_is_always_the_same() -> None:
    torch.manual_seed(1)
    first = evaluation_noise(300, 7, CPU)
    kept = first.clone()
    assert first.shape == (300, 7)
    assert evaluation_noise(300, 7, CPU) is first
    evaluation_noise.cache_clear()
    torch.manual_seed(2)
    again = evaluation_noise(300, 7, CPU)
    assert again is not first
    assert torch.equal(again, kept)


def test_evaluation_noise_is_standard_normal() -> None:
    noise = evaluation_noise(2000, 100, CPU)
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01
    assert len(torch.unique(noise, dim=0)) == 2000


def test_evaluation_noise_leaves_the_random_stream_alone() -> None:
    evaluation_noise.cache_clear()
    before = torch.get_rng_state()
    evaluation_noise(50, 3, CPU)
    assert torch.equal(torch.get_rng_state(), before)


# Great circles


def ends(pairs: int, latent_size: int, norm: float | None = None) -> Tensor:
    """Both ends of some paths, of the same norm if one is given. (2, P, Z)"""
    noise = torch.randn(2, pairs, latent_size, generator=torch.Generator().manual_seed(11))
    return noise if norm is None else norm * nn.functional.normalize(noise, dim=-1)


@pytest.mark.parametrize("latent_size", [2, 3, 100])
@pytest.mark.parametrize("steps", [2, 5, 8])
def test_great_circles_turn_one_end_into_the_other(steps: int, latent_size: int) -> None:
    """With ends of one norm, each point is the first end turned by its share of the angle between
    them."""
    a, b = ends(20, latent_size, norm=7.0)
    found = great_circles(a, b, steps)
    assert found.shape == (20, steps, latent_size)
    for path, start, end in zip(
        found.double().numpy(), a.double().numpy(), b.double().numpy(), strict=True
    ):
        along = start @ end / np.linalg.norm(start) ** 2
        across = end - along * start
        angle = np.arctan2(np.linalg.norm(across), along * np.linalg.norm(start))
        across *= np.linalg.norm(start) / np.linalg.norm(across)
        expected = [
            np.cos(t * angle) * start + np.sin(t * angle) * across for t in np.linspace(0, 1, steps)
        ]
        np.testing.assert_allclose(path, expected, atol=2e-3)
        np.testing.assert_allclose(np.linalg.norm(path, axis=1), 7, rtol=1e-3)
        chords = np.linalg.norm(np.diff(path, axis=0), axis=1)
        np.testing.assert_allclose(chords, 14 * np.sin(angle / (steps - 1) / 2), atol=2e-3)


def test_great_circles_begin_and_end_in_their_noises() -> None:
    """Of unequal norms, as noises are."""
    a, b = ends(50, 100)
    turned = great_circles(a, b, 6)
    torch.testing.assert_close(turned[:, 0], a)
    torch.testing.assert_close(turned[:, -1], b)
    torch.testing.assert_close(great_circles(b, a, 6), turned.flip(1))
    norms_of_ends, inside = torch.stack([a, b]).norm(dim=-1), turned.norm(dim=-1)
    assert (inside > 0.9 * norms_of_ends.amin(0)[:, None]).all()
    assert (inside < 1.1 * norms_of_ends.amax(0)[:, None]).all()


@pytest.mark.parametrize("latent_size", [1, 2, 100])
@pytest.mark.parametrize(
    "factor", [1.0, 1.7, -1.0, -0.6], ids=["same", "parallel", "opposite", "antiparallel"]
)
def test_noises_on_one_line_are_joined_by_it(factor: float, latent_size: int) -> None:
    """No great circle goes through them; rounding puts the cosine of some above 1."""
    a, _ = ends(300, latent_size)
    found = great_circles(a, factor * a, 5)
    assert found.isfinite().all()
    expected = torch.stack([(1 + (factor - 1) * t / 4) * a for t in range(5)], 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("off", [1e-7, 1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("sign", [1, -1])
def test_nearly_parallel_noises_stay_finite_and_in_range(sign: int, off: float) -> None:
    a, other = ends(300, 100)
    b = sign * a + off * other
    turned = great_circles(a, b, 5)
    assert turned.isfinite().all()
    torch.testing.assert_close(turned[:, 0], a, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned[:, -1], b, atol=1e-4, rtol=1e-4)
    if sign > 0:
        torch.testing.assert_close(
            turned.norm(dim=-1), a.norm(dim=-1)[:, None].expand(300, 5), atol=0, rtol=0.02
        )


# The length of a generator's paths


class Echo(nn.Module):
    """Returns its noise."""

    def forward(self, noise: Tensor) -> Tensor:
        return noise


class Steep(nn.Module):
    """Fixed patterns weighed by the noise: how steeply they follow it is `scale`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(4)
        self.weight = scale * torch.randn(100, 28 * 28, generator=rng) / 10

    def forward(self, noise: Tensor) -> Tensor:
        return (noise @ self.weight).tanh().view(-1, 1, 28, 28)


class Album(nn.Module):
    """Real digits, one for each range of the noise's first value: the more `pages`, the more often
    it jumps."""

    def __init__(self, pages: int) -> None:
        super().__init__()
        self.pages = load_split(MINI, "test").images[:pages].float() / 127.5 - 1

    def forward(self, noise: Tensor) -> Tensor:
        uniform = 0.5 + 0.5 * (noise[:, 0] / 2**0.5).erf()
        return self.pages[(uniform * len(self.pages)).long().clamp(max=len(self.pages) - 1)]


def test_path_length_is_of_32_great_circles_in_8_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise itself for image and features."""
    monkeypatch.setattr(evaluate, "extract", lambda yardstick, images: Extracted(images, images))
    noise = (
        torch.randn(64, 20, generator=torch.Generator().manual_seed(evaluate.NOISE_SEED))
        .double()
        .numpy()
    )
    lengths = []
    for start, end in zip(noise[:32], noise[32:], strict=True):
        angle = np.arccos(start @ end / np.linalg.norm(start) / np.linalg.norm(end))
        t = np.linspace(0, 1, 8)[:, None]
        path = (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)
        lengths.append(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
    assert path_length(generate(Echo(), circles(20, CPU)), load_yardstick(MINI)) == pytest.approx(
        np.mean(lengths), rel=1e-5
    )


def test_path_length_of_a_generator_that_ignores_its_noise_is_0() -> None:
    assert path_length(
        generate(Steep(0), circles(100, CPU)), load_yardstick(MINI)
    ) == pytest.approx(0, abs=1e-3)
    assert path_length(
        generate(Album(1), circles(100, CPU)), load_yardstick(MINI)
    ) == pytest.approx(0, abs=1e-3)


def test_path_length_grows_with_how_steeply_images_follow_the_noise() -> None:
    gentle, even, steep = (
        path_length(generate(Steep(scale), circles(100, CPU)), load_yardstick(MINI))
        for scale in (0.03, 0.3, 30)
    )
    assert 0.01 < gentle < even / 2
    assert even < steep


def test_path_length_grows_with_jumps() -> None:
    one, two, many = (
        path_length(generate(Album(pages), circles(100, CPU)), load_yardstick(MINI))
        for pages in (1, 2, 300)
    )
    assert one < two < many / 2


@pytest.mark.parametrize("training", [False, True])
def test_path_length_is_repeatable_and_leaves_everything_as_it_was(training: bool) -> None:
    generator = build([TrainConfig(generator_width=2, discriminator_width=2, image_size=16)])[
        0
    ].train(training)
    before, stream = copy.deepcopy(generator.state_dict()), torch.get_rng_state()
    noise = evaluation_noise(64, 100, CPU).clone()
    first = path_length(generate(generator, circles(100, CPU)), load_yardstick(MINI))
    torch.manual_seed(77)
    assert path_length(generate(generator, circles(100, CPU)), load_yardstick(MINI)) == first > 0
    torch.set_rng_state(stream)
    path_length(generate(generator, circles(100, CPU)), load_yardstick(MINI))
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(evaluation_noise(64, 100, CPU), noise)
    assert generator.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())


# A row


def test_evaluate_gives_every_quality_column_and_no_other(made: tuple[Reference, Path]) -> None:
    names = list(COLUMNS)
    quality = names[names.index("fid") : names.index("seconds_train")]
    config = TrainConfig(generator_width=2, discriminator_width=2, image_size=28, latent_size=9)
    generator = build([config])[0]
    reference = made[0]._replace(features=made[0].features[:120], radii=made[0].radii[:120])
    row = evaluate.evaluate(generator, config, reference)
    assert sorted(row) == sorted(quality)
    assert {name: type(row[name]) for name in quality} == dict.fromkeys(quality, float) | {
        "classes_covered": int,
        "collapsed": bool,
    }
    assert all(np.isfinite(value) for value in row.values())
    images = generate(generator, evaluation_noise(120, 9, CPU))
    assert row == score(images, reference) | {
        "path_length": path_length(generate(generator, circles(9, CPU)), load_yardstick(MINI))
    }
    assert row["sharpness"] == evaluate.mean_energy(images) / made[0].energy
    assert {"confident_share", "sharpness", "path_length"} < row.keys() - evaluate.protocol(
        reference
    ).keys()


# The yardstick's batch norms, folded


def norms(net: nn.Module) -> list[nn.Module]:
    return [
        module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]


def test_the_loaded_yardstick_is_the_shipped_network_without_its_batch_norms() -> None:
    shipped = Yardstick()
    shipped.load_state_dict(unpack(PATH.read_bytes()))
    shipped.eval()
    assert len(norms(shipped)) == 4
    loaded = load_yardstick(MINI)
    assert norms(loaded) == []
    images = load_split(MINI, "test").images[:500].double().div(127.5).sub(1).float()
    with torch.inference_mode():
        for found, expected in zip(loaded(images), shipped(images), strict=True):
            assert expected.std() > 0.1
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fold_keeps_the_function_of_any_statistics() -> None:
    rng = torch.Generator().manual_seed(0)
    net = Yardstick().eval()
    with torch.no_grad():
        for norm in norms(net):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                assert isinstance(tensor, Tensor)
                tensor.normal_(generator=rng)
            assert isinstance(norm.running_var, Tensor)
            norm.running_var.uniform_(0.1, 3.0, generator=rng)
    images = load_split(MINI, "test").images[:50].double().div(127.5).sub(1).float()
    with torch.inference_mode():
        expected, _ = net(images)
        fold(net.features)
        found, _ = net(images)
    assert norms(net) == []
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
