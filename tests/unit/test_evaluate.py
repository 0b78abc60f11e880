"""`dcgan.evaluate`: what is known of the real split, its file that spares other processes the work, and the fixed noise."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcgan import checkpoint, evaluate, metrics
from dcgan.data import Source, load_split
from dcgan.evaluate import Reference, evaluation_noise, load_reference, reference_key
from dcgan.yardstick import PATH, Yardstick, extract, fold, load_yardstick, unpack

CPU = torch.device("cpu")
MINI = Source("mnist-mini")
SMALL = Source("mnist-mini", image_size=16)
ROOT = Path(__file__).parents[2]
LOAD = """
import sys, torch
import dcgan.evaluate
from dcgan.data import Source
torch.set_num_threads(1)
if sys.argv[2] == "read":
    dcgan.evaluate.load_yardstick = lambda device: sys.exit("it was worked out")
reference = dcgan.evaluate.load_reference(Source("mnist-mini"), "validation")
torch.save(reference._asdict() | {"gaussian": tuple(reference.gaussian)}, sys.argv[1])
"""


def files(data_dir: Path) -> list[Path]:
    """All files below a folder, unfinished ones too."""
    return sorted(path for path in data_dir.rglob("*") if path.is_file())


def assert_same(found: Reference, expected: Reference) -> None:
    """Every field to the last bit."""
    assert isinstance(found.gaussian, metrics.Gaussian)
    for name, value in expected._asdict().items():
        ours = getattr(found, name)
        assert type(ours) is type(value), name
        if isinstance(value, str | float):
            assert ours == value, name
            continue
        for a, b in zip(*(tuple(v) if isinstance(v, tuple) else (v,) for v in (ours, value)), strict=True):
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

    def refuse(device: torch.device) -> Yardstick:
        pytest.fail("it was worked out")

    return lambda: monkeypatch.setattr(evaluate, "load_yardstick", refuse)


def key(source: Source, split: str) -> str:
    real = load_split(source, split).images
    return reference_key(real, load_split(source, "train").images[: len(real)])


# What a reference holds


def test_a_reference_describes_its_split(made: tuple[Reference, Path]) -> None:
    reference, _ = made
    real, train = (load_split(MINI, split).images for split in ("validation", "train"))
    features, of_train = (extract(load_yardstick(CPU), images[:2000]).features for images in (real, train))
    assert reference.split == "validation"
    assert torch.equal(reference.features, features)
    assert torch.equal(reference.radii, metrics.neighbour_radii(features))
    assert reference.within == metrics.within_kernel_mean(features)
    torch.testing.assert_close(reference.gaussian.mean, features.double().mean(0))
    torch.testing.assert_close(reference.gaussian.covariance, features.double().T.cov())
    assert reference.fid_real == metrics.frechet_distance(metrics.gaussian(features), metrics.gaussian(of_train))
    assert 0 < reference.fid_real < 1


# Its file


def test_the_first_load_writes_one_file(made: tuple[Reference, Path]) -> None:
    _, file = made
    assert file.parent.name == "references"
    assert file.name == f"{key(MINI, 'validation')}.pt"


def test_a_later_load_reads_the_file(made: tuple[Reference, Path], data_dir: Path, no_work: Callable[[], None]) -> None:
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


def test_within_a_process_it_is_loaded_once(place: Path, made: tuple[Reference, Path], no_work: Callable[[], None]) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(made[1].read_bytes())
    no_work()
    reference = load_reference(MINI, "validation")
    place.unlink()
    assert load_reference(MINI, "validation") is reference


def load_elsewhere(out: Path, how: str) -> subprocess.Popen[str]:
    """Loads the reference in a new process, which writes it to a file."""
    command = [sys.executable, "-c", LOAD, str(out), how]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)


def loaded_elsewhere(process: subprocess.Popen[str], out: Path) -> Reference:
    _, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, "")
    saved = torch.load(out, weights_only=True)
    return Reference(**saved | {"gaussian": metrics.Gaussian(*saved["gaussian"])})


def test_another_process_reads_the_same_bits(made: tuple[Reference, Path], place: Path, tmp_path: Path) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(made[1].read_bytes())
    assert_same(loaded_elsewhere(load_elsewhere(tmp_path / "out", "read"), tmp_path / "out"), made[0])


def test_processes_that_begin_together_leave_one_whole_file(
    made: tuple[Reference, Path], data_dir: Path, place: Path, tmp_path: Path, no_work: Callable[[], None]
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
        lambda content: content[:-1],
        lambda content: content[:1000],
        lambda content: b"",
        lambda content: b"not it" * 99,
    ],
    ids=["flipped bit", "last byte lost", "truncated", "empty", "something else"],
)
def test_a_damaged_file_is_worked_out_and_written_again(
    damage: Callable[[bytes], bytes], made: tuple[Reference, Path], place: Path, data_dir: Path, no_work: Callable[[], None]
) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(damage(made[1].read_bytes()))
    assert_same(load_reference(MINI, "validation"), made[0])
    assert files(data_dir) == [place]
    assert checkpoint.read(place).keys() == set(Reference._fields)
    load_reference.cache_clear()
    no_work()
    assert_same(load_reference(MINI, "validation"), made[0])


def test_a_data_dir_that_cannot_be_made_costs_only_the_time(
    made: tuple[Reference, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCGAN_DATA_DIR", "/proc/nowhere")
    assert_same(load_reference(MINI, "validation"), made[0])


@pytest.mark.parametrize("level", ["data", "data/references"])
def test_a_file_in_the_folders_place_costs_only_the_time(level: str, made: tuple[Reference, Path], tmp_path: Path) -> None:
    in_the_way = tmp_path / level
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.write_text("in the way")
    assert_same(load_reference(MINI, "validation"), made[0])
    assert in_the_way.read_text() == "in the way"


def test_a_folder_in_the_files_place_costs_only_the_time(made: tuple[Reference, Path], place: Path, data_dir: Path) -> None:
    place.mkdir(parents=True)
    assert_same(load_reference(MINI, "validation"), made[0])
    assert files(data_dir) == []


def test_a_full_disk_costs_only_the_time(made: tuple[Reference, Path], data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert_same(load_reference(MINI, "validation"), made[0])
    assert files(data_dir) == []


# Its key


def test_splits_are_kept_apart(data_dir: Path, made: tuple[Reference, Path], no_work: Callable[[], None]) -> None:
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
    assert keys == [key(source, split) for source in sources for split in ("validation", "test", "train")]
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in keys)


def test_the_key_does_not_depend_on_where_the_data_lie(tmp_path: Path) -> None:
    assert key(MINI._replace(data_dir=tmp_path), "validation") == key(MINI, "validation")


@pytest.mark.parametrize("which", [0, 1])
def test_one_changed_pixel_of_either_split_changes_the_key(which: int) -> None:
    images = [load_split(SMALL, split).images[:50] for split in ("validation", "train")]
    changed = copy.deepcopy(images)
    changed[which][-1, 0, -1, -1] ^= 1
    assert reference_key(*changed) != reference_key(*images)


def test_the_splits_are_not_interchangeable_in_the_key() -> None:
    real, train = (load_split(SMALL, split).images[:50] for split in ("validation", "train"))
    assert reference_key(real, train) != reference_key(train, real)


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
        ("dcgan.evaluate.SHA256", "0" * 64),
        ("dcgan.evaluate.get_cpu_capability", lambda: "none"),
        ("dcgan.evaluate.device_name", lambda device: "another"),
    ],
)
def test_the_key_depends_on_what_computes(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(SMALL, "validation")
    monkeypatch.setattr(name, value)
    assert key(SMALL, "validation") != before


@pytest.mark.parametrize("module", ["metrics", "evaluate", "yardstick", "data"])
def test_the_key_depends_on_the_code(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = key(SMALL, "validation")
    code = sys.modules[f"dcgan.{module}"]
    edited = tmp_path / "edited.py"
    edited.write_text(Path(str(code.__file__)).read_text() + "\n")
    monkeypatch.setattr(code, "__file__", str(edited))
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


# The yardstick's batch norms, folded


def norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def test_the_loaded_yardstick_is_the_shipped_network_without_its_batch_norms() -> None:
    shipped = Yardstick()
    shipped.load_state_dict(unpack(PATH.read_bytes()))
    shipped.eval()
    assert len(norms(shipped)) == 4
    loaded = load_yardstick(CPU)
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
