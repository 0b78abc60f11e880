"""What only a CUDA GPU can show. Run `pytest -m gpu` on a machine that has PyTorch and nothing else of the project's."""

import dataclasses
from pathlib import Path

import pytest
import torch

from dcgan import checkpoint, precision
from dcgan.config import PRECISIONS, TrainConfig
from dcgan.data import Source, load_split
from dcgan.evaluate import load_reference, score
from dcgan.loop import new_state, train, train_epoch
from dcgan.schema import Row

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = TrainConfig(dataset="mnist-mini", generator_width=16, discriminator_width=16, epochs=3, seed=1)


@pytest.mark.parametrize("name", PRECISIONS)
def test_each_precision_trains_to_digits(name: str, tmp_path: Path) -> None:
    if reason := precision.unsupported(name, CUDA):
        pytest.skip(reason)
    config = dataclasses.replace(SMALL, precision=name, generator_lr=1e-3, discriminator_lr=1e-3)
    rows = train(config, report=lambda row: None, checkpoint_dir=tmp_path)
    assert float(rows[-1]["fid"]) < 60  # noise is above 150
    assert 0 < rows[-1]["peak_memory_bytes"] < 2e9
    assert rows[-1]["device"] == torch.cuda.get_device_name()


def test_float32_agrees_with_the_cpu() -> None:
    """The same initial weights; other noise, since each device has its own random stream: means over an epoch agree."""
    means = []
    for device in (CPU, CUDA):
        precision.set_up("float32", device)
        images = load_split(Source("mnist-mini", device=device), "train").images
        means.append(train_epoch(new_state(SMALL, device), SMALL, images))
    assert means[0] == pytest.approx(means[1], rel=0.1)


def test_metrics_agree_with_the_cpu() -> None:
    images = load_split(Source("mnist-mini"), "test").images
    ours, theirs = (
        score(images.to(device), load_reference(Source("mnist-mini", device=device), "validation")) for device in (CPU, CUDA)
    )
    assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_resumed_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    """State is restored exactly; cuDNN may sum in another order, so the rows agree within rounding."""
    config = dataclasses.replace(SMALL, precision=name, ema_decay=0.9)
    train(dataclasses.replace(config, epochs=2), report=lambda row: None, checkpoint_dir=tmp_path)
    saved = checkpoint.load(tmp_path)
    state = new_state(config, CUDA)
    state.rng.set_state(saved["replicas"][0]["rng"])
    assert torch.equal(state.rng.get_state(), saved["replicas"][0]["rng"])
    rows: list[Row] = []
    train(config, report=rows.append, checkpoint_dir=tmp_path, resume_from=tmp_path)
    assert [row["epoch"] for row in rows] == [3]
    whole = train(config, report=lambda row: None)
    assert rows[0]["discriminator_loss"] == pytest.approx(whole[-1]["discriminator_loss"], rel=0.1)
