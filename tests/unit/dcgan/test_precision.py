"""`dcgan.precision` on the CPU: what is refused, what is warned of, and what is in effect where."""

import re
from collections.abc import Iterator

import pytest
import torch

from dcgan import precision
from dcgan.config import PRECISIONS

CPU = torch.device("cpu")


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def set_switches(matmul: bool, cudnn: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@pytest.fixture(autouse=True)
def _keep_switches() -> Iterator[None]:
    before = switches()
    yield
    set_switches(*before)


@pytest.mark.parametrize("name", ["tf32", "float16"])
def test_the_cpu_refuses_by_name_with_a_way_out(name: str) -> None:
    message = f"^precision {name} needs a CUDA GPU, and this run is on the cpu; use float32$"
    with pytest.raises(ValueError, match=message):
        precision.set_up(name, CPU)
    assert re.match(message, precision.unsupported(name, CPU) or "")
    assert name not in precision.usable(CPU)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_cpu_supports(name: str) -> None:
    assert precision.unsupported(name, CPU) is None


def test_float32_is_usable_and_turns_tf32_off() -> None:
    set_switches(True, True)
    precision.set_up("float32", CPU)
    assert switches() == (False, False)
    assert precision.absurdly_slow("float32", CPU) is None
    assert precision.usable(CPU)[0] == "float32"


def test_emulated_bfloat16_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_bfloat16_slowdown", lambda: 50.0)
    message = (
        "^precision bfloat16 is about 50 times slower than float32 on this CPU.*; use float32$"
    )
    with pytest.warns(UserWarning, match=message):
        precision.set_up("bfloat16", CPU)
    assert precision.usable(CPU) == ("float32",)


def test_bfloat16_units_are_no_cause_for_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_bfloat16_slowdown", lambda: 1.0)
    precision.set_up("bfloat16", CPU)  # a warning would be an error
    assert precision.usable(CPU) == ("float32", "bfloat16")


def test_slowdown_of_this_cpu_is_measured_once() -> None:
    times = precision.cpu_bfloat16_slowdown()
    assert 0.01 < times < 10_000
    assert precision.cpu_bfloat16_slowdown() == times
    assert (precision.absurdly_slow("bfloat16", CPU) is None) == (times <= precision.SLOW)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("tf32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_autocast_is_in_effect_inside_the_context(name: str, dtype: torch.dtype) -> None:
    ones, kernel = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 2, 2)
    with precision.autocast(name, CPU):
        assert torch.nn.functional.conv2d(ones, kernel).dtype == dtype
        assert torch.is_autocast_enabled("cpu") == (dtype != torch.float32)
    assert torch.nn.functional.conv2d(ones, kernel).dtype == torch.float32


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("matmul", "cudnn"),
    [(False, False), (True, True), (False, True), (True, False)],
)
def test_full_float32_restores_both_switches(matmul: bool, cudnn: bool, fails: bool) -> None:
    set_switches(matmul, cudnn)
    if fails:
        with pytest.raises(ZeroDivisionError, match="within"), precision.full_float32():
            raise ZeroDivisionError("within")
    else:
        with precision.full_float32():
            assert switches() == (False, False)
    assert switches() == (matmul, cudnn)


@pytest.mark.parametrize("name", PRECISIONS)
def test_only_float16_scales_gradients(name: str) -> None:
    first, second = precision.scaler(name, CPU), precision.scaler(name, CPU)
    assert first is not second
    assert (first.is_enabled(), second.is_enabled()) == (name == "float16",) * 2
    assert first.scale(torch.tensor(1.0)).item() == (65536.0 if name == "float16" else 1.0)
