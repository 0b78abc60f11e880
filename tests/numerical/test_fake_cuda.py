"""The CUDA path on a runtime without a GPU: what may not happen in a capture, waits, launches,
TF32 switches, memory, resuming. Values and speed need a real GPU: test_gpu.py, `dcgan.bench`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "fake_cuda"
spec = importlib.util.spec_from_file_location("runtime", FOLDER / "runtime.py")
assert spec
assert spec.loader
runtime = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runtime)
pytestmark = [
    pytest.mark.fake_cuda,
    pytest.mark.skipif(bool(runtime.missing()), reason=f"needs {runtime.missing()}"),
]
CHECKS = (
    pytest.param("captures", marks=pytest.mark.slow),
    "resumed",
    "many_trials",
    "evaluation",
    "lanes_evaluated",
    "packing",
    "driver",
    "out_of_memory",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(runtime.build(tmp_path_factory.mktemp("runtime")))


@pytest.mark.parametrize("check", CHECKS)
def test_on_a_runtime_without_a_gpu(check: str, library: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "checks.py", check],
        env=runtime.environment(library, tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
