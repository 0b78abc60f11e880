"""How many trials fit on a device: measured with real processes."""

import dataclasses

import pytest
import torch

import tune.run
from dcgan.config import PRECISIONS, TrainConfig
from tune import packing
from tune.packing import Packed, choose, largest, measure, measured_share, probe
from tune.searches import DEMO, REPORT, make_search

CPU = torch.device("cpu")
TINY = TrainConfig(dataset="mnist-mini", image_size=16, generator_width=2, discriminator_width=2)
GIB = 2**30


def test_the_largest_config_has_the_largest_choice_of_every_size() -> None:
    config = largest(make_search("joint", REPORT, PRECISIONS, {"replicas": 4}))
    sizes = {"generator_width": 128, "generator_depth": 3, "extra_convs": 2, "batch_size": 256}
    tied = {"discriminator_width": 128, "discriminator_depth": 3}
    assert config == TrainConfig(replicas=4, **sizes, **tied)
    assert largest(make_search("baseline", DEMO, PRECISIONS, {})) == make_search("baseline", DEMO, PRECISIONS, {}).base


@pytest.mark.parametrize(
    ("speeds", "processes"),
    [([100], 1), ([100, 104], 1), ([100, 106], 2), ([100, 190, 350], 4), ([100, 190, 195], 2), ([100, 90], 1)],
)
def test_doubled_as_long_as_it_pays(speeds: list[float], processes: int) -> None:
    assert choose([Packed(2**i, speed, GIB) for i, speed in enumerate(speeds)]) == processes


@pytest.mark.parametrize(
    ("most", "gib", "tried"),
    [(8, 100, [1, 2, 4, 8]), (6, 100, [1, 2, 4]), (1, 100, [1]), (8, 4.5, [1, 2, 4]), (8, 4.4, [1, 2]), (8, 1, [1])],
)
def test_no_more_are_tried_than_fit(most: int, gib: float, tried: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "measure", lambda config, folder, device, n: Packed(n, 100.0 * n, GIB))
    assert [one.processes for one in probe(TINY, None, CPU, most, int(gib * GIB))] == tried


def test_processes_are_measured_side_by_side() -> None:
    for processes in (1, 2):
        one = measure(dataclasses.replace(TINY, replicas=2), None, CPU, processes)
        assert one.processes == processes
        assert one.images_per_second > 100
        assert 1e8 < one.bytes < 1e10  # a process with PyTorch in it


def test_processes_that_do_not_fit_say_so_and_do_not_wait_for_each_other() -> None:
    """A map of 8000 x 1024 x 64 x 64 floats is 134 GB."""
    huge = dataclasses.replace(TINY, image_size=128, discriminator_width=1024, discriminator_depth=1, batch_size=8000)
    with pytest.raises(MemoryError, match="out of memory on cpu with batch_size 8000"):
        measure(huge, None, CPU, 2)


def test_without_a_gpu_auto_means_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plans = []
    for share in ("auto", "0.25"):
        arguments = ["run", "--search", "hparams", "--dry-run", "--gpus-per-trial", share, "--name", "n", "--width", "1"]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit, match="0"):
            tune.run.main()
        plans.append([line for line in capsys.readouterr().out.splitlines() if not line.startswith(("cost", "confirm"))])
    assert plans[0] == plans[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_packed_by_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    search = make_search("hparams", DEMO, PRECISIONS, {})
    share = measured_share(search, None, torch.device("cuda"), 4)
    assert share in (1, 1 / 2, 1 / 4)
    assert f"{1 / share:.0f} on a GPU" in capsys.readouterr().out
