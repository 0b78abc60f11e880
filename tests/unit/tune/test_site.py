"""What the machines can do: what is asked of them, and what is refused before a search starts."""

import dataclasses
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution

from dcgan.config import PRECISIONS, TrainConfig
from dcgan.schema import LOCK_FILE, SEARCH_FILE
from dcgan.store import Mirror, Store
from tune import site
from tune.options import Options, from_flags, make_parser
from tune.plan import Node, Packing, make_plan, wanted_search
from tune.searches import SEARCHES, Search
from tune.site import (
    apart,
    check_free,
    check_writable,
    examine,
    examine_cluster,
    largest,
    measure_packing,
    seconds_per_epoch,
    survey,
    usable_cpus,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
GIB = 2**30
TINY = "--set image_size=16 --set generator_width=1 --set discriminator_width=1"


def options_of(text: str = "", search: str = "hparams", preset: str = "demo") -> Options:
    """The options of a command line."""
    return from_flags(make_parser(), ["--search", search, "--preset", preset, *shlex.split(text)])


def search_of(text: str = "", search: str = "hparams", preset: str = "demo") -> Search:
    """The search of a command line on a device that does every precision."""
    return wanted_search(options_of(text, search, preset), "cpu", PRECISIONS)


# The place


def test_what_a_killed_start_left_is_no_search(tmp_path: Path) -> None:
    check_free(Store(tmp_path / "none"))
    for left in (LOCK_FILE, "search.123.tmp"):
        (tmp_path / left).touch()
    check_free(Store(tmp_path))
    for taken in (SEARCH_FILE, "study.db", "letter.txt"):
        (tmp_path / taken).touch()
        message = (
            f"{tmp_path} holds a search; go on with it by --resume {tmp_path.name}, "
            f"or choose another --name"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            check_free(Store(tmp_path))
        (tmp_path / taken).unlink()


def test_what_counts_is_the_storage_and_not_an_old_copy_of_it(tmp_path: Path) -> None:
    store = Mirror(tmp_path / "copy", str(tmp_path / "mounted" / "run"))
    store.folder.mkdir()
    (store.folder / SEARCH_FILE).touch()
    check_free(store)
    store.put()
    with pytest.raises(ValueError, match=r"mounted/run holds a search; go on with it by --resume "):
        check_free(store)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    check_writable(Store(tmp_path / "runs" / "run"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match=r"^results cannot be written to .*file .*; choose a folder by --storage$"
    ):
        check_writable(Store(tmp_path / "file" / "run"))


# The machine


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)],
)
def test_a_containers_quota_counts(
    quota: str, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(site, "CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cpus() == cpus


def test_what_would_make_every_trial_fail_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="precision float16 needs a CUDA GPU"):
        examine(options_of("--set precision=float16"), None)
    message = "batch_size is 9000; the training split of mnist-mini holds 8000"
    with pytest.raises(ValueError, match=message):
        examine(options_of("--set batch_size=9000", "baseline"), None)
    search = search_of()
    for batches, refused in (((64, 9000), False), ((9000, 9001), True)):
        large = {"batch_size": CategoricalDistribution(batches)}
        wide = dataclasses.replace(search, axes={**search.axes, **large})
        monkeypatch.setitem(SEARCHES, "hparams", lambda *arguments, wide=wide: wide)
        if refused:
            message = "batch_size is 9001; the training split of mnist-mini holds 8000"
            with pytest.raises(ValueError, match=message):
                examine(options_of("--no-estimate"), None)
        else:
            found = examine(options_of("--no-estimate"), None)
            assert found.images == 8000
            assert found.warning.startswith("batches above 8000 are left out")


@pytest.mark.parametrize(("images", "left"), [(63, 3), (64, 1), (255, 2), (256, 3)])
def test_few_images_leave_out_the_batches_that_are_larger(images: int, left: int) -> None:
    sizes = [64, 128, 256]
    search = search_of().within(images)
    assert search.axes["batch_size"] == CategoricalDistribution(sizes[:left])
    if images >= 64:
        grid = search.as_grid()
        assert grid.axes["batch_size"] == CategoricalDistribution(sizes[: min(left, 2)])
        assert grid.settings == 6 * min(left, 2)


def test_this_machine_is_examined(tmp_path: Path) -> None:
    found = examine(options_of(TINY), tmp_path)
    assert (found.device, found.gpus, found.cpus) == ("cpu", 0, usable_cpus())
    assert "float32" in found.precisions
    assert found.data_dir == tmp_path
    assert found.packing is None
    assert found.seconds_per_epoch
    assert 0 < found.seconds_per_epoch < 60
    assert found.protocol["eval_split"] == "validation"
    assert found.protocol["eval_samples"] == 2000
    assert set(found.versions) == {"python", "torch", "ray", "optuna"}
    assert found.platform


def test_what_is_not_wanted_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(site, "seconds_per_epoch", refuse)
    assert examine(options_of("--no-estimate"), None).seconds_per_epoch is None
    resumed = examine(options_of("--resume x"), None)
    assert (resumed.seconds_per_epoch, resumed.protocol) == (None, {})
    with pytest.raises(AssertionError, match="measured"):
        examine(options_of(), None)


def test_a_precision_that_is_absurdly_slow_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcgan.precision.cpu_bfloat16_slowdown", lambda: 17.2)
    found = examine(options_of(f"{TINY} --set precision=bfloat16 --no-estimate"), None)
    assert found.warning.startswith(
        "precision bfloat16 is about 17 times slower than float32 on this CPU"
    )
    assert examine(options_of("--no-estimate"), None).warning == ""


def test_the_cost_is_measured() -> None:
    threads = torch.get_num_threads()

    def cost(width: int, replicas: int = 1) -> float:
        sizes = (
            f"--set generator_width={width} --set discriminator_width={width} --replicas {replicas}"
        )
        options = options_of(sizes, "baseline")
        return seconds_per_epoch(wanted_search(options, "cpu", ("float32",)), options, None, CPU)

    assert 0 < cost(2) < cost(64)
    assert cost(2) < cost(2, replicas=8)
    assert torch.get_num_threads() == threads


def test_a_survey_of_this_machine_ends_with_where_results_are_kept(tmp_path: Path) -> None:
    options = options_of(f"--no-estimate --storage {tmp_path}/runs --name run")
    found = survey(options)
    assert found.store.location == str(tmp_path / "runs" / "run")
    assert (found.address, found.nodes) == ("", ())
    named = survey(dataclasses.replace(options, name=None))
    assert re.fullmatch(r"hparams-\d{8}-\d{6}", named.store.folder.name)
    again = survey(dataclasses.replace(options, name=None, resume="other"))
    assert again.store.location == str(tmp_path / "runs" / "other")
    assert make_plan(options, found).store is found.store


# A cluster


class Pretended:
    """A cluster of three machines, of which two have GPUs."""

    address, autoscales, several = "auto", False, True
    cpus, gpus = 32, 3
    nodes = (
        Node(id="1", name="head", cpus=2, gpus=0),
        Node(id="2", name="large", cpus=16, gpus=2),
        Node(id="3", name="small", cpus=16, gpus=1),
    )

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, float]] = []

    def refresh(self) -> None:
        pass

    def run_on_worker(self, function: Callable[..., Any], *args: Any) -> Any:
        self.asked.append(("any", function.__name__, 1))
        return None if function.__name__ == "smallest_gpu_bytes" else function(*args)

    def run_everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        return {node.name: function(*args) for node in self.nodes}

    def start(self, node: Node, function: Callable[..., Any], *args: Any, gpus: float = 0) -> Any:
        self.asked.append((node.name, function.__name__, gpus))
        if function.__name__ == "smallest_gpu_bytes":
            return {"large": 80 * GIB, "small": 16 * GIB}[node.name]
        return function(*args)


def examined(text: str, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `examine_cluster` finds if calls on machines are calls here."""
    monkeypatch.setattr(site, "result", lambda call: call)
    return examine_cluster(options_of(text), None, cluster)


def test_a_cluster_is_asked_where_trials_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Pretended()
    found = examined("--no-estimate", cluster, monkeypatch)
    assert cluster.asked == [("any", "examine", 1)]
    assert (found.cpus, found.gpus, found.address, found.nodes) == (32, 3, "auto", cluster.nodes)
    assert found.data_dir is None  # each machine knows its own


def test_a_share_is_measured_on_the_machine_with_the_smallest_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Pretended()
    examined("--no-estimate --gpus-per-trial auto", cluster, monkeypatch)
    assert cluster.asked == [
        ("any", "smallest_gpu_bytes", 1),
        ("large", "smallest_gpu_bytes", 2),
        ("small", "smallest_gpu_bytes", 1),
        ("small", "examine", 1),
    ]


# Trials that share a GPU


def test_the_largest_config_has_the_largest_value_of_every_size() -> None:
    config = largest(search_of(search="joint", preset="full"))
    sizes = {"generator_width": 128, "generator_depth": 3, "extra_convs": 2, "batch_size": 256}
    tied = {"discriminator_width": 128, "discriminator_depth": 3}
    assert config == TrainConfig(**sizes, **tied)
    baseline = search_of(search="baseline")
    assert largest(baseline) == baseline.base


@pytest.mark.parametrize(
    ("cpus", "trial_gib", "speeds", "processes", "probed"),
    [
        (8, 1, {1: 100, 8: 400}, 8, 8),
        (8, 1, {1: 100, 8: 110}, 1, 8),  # less than 5 % for each doubling
        (8, 1, {1: 100, 8: 116}, 8, 8),
        (8, 16, {1: 100, 4: 200}, 4, 4),  # no more fit
        (8, 40, {1: 100}, 1, 1),
        (1, 1, {1: 100}, 1, 1),
        (8, 1, {1: 100, 4: 200}, 4, 4),  # eight run out of memory
        (8, 1, {1: 100}, 1, 1),  # any others do
    ],
)
def test_as_many_trials_share_a_gpu_as_fit_and_pay(
    cpus: int,
    trial_gib: int,
    speeds: dict[int, float],
    processes: int,
    probed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(lanes: Any, data_dir: Any, device: Any, count: int) -> tuple[float, int]:
        if count not in speeds:
            raise MemoryError("out of memory")
        return float(speeds[count]), trial_gib * GIB

    monkeypatch.setattr(site, "measure", measure)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (80 * GIB, 80 * GIB))
    found = measure_packing([TrainConfig()], None, CUDA, cpus)
    expected = Packing(
        processes, trial_gib * GIB, 80 * GIB, probed, float(speeds[probed]), float(speeds[1])
    )
    assert found == expected


def test_what_is_asked_apart_is_asked_in_another_process_which_ends() -> None:
    other = apart(os.getpid)
    assert other != os.getpid()
    with pytest.raises(ProcessLookupError, match="No such process"):
        os.kill(other, 0)
    with pytest.raises(ValueError, match="could not convert string to float: 'x'"):
        apart(float, "x")
