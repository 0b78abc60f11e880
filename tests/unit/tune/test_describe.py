"""A plan as a person reads it, and as `search.json` keeps it."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from dcgan.config import TrainConfig
from dcgan.schema import SEARCH_FILE
from dcgan.store import Store
from tune.describe import describe, record
from tune.options import SAVED, Options, from_flags, make_parser
from tune.plan import Node, Packing, Plan, Site, make_plan

BASELINE = {"generator_lr": 2e-4, "batch_size": 64, "optimizer": "adam"}
GIB = 2**30
PROTOCOL = {"eval_split": "validation", "device": "cpu"}


def make_site(tmp_path: Path, **changes: Any) -> Site:
    """A machine with two CPUs, where an epoch takes two seconds."""
    site = Site(
        store=Store(tmp_path / "run"),
        device="cpu",
        precisions=("float32",),
        cpus=2,
        gpus=0,
        seconds_per_epoch=2.0,
        protocol=PROTOCOL,
    )
    return dataclasses.replace(site, **changes)


def options_of(text: str = "") -> Options:
    """The options of a command line."""
    words = ["--search", "hparams", "--num-trials", "10", "--confirm", "0", *shlex.split(text)]
    return from_flags(make_parser(), words)


def text_of(tmp_path: Path, text: str = "", site: Site | None = None, **changes: Any) -> str:
    """The description of a command line's plan, with some of the plan changed."""
    site, options = site or make_site(tmp_path), options_of(text)
    return describe(dataclasses.replace(make_plan(options, site), **changes), options, site)


def test_the_description_names_everything_that_decides_the_course(tmp_path: Path) -> None:
    text = text_of(tmp_path, "--preset demo --set ema_decay=0.5")
    lines = {line[:8].strip(): line[9:] for line in text.splitlines() if line[:8].strip()}
    assert list(lines) == [
        "search",
        "preset",
        "data",
        "space",
        "trials",
        "rungs",
        "metric",
        "cost",
        "results",
    ]
    assert lines["search"] == "hparams: Learning rate of both nets, batch size and optimizer."
    assert lines["preset"] == "demo, as asked (--preset full is the whole study)"
    assert lines["data"] == "mnist-mini, 28 × 28, width 16, 9 epochs"
    for line in (
        "generator_lr       5e-05 to 0.005, log-uniform",
        "batch_size         64, 128, 256",
        "optimizer          adam, rmsprop",
        "discriminator_lr   follows generator_lr",
    ):
        assert line in text
    assert (
        lines["trials"] == "10 by tpe, the first at the baseline; seed 0; 2 at a time, 1 CPU each"
    )
    assert (
        lines["rungs"]
        == "after epoch 2, 6 goes on what beats two thirds of the trials before it (ASHA)"
    )
    assert lines["metric"].startswith("fid on validation: ")
    assert lines["cost"] == "about 59 epochs at 2.0 s: about 59 s"
    assert lines["results"] == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "changes", "parts"),
    [
        (
            "--scheduler fifo",
            {},
            ["rungs    none: every trial trains all epochs", "about 90 epochs"],
        ),
        (
            "--confirm 3 --confirm-seeds 5",
            {},
            ["confirm  the best 3 and the baseline on 5 fresh seeds, scored on test: about 3 min"],
        ),
        ("--objectives fid,kid", {}, ["metric   Pareto set of fid, kid, on validation"]),
        (
            "",
            {"points": [BASELINE] * 3},
            ["by tpe, the first at the baseline, then 2 of an earlier search; seed 0"],
        ),
        ("", {"gpus": 0.25, "slots": 4}, ["4 at a time, 1 CPU and 0.25 GPU each"]),
        (
            "--sampler grid --seed 3",
            {},
            [
                "space    generator_lr       0.0001, 0.0003, 0.0005",
                "10 by the original study's grid; seed 3",
            ],
        ),
        ("--preset full", {}, ["preset   full, as asked\n"]),
        ("", {}, ["preset   demo, since there is no GPU here (--preset full is the whole study)"]),
    ],
)
def test_the_description_of_what_else_decides(
    text: str, changes: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    described = text_of(tmp_path, text, **changes)
    for part in parts:
        assert part in described
    assert ("confirm" in described) == ("--confirm" in text)


def test_a_single_setting_is_described_as_such(tmp_path: Path) -> None:
    options, site = Options(search="baseline"), make_site(tmp_path)
    assert "\nspace    a single setting\n" in describe(make_plan(options, site), options, site)


def test_a_cluster_and_what_was_measured_there_are_described(tmp_path: Path) -> None:
    nodes = (Node(id="1", name="head", cpus=0, gpus=0), Node(id="2", name="a", cpus=16, gpus=1))
    packing = Packing(8, 5 * GIB, 80 * GIB, 8, 8000.0, 2000.0)
    site = make_site(
        tmp_path,
        device="cuda",
        cpus=16,
        gpus=1,
        nodes=nodes,
        address="auto",
        packing=packing,
        warning="precision x is slow",
    )
    text = text_of(tmp_path, "--gpus-per-trial auto", site)
    assert "\npreset   full, since there is a GPU in the cluster\n" in text
    assert "\ncluster  2 machines, 16 CPUs, 1 GPUs: head, a\n" in text
    assert (
        "\npacking  the largest trial takes 5.0 of 80 GiB and trains 2,000 images/s alone, "
        "8 side by side 8,000: 8 on a GPU\n"
    ) in text
    assert text.endswith("\nwarning  precision x is slow")
    one = packing._replace(processes=1, probed=1, speed=2000.0)
    text = text_of(tmp_path, "", dataclasses.replace(site, packing=one))
    assert "trains 2,000 images/s alone: 1 on a GPU\n" in text


def test_without_a_cost_the_description_leaves_times_out(tmp_path: Path) -> None:
    site = make_site(tmp_path, seconds_per_epoch=None)
    text = text_of(tmp_path, "--confirm 3 --confirm-seeds 5", site)
    assert "the best 3 and the baseline on 5 fresh seeds, scored on test\n" in text
    assert "\ncost" not in text
    assert "about " not in text
    assert "\n\n" not in text


def test_replicas_are_described_and_confirmed_one_by_one(tmp_path: Path) -> None:
    site = make_site(tmp_path, seconds_per_epoch=8.0)  # of an epoch of all four
    text = text_of(tmp_path, "--replicas 4 --confirm 1 --confirm-seeds 2", site)
    assert "seed 0, each on 4 seeds; 2 at a time" in text
    # 2 settings x 2 seeds x 9 epochs of 2 s, 2 at a time
    assert "fresh seeds, scored on test: about 36 s more" in text


# The record


def recorded(
    tmp_path: Path, text: str = "", **changes: Any
) -> tuple[dict[str, Any], Plan, Options]:
    """The record of a command line as JSON gives it back, its plan, and its options."""
    options, site = options_of(text), make_site(tmp_path, **changes)
    plan = make_plan(options, site)
    return json.loads(json.dumps(record(plan, options, site))), plan, options


def test_the_record_is_json_and_holds_what_decides(tmp_path: Path) -> None:
    kept, plan, options = recorded(
        tmp_path, "--objectives fid,sample_coverage --seed 3 --replicas 2"
    )
    assert kept["objectives"] == [
        {"column": "fid", "mode": "min"},
        {"column": "sample_coverage", "mode": "max"},
    ]
    expected = {
        "version": 3,
        "search": "hparams",
        "sampler": "tpe",
        "scheduler": "fifo",
        "points": [BASELINE],
        "num_trials": 10,
        "replicas": 2,
        "seed": 3,
        "rungs": [],
        "ties": {"discriminator_lr": "generator_lr"},
        "protocol": PROTOCOL,
        "device": "cpu",
    }
    assert {name: kept[name] for name in expected} == expected
    assert TrainConfig.from_dict(kept["base"]) == plan.search.base
    assert kept["axes"] == plan.search.axes_as_json()
    assert kept["axes"]["generator_lr"] == {
        "name": "FloatDistribution",
        "attributes": {"low": 5e-5, "high": 5e-3, "log": True, "step": None},
    }
    assert kept["options"] == options.saved() | {"preset": "demo"}
    assert set(kept["options"]) == set(SAVED)


def test_what_the_machines_decided_is_settled(tmp_path: Path) -> None:
    packing = Packing(8, 5 * GIB, 80 * GIB, 8, 8000.0, 2000.0)
    gpu = {"device": "cuda", "cpus": 16, "gpus": 1, "packing": packing}
    kept, plan, _ = recorded(tmp_path, "--gpus-per-trial auto", **gpu)
    assert (kept["options"]["preset"], kept["options"]["gpus_per_trial"]) == ("full", "0.125")
    assert plan.gpus == 0.125
    kept, _, _ = recorded(tmp_path, "--gpus-per-trial auto", address="auto", **gpu)
    assert kept["options"]["gpus_per_trial"] == "auto"


def test_the_original_record_stays_but_for_the_options_that_were_changed(tmp_path: Path) -> None:
    kept, plan, options = recorded(tmp_path)
    plan.folder.mkdir()
    (plan.folder / SEARCH_FILE).write_text(json.dumps(kept))
    changed = dataclasses.replace(options, preset="demo", confirm=5, resume="run", dry_run=True)
    site = make_site(tmp_path, protocol={})
    again = record(make_plan(changed, site), changed, site)
    assert again == kept | {"options": kept["options"] | {"confirm": 5}}
