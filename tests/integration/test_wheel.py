"""The wheel, away from the source tree: complete, with its data and weights, and both command lines run from it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel's content alone, as pip installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "dcgan/assets/mnist_mini.npz.xz",
        "dcgan/assets/yardstick.safetensors",
        "dcgan/assets/yardstick.json",
    } <= set(names)
    assert {name.split("/")[0] for name in names if not name.startswith("dcgan_tune-")} == {
        "dcgan",
        "tune",
        "analysis",
    }
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run(site: Path, elsewhere: Path, *command: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(elsewhere)}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_command_lines_run_from_the_wheel(site: Path, tmp_path: Path) -> None:
    where = run(
        site,
        tmp_path,
        "-c",
        "import dcgan, tune, analysis; print(dcgan.__file__, tune.__file__, analysis.__file__)",
    )
    assert all(path.startswith(str(site)) for path in where.split())
    small = {"image_size": 16, "generator_width": 2, "discriminator_width": 2, "batch_size": 1000}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in small.items()]
    output = run(
        site, tmp_path, "-m", "dcgan.train", "--dataset", "mnist-mini", "--epochs", 1, *flags
    )
    assert "epoch 1/1" in output
    sets = [f"--set={name}={value}" for name, value in small.items()]
    output = run(
        site,
        tmp_path,
        "-m",
        "tune.run",
        "--search",
        "baseline",
        "--preset",
        "demo",
        "--epochs",
        1,
        *sets,
    )
    assert "best: trial_" in output
