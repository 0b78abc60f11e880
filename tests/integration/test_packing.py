"""How many trials share a GPU: measured with real processes."""

import dataclasses

import pytest
import torch

from dcgan.config import TrainConfig, replicate
from tune.options import Options
from tune.site import examine, measure

CPU = torch.device("cpu")
TINY = TrainConfig(dataset="mnist-mini", image_size=16, generator_width=2, discriminator_width=2)


def test_processes_are_measured_side_by_side() -> None:
    speed, size = measure(replicate(TINY, 2), None, CPU, 2)
    assert speed > 100  # images a second
    assert 1e8 < size < 1e10  # bytes of a process with PyTorch in it


@pytest.mark.slow
def test_processes_that_do_not_fit_say_so_and_do_not_wait_for_each_other() -> None:
    """A map of 8000 x 1024 x 64 x 64 floats is 134 GB."""
    huge = dataclasses.replace(
        TINY, image_size=128, discriminator_width=1024, discriminator_depth=1, batch_size=8000
    )
    with pytest.raises(MemoryError, match="out of memory on cpu with batch_size 8000"):
        measure([huge], None, CPU, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_packed_by_measurement() -> None:
    options = Options(search="hparams", preset="demo", gpus_per_trial="auto", estimate=False)
    packing = examine(options, None).packing
    assert packing
    assert packing.processes in (1, packing.probed)
    assert 0 < packing.trial_bytes < packing.gpu_bytes
    assert packing.speed_alone > 100
