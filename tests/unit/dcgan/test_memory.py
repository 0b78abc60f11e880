"""`dcgan.memory.explained`: which errors become one that names the settings to change."""

import pytest
import torch

from dcgan.config import TrainConfig, replicate
from dcgan.memory import explained

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=500, generator_width=32, discriminator_width=16)


@pytest.mark.parametrize(("count", "several"), [(1, ""), (3, " and 3 lanes")])
def test_a_lack_of_memory_names_the_settings_to_change(count: int, several: str) -> None:
    message = (
        r"^out of memory on cpu with batch_size 500, generator_width 32, "
        rf"discriminator_width 16{several}: make one of them smaller, .*"
        r"\(--gpus-per-trial, or auto to have it measured\); it tried to allocate \d+ bytes$"
    )
    with pytest.raises(MemoryError, match=message), explained(replicate(CONFIG, count), CPU):
        torch.empty(2**60, dtype=torch.uint8)


def test_a_lack_of_gpu_memory_is_one_too() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    message = r"; it tried to allocate 2\.00 GiB$"
    with pytest.raises(MemoryError, match=message), explained([CONFIG], CPU):
        raise error


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"), explained([CONFIG], CPU):
        raise RuntimeError("shapes do not match")
