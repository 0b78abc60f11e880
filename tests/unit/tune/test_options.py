"""Options: the flags of a search, what is refused, and what is saved and read back on resuming."""

import argparse
import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dcgan.schema import OBJECTIVES, SEARCH_FILE
from dcgan.settings import flag_name
from tune.options import (
    CHANGEABLE,
    MACHINE,
    ON_RESUMING,
    SAVED,
    START,
    VERSION,
    Options,
    from_flags,
    make_parser,
    parse_objectives,
    parse_settings,
    resumed,
)

FLAGS: dict[str, str] = {
    "search": "hparams",
    "preset": "demo",
    "num_trials": "9",
    "epochs": "5",
    "width": "4",
    "dataset": "mnist",
    "data_dir": "d",
    "sampler": "tpe",
    "scheduler": "fifo",
    "grace_period": "1",
    "epochs_in_all": "200",
    "replicas": "2",
    "objectives": "fid,kid",
    "points_from": "x",
    "set": "beta1=0",
    "max_concurrent": "1",
    "gpus_per_trial": "1",
    "seed": "1",
    "confirm": "1",
    "confirm_seeds": "1",
    "address": "auto",
    "storage": "{}",
    "name": "n",
    "resume": "run",
    "retry_failed": "",
    "wandb": "offline",
    "report": "no",
    "estimate": "no",
    "dry_run": "",
}
"""Every flag, by its option, and a value that is not its default."""


def given(name: str) -> list[str]:
    """The words of a flag with the value of `FLAGS`."""
    if FLAGS[name] == "no":
        return [f"--no-{name}"]
    return [flag_name(name), *shlex.split(FLAGS[name])]


def parse(text: str, search: str | None = "hparams") -> Options:
    """The options of a command line."""
    words = ["--search", search] if search else []
    return from_flags(make_parser(), [*words, *shlex.split(text)])


def saved(tmp_path: Path, text: str = "", **changes: Any) -> tuple[Options, Path]:
    """The options of a search, and the `search.json` that keeps them."""
    options = parse(text)
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    record = {"version": VERSION, "points": [], "axes": {}, "options": options.saved()}
    (folder / SEARCH_FILE).write_text(json.dumps(record | changes), encoding="utf-8")
    return options, folder / SEARCH_FILE


def resume(tmp_path: Path, text: str = "", name: str = "run") -> Options:
    """The options of `--resume`."""
    words = ["--resume", name, "--storage", str(tmp_path), *shlex.split(text)]
    return resumed(from_flags(make_parser(), words))


# The flags


def test_the_flags_are_these() -> None:
    """A flag is a decision: it stands in this list, or there is none."""
    actions = [a for a in make_parser()._actions if not isinstance(a, argparse._HelpAction)]
    assert {action.dest for action in actions} == set(FLAGS)
    words = {word for action in actions for word in action.option_strings}
    assert words == {given(name)[0] for name in FLAGS}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_sets_its_option(name: str) -> None:
    words = given(name) + (["--resume", "run"] if name == "retry_failed" else [])
    options = from_flags(
        make_parser(), [*([] if name == "search" else ["--search", "baseline"]), *words]
    )
    defaults = Options(search="baseline")
    changed = {
        f.name
        for f in dataclasses.fields(options)
        if getattr(options, f.name) != getattr(defaults, f.name)
    }
    assert changed == {name, "resume"} if name == "retry_failed" else {name}
    expected = {
        "retry_failed": True,
        "dry_run": True,
        "report": False,
        "estimate": False,
        "set": ("beta1=0",),
    }
    assert str(getattr(options, name)) == str(expected.get(name, FLAGS[name]))


def test_the_cluster_of_a_ray_job_is_taken_unless_another_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parse("").address is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert parse("").address == "10.0.0.1:6379"
    assert parse("--address auto").address == "auto"
    assert parse("--address local").address is None
    assert Options(search="hparams").address is None
    for address in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert parse("").address is None
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ValueError, match=r"^the environment's RAY_ADDRESS is http://"):
        parse("")
    assert parse("--address local").address is None


# What is refused

COLUMNS_ALLOWED = f"; allowed: {', '.join(OBJECTIVES)}"
REFUSED: list[tuple[str, str]] = [
    *(
        (f"--{flag} {value}", f"--{flag} is {value}; allowed is at least 1")
        for flag in ("max-concurrent", "grace-period", "width")
        for value in (0, -3)
    ),
    *(
        (f"--{flag} {value}", f"--{flag} is {value}; allowed is 1 to {most}: ")
        for flag, most in (("num-trials", 100_000), ("epochs", 100_000), ("confirm-seeds", 1_000))
        for value in (0, -3, most + 1, 10**22)
    ),
    *((f"--{flag} ''", f"--{flag} is empty;") for flag in ("name", "resume", "storage", "address")),
    ("--name 'a\nb'", "--name is 'a\\nb'; allowed is one line of at most 200 bytes"),
    (f"--name {'ü' * 101}", f"--name is {'ü' * 101!r}; allowed is one line of at most 200 bytes"),
    (
        "--resume runs/a",
        "--resume is 'runs/a'; allowed is one folder name; use --storage for where "
        "it lies, such as --resume a --storage runs",
    ),
    *(
        (
            f"--address {address}",
            f"--address is {address}; allowed is local, auto, or HOST:PORT of the cluster's head",
        )
        for address in ("ray://127.0.0.1:10001", "10.0.0.1", "head:", ":6379", "a:b", "a:65536")
    ),
    ("--confirm -1", "--confirm is -1; allowed is at least 0"),
    ("--replicas 0", "--replicas is 0; allowed is 1 to 64"),
    ("--replicas 65", "--replicas is 65; allowed is 1 to 64"),
    ("--seed -1", "--seed is -1; allowed is 0 to 4294967295"),
    ("--seed 4294967296", "--seed is 4294967296; allowed is 0 to 4294967295"),
    *(
        (
            f"--gpus-per-trial {value}",
            f"--gpus-per-trial is {value}; allowed is above 0, up to 1 (a trial uses one GPU), "
            "or auto",
        )
        for value in ("0", "0.0", "-0.5", "1.5", "nan", "inf", "half")
    ),
    ("--objectives fid,speed,loss", f"--objectives has 'speed', 'loss'{COLUMNS_ALLOWED}"),
    ("--objectives ,", f"--objectives has '', ''{COLUMNS_ALLOWED}"),
    ("--objectives epoch", f"--objectives has 'epoch'{COLUMNS_ALLOWED}"),
    *(
        (
            f"--objectives {text}",
            f"--objectives is {text}; fid stands first, since it chooses each trial's epoch, "
            "and each once",
        )
        for text in ("kid", "kid,fid", "fid,fid", "fid,kid,kid")
    ),
    ("--set ema_decay", "--set is 'ema_decay'; expected KEY=VALUE, such as ema_decay=0.999"),
    ("--set ema_decay=0 --set ema_decay=0.5", "--set ema_decay stands twice"),
    *(
        (f"--set {name}=1", f"--set {name}=1: use --{name} instead")
        for name in ("dataset", "epochs", "seed", "replicas")
    ),
    *(
        (
            f"--name {name}",
            f"--name is {name!r}; allowed is one folder name; use --storage for where it lies",
        )
        for name in ("a/b", "..", ".", "/tmp", "a/")
    ),
    ("--resume ..", "--resume is '..'; allowed is one folder name"),
    ("--retry-failed --dry-run", "--retry-failed goes with --resume NAME"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_not_allowed_is_refused_with_the_flag_and_the_value(
    text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse(text)


def test_a_search_must_be_named_or_resumed() -> None:
    with pytest.raises(
        ValueError, match=r"^--search is missing; allowed: baseline, hparams, architecture, "
    ):
        parse("", search=None)
    assert parse("--resume x", search=None).search is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "nonsense"}, "--search is 'nonsense'; allowed: baseline, hparams"),
        ({"num_trials": 1.5}, "--num-trials is 1.5, a float; expected int"),
        ({"epochs": True}, "--epochs is True, a bool; expected int"),
        ({"wandb": "always"}, "--wandb is 'always'; allowed: online, offline, disabled"),
        ({"set": ["beta1=0"]}, "--set is ['beta1=0'], a list; expected tuple"),
    ],
)
def test_options_made_in_code_are_checked_alike(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Options(**{"search": "hparams"} | changes)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("fid", ("fid",)),
        ("fid, seconds_train ,kid", ("fid", "seconds_train", "kid")),
        ("fid,digit_kl", ("fid", "class_kl")),  # of a search that an earlier version began
    ],
)
def test_objectives_are_read(text: str, names: tuple[str, ...]) -> None:
    assert parse_objectives(text) == names


@pytest.mark.parametrize(
    ("texts", "settings"),
    [
        ([], {}),
        (["beta1=0.9", "optimizer=adam"], {"beta1": 0.9, "optimizer": "adam"}),
        ([" beta1 = 1e-3 "], {"beta1": 1e-3}),
        (["optimizer=a=b"], {"optimizer": "a=b"}),
        (['optimizer="adam"'], {"optimizer": "adam"}),
        (["latent_size="], {"latent_size": ""}),
        (["latent_size=true"], {"latent_size": True}),
        (["beta1=.5", "beta2=+.9"], {"beta1": 0.5, "beta2": 0.9}),
        (["batch_size=1_000", "latent_size=0x10"], {"batch_size": 1000, "latent_size": 16}),
        (["optimizer='adam'", "ema_decay=5."], {"optimizer": "adam", "ema_decay": 5.0}),
        (["optimizer=" + "[" * 9999], {"optimizer": "[" * 9999}),
    ],
)
def test_settings_are_json_or_words(texts: list[str], settings: dict[str, Any]) -> None:
    assert parse_settings(texts) == settings


def test_settings_are_fixed_by_set_and_by_flags_of_their_own() -> None:
    assert parse("--set beta1=0").settings == {"beta1": 0, "seed": 0}
    options = parse("--set beta1=0 --seed 7 --epochs 4 --dataset mnist")
    assert options.settings == {"beta1": 0, "seed": 7, "epochs": 4, "dataset": "mnist"}


@pytest.mark.parametrize("name", ["a", "a b", "ü", "...", "-x", ".hidden", "a?b%20#"])
def test_any_name_of_a_folder_is_a_name(name: str) -> None:
    assert Options(search="hparams", name=name).name == name


# Going on with a search


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--sampler grid --gpus-per-trial 0.5 --wandb disabled",
        "--objectives fid,kid --sampler random --scheduler fifo --grace-period 2",
        "--width 8 --seed 4 --replicas 2 --set ema_decay=0.5 --set beta1=0 --epochs 5 "
        "--num-trials 7 --max-concurrent 1 --confirm 2 --confirm-seeds 3 --points-from earlier "
        "--dataset mnist --preset full",
    ],
)
def test_a_resumed_search_has_the_same_options(text: str, tmp_path: Path) -> None:
    options, _ = saved(tmp_path, text)
    assert resume(tmp_path) == dataclasses.replace(options, resume="run", storage=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("--confirm 5", {"confirm": 5}),
        ("--confirm 0", {"confirm": 0}),
        ("--confirm-seeds 9", {"confirm_seeds": 9}),
        ("--wandb disabled", {"wandb": "disabled"}),
        ("--num-trials 20", {"num_trials": 20}),
        ("--max-concurrent 3 --gpus-per-trial .25", {"max_concurrent": 3, "gpus_per_trial": ".25"}),
        ("--dry-run", {"dry_run": True}),
        ("--data-dir d", {"data_dir": Path("d")}),
        ("--no-report --retry-failed", {"report": False, "retry_failed": True}),
    ],
)
def test_what_may_change_can_be_said_on_resuming(
    text: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    saved(tmp_path, "--confirm 2")
    assert resume(tmp_path, text) == dataclasses.replace(resume(tmp_path), **changes)


def test_what_belongs_to_a_machine_is_not_saved(tmp_path: Path) -> None:
    options, _ = saved(
        tmp_path, "--storage there --address auto --name n --data-dir d --no-report --no-estimate"
    )
    assert not set(options.saved()) & {*MACHINE, *START}
    assert set(options.saved()) == set(SAVED)
    again = resume(tmp_path)
    assert (again.storage, again.address, again.data_dir) == (str(tmp_path), None, None)
    assert again.report
    assert again.estimate


def test_on_resuming_only_some_flags_are_allowed(tmp_path: Path) -> None:
    assert set(ON_RESUMING) == {
        *(
            "resume",
            "storage",
            "address",
            "data_dir",
            "dry_run",
            "retry_failed",
            "report",
            "estimate",
        ),
        *CHANGEABLE,
    }
    saved(tmp_path)
    for name in FLAGS:
        words = [word.format(tmp_path) for word in given(name)]
        arguments = ["--resume", "run", "--storage", str(tmp_path), *words]
        if name in ON_RESUMING:
            resumed(from_flags(make_parser(), arguments))
            continue
        message = f"^{flag_name(name)} cannot go with --resume: the search keeps its own settings$"
        with pytest.raises(ValueError, match=message):
            resumed(from_flags(make_parser(), arguments))
    with pytest.raises(ValueError, match=r"^--epochs, --seed cannot go with --resume"):
        resume(tmp_path, "--seed 1 --epochs 3")


def test_a_name_may_end_as_a_shell_completes_it(tmp_path: Path) -> None:
    saved(tmp_path)
    assert resume(tmp_path, name="run/") == resume(tmp_path)


def test_a_search_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "no search").mkdir()
    with pytest.raises(
        FileNotFoundError, match=rf"^no search 'gone' in {re.escape(str(tmp_path))}; there: none$"
    ):
        resume(tmp_path, name="gone")
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / SEARCH_FILE).touch()
    with pytest.raises(FileNotFoundError, match=r"^no search 'gone' in .*; there: a, b$"):
        resume(tmp_path, name="gone")


WHOLE = {"version": VERSION, "axes": {}, "points": [], "options": {}}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"3", json.dumps(WHOLE).encode()]
    + [json.dumps({**WHOLE, "options": []}).encode()]
    + [
        json.dumps({name: value for name, value in WHOLE.items() if name != gone}).encode()
        for gone in list(WHOLE)[1:]
    ],
)
def test_a_damaged_record_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SEARCH_FILE).write_bytes(content)
    message = f"{tmp_path / 'run' / SEARCH_FILE} is damaged ("
    with pytest.raises(
        ValueError, match=f"^{re.escape(message)}.*can still be read by python -m analysis.tables$"
    ):
        resume(tmp_path)


@pytest.mark.parametrize("name", SAVED)
def test_a_record_that_lacks_an_option_is_refused(name: str, tmp_path: Path) -> None:
    options, _ = saved(tmp_path)
    values = options.saved()
    del values[name]
    saved(tmp_path, options=values)
    with pytest.raises(ValueError, match=f"is damaged .*, or should not have, {name}"):
        resume(tmp_path)


def test_a_record_with_an_unknown_option_or_a_wrong_value_is_refused(tmp_path: Path) -> None:
    options, _ = saved(tmp_path)
    saved(tmp_path, options=options.saved() | {"turbo": 1})
    with pytest.raises(ValueError, match=r"is damaged .*, or should not have, turbo"):
        resume(tmp_path)
    saved(tmp_path, options=options.saved() | {"epochs": 0})
    with pytest.raises(ValueError, match=r"is damaged \(--epochs is 0; allowed is 1 to "):
        resume(tmp_path)


@pytest.mark.parametrize(
    "content", [{"arguments": {"search": "hparams"}, "points": []}, {}, {"version": 4}]
)
def test_a_search_of_another_version_is_refused_in_one_line(
    content: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SEARCH_FILE).write_text(json.dumps(content))
    with pytest.raises(
        ValueError,
        match=r"of another version of this program \([124], this one has 3\), .*analysis.tables$",
    ):
        resume(tmp_path)
