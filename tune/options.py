"""What a person asks of a search: the flags of `python -m tune.run`, as data.

`Options` are checked where they are made, saved in `search.json`, and read back on resuming.
"""

import argparse
import ast
import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcgan import cli
from dcgan.config import MOST_EPOCHS, MOST_LANES, MOST_SEED
from dcgan.data import DATASETS
from dcgan.schema import METRIC, OBJECTIVES, RENAMED, SEARCH_FILE, WANDB_MODES
from dcgan.settings import check_settings, flag_name, setting
from dcgan.store import Store, search_store
from tune.schedulers import SCHEDULERS
from tune.searches import PRESETS, SEARCHES, doc_of

SAMPLERS = ("tpe", "random", "grid")
VERSION = 3  # of search.json
MACHINE = ("storage", "address", "data_dir", "name", "resume")
START = ("retry_failed", "dry_run", "report", "estimate")
"""Options of a machine, and of a start, which are never saved."""
CHANGEABLE = (
    *("num_trials", "epochs_in_all", "confirm", "confirm_seeds", "wandb"),
    *("max_concurrent", "gpus_per_trial"),  # which suit the machine
)
"""Saved options that a person may change on resuming."""
LENGTHS = ("num_trials", "epochs_in_all")
"""Options that say how long a search is: of these a person may ask for more on resuming."""
ON_RESUMING = ("storage", "address", "data_dir", "resume", *START, *CHANGEABLE)
"""Options that may be given with `resume`."""
MOST_TRIALS = 100_000
MOST_CONFIRM_SEEDS = 1_000
SHARE = 0.25  # of a GPU
OWN_FLAGS = ("dataset", "epochs", "seed", "replicas")
"""What `set` leaves to a flag of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a person asks for. None leaves the choice to the preset, the search or the machines.

    Raises:
        ValueError: a value that is not allowed, or not with another; names the flag.
    """

    search: str | None = setting(None, choices=SEARCHES)
    """What to vary; see below."""
    preset: str | None = setting(None, choices=PRESETS)
    """Budget; see below (default: full with a GPU, else demo)."""
    num_trials: int | None = setting(
        None, least=1, most=MOST_TRIALS, why="a proposal of TPE takes longer the more there are"
    )
    """Settings to try (default: the preset's); with --resume, more than before."""
    epochs: int | None = setting(None, least=1, most=MOST_EPOCHS, why="each keeps a row")
    """Epochs of a trial that is never stopped (default: the preset's)."""
    width: int | None = setting(None, least=1)
    """Channels of both nets at the baseline (default: the preset's)."""
    dataset: str | None = setting(None, choices=DATASETS)
    """Data set (default: the preset's)."""
    data_dir: Path | None = None
    """Folder above MNIST/raw (default: $DCGAN_DATA_DIR or ~/.cache/dcgan)."""
    sampler: str | None = setting(None, choices=SAMPLERS)
    """Optuna's TPE, chance, or the original study's own grid (default: tpe; of freeze-thaw:
    random)."""
    scheduler: str | None = setting(None, choices=SCHEDULERS)
    """What may end trials early: ASHA; nothing; or freeze-thaw, which goes epoch by epoch on with
    what is likeliest to end best (default: asha; grid or objectives: fifo)."""
    grace_period: int | None = setting(None, least=1)
    """Epochs before ASHA's first decision (default: a sixth of a trial's)."""
    epochs_in_all: int | None = setting(None, least=1, most=MOST_TRIALS, why="it keeps every one")
    """Epochs after which freeze-thaw ends (default: as many as ASHA would train); with --resume,
    more than before."""
    replicas: int = setting(1, least=1, most=MOST_LANES)
    """Seeds that each trial trains; their mean counts."""
    objectives: str = setting(METRIC, metavar="A,B")
    """Columns to optimise, separated by commas, fid first; see below."""
    points_from: str | None = setting(None, metavar="RUN")
    """Begin with the best settings of an earlier search: its folder, or its URI."""
    set: tuple[str, ...] = setting((), metavar="KEY=VALUE")
    """Fix a setting, such as ema_decay=0.999; may be given several times."""
    max_concurrent: int | None = setting(None, least=1)
    """Trials at a time (default: all that fit; 1 repeats exactly)."""
    gpus_per_trial: str | None = setting(None, metavar="X")
    """Share of a GPU that each trial gets, if there is one; auto measures how many fit and pay
    (default: 0.25)."""
    seed: int = setting(0, least=0, most=MOST_SEED)
    """Seed of the sampler, and of every trial."""
    confirm: int | None = setting(None, least=0, metavar="K")
    """Train the best K again on fresh seeds afterwards; 0 does not (default: the preset's)."""
    confirm_seeds: int | None = setting(
        None, least=1, most=MOST_CONFIRM_SEEDS, why="each is a run of every confirmed setting"
    )
    """Fresh seeds of each of them (default: the preset's)."""
    address: str | None = setting(None, metavar="HOST:PORT")
    """HOST:PORT of the Ray cluster to run on; auto: the one that this machine is part of; local:
    this machine alone (default: $RAY_ADDRESS, which Ray sets for jobs, else local)."""
    storage: str = setting("runs", metavar="DIR")
    """Folder of all searches, or s3://… or gs://…"""
    name: str | None = setting(None, metavar="NAME")
    """This search's folder in the storage (default: the search, date and time)."""
    resume: str | None = setting(None, metavar="NAME")
    """Go on with the search of that name."""
    retry_failed: bool = False
    """With --resume: begin failed trials anew, from their last epoch."""
    wandb: str | None = setting(None, choices=WANDB_MODES)
    """Weights & Biases (default: online where there is a key, else offline)."""
    report: bool = True
    """Leave out report.html, which is written at the end."""
    estimate: bool = True
    """Leave out the estimate of the cost, which is measured first."""
    dry_run: bool = False
    """Print the plan and its cost, and stop."""

    def __post_init__(self) -> None:
        check_settings(self, flag_name)
        if empty := [f.name for f in dataclasses.fields(self) if getattr(self, f.name) == ""]:
            raise ValueError(f"{flag_name(empty[0])} is empty; leave it out, or give it a value")
        if self.resume:  # as a shell completes it
            object.__setattr__(self, "resume", self.resume.rstrip("/") or "/")
        if not self.resume and not self.search:
            raise ValueError(f"--search is missing; allowed: {', '.join(SEARCHES)}")
        if self.retry_failed and not self.resume:
            raise ValueError("--retry-failed goes with --resume NAME")
        for flag, name in (("--name", self.name), ("--resume", self.resume)):
            if name is not None:
                check_name(flag, name)
        if self.address is not None:
            check_address("--address", self.address)
        if self.address == "local":
            object.__setattr__(self, "address", None)
        objectives = parse_objectives(self.objectives)
        parse_settings(self.set)
        if self.gpus_per_trial is not None:
            parse_share(self.gpus_per_trial)
        one_alone = self.scheduler and not SCHEDULERS[self.scheduler].several_objectives
        if one_alone and len(objectives) > 1:
            raise ValueError(
                f"--scheduler {self.scheduler} knows one objective; use fifo with --objectives "
                f"{','.join(objectives)}"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of `TrainConfig` that are fixed, whether by `set` or by a flag of their own."""
        own = {"seed": self.seed, "dataset": self.dataset, "epochs": self.epochs}
        given = {name: value for name, value in own.items() if value is not None}
        return parse_settings(self.set) | given

    @property
    def share(self) -> float | None:
        """Share of a GPU for each trial; None has it measured."""
        return parse_share(self.gpus_per_trial) if self.gpus_per_trial else SHARE

    def saved(self) -> dict[str, Any]:
        """What `search.json` keeps, as JSON values, to go on with."""
        values = {name: getattr(self, name) for name in SAVED}
        return values | {"set": list(self.set)}


SAVED = tuple(
    field.name for field in dataclasses.fields(Options) if field.name not in (*MACHINE, *START)
)
"""Options that a search keeps."""


def make_parser() -> cli.Parser:
    """The command line of a search: a flag for each field of `Options`."""
    searches = "\n".join(f"  {name:<13}{doc_of(name)}" for name in SEARCHES)
    presets = "\n".join(
        f"  {preset.name:<13}{preset.dataset}, width {preset.width}, {preset.epochs} epochs, "
        f"{preset.num_trials} trials"
        for preset in PRESETS.values()
    )
    parser = cli.Parser(
        prog="python -m tune.run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Search for the DCGAN settings that give the best digits, and end with a "
        "table.",
        epilog=f"searches:\n{searches}\n\npresets:\n{presets}\n\nobjectives:\n"
        f"  {', '.join(OBJECTIVES)}\n\n"
        "Ctrl-C stops a search and prints the command that goes on with it.",
    )
    cli.add_flags(parser, Options)
    return parser


def from_flags(parser: cli.Parser, arguments: Sequence[str] | None = None) -> Options:
    """The options of a command line; of this process's own where none is given."""
    given = cli.given_flags(parser.parse_args(arguments), Options)
    inherited = os.environ.get("RAY_ADDRESS")
    if inherited and given.get("address", "auto") == "auto":  # which Ray takes for auto
        check_address("the environment's RAY_ADDRESS", inherited)
        given.setdefault("address", inherited)
    return Options(**given)


def resumed(options: Options) -> Options:
    """The saved options of the search to resume, with those of this machine.

    Raises:
        FileNotFoundError: there is no such search; names those that there are.
        ValueError: options that cannot change on resuming, or a damaged record.
    """
    assert options.resume
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }
    if refused := [name for name in given if name not in ON_RESUMING]:
        flags = ", ".join(map(flag_name, refused))
        raise ValueError(f"{flags} cannot go with --resume: the search keeps its own settings")
    record = read_record(search_store(options.storage, options.resume, several=False))
    # the preset's own numbers may have been others when the search began
    for name in LENGTHS:
        if record.get(name):
            given.setdefault(name, record[name])
    return dataclasses.replace(saved_options(record), **given)


def read_record(store: Store) -> dict[str, Any]:
    """A search's `search.json`, as `tune.describe.record` makes it.

    Raises:
        FileNotFoundError: there is no search in the store; names those beside it.
        ValueError: the file is damaged, or of another version of this program.
    """
    store.get(SEARCH_FILE)
    if not store.has(SEARCH_FILE):  # a copy may be older than what the storage has now
        parent, _, name = store.location.rpartition("/")
        there = ", ".join(store.siblings(SEARCH_FILE)) or "none"
        raise FileNotFoundError(f"no search {name!r} in {parent}; there: {there}")
    file = store.folder / SEARCH_FILE
    hint = "its trials can still be read by python -m analysis.tables"
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = record.get("version")
        if version == VERSION:
            saved_options(record)  # refuses what is missing or not allowed
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); {hint}") from error
    if version != VERSION:
        raise ValueError(
            f"{file} is of another version of this program ({version or 1}, this one has "
            f"{VERSION}), so that the search cannot go on; {hint}"
        )
    return record


def saved_options(record: dict[str, Any]) -> Options:
    """The options of a record, which must have all that a search needs to go on."""
    if missing := [name for name in ("options", "points", "axes") if name not in record]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    options = record["options"]
    if differing := sorted(set(options) ^ set(SAVED)):
        raise ValueError(f"its options should have, or should not have, {', '.join(differing)}")
    return Options(**options | {"set": tuple(options["set"])})


def check_name(flag: str, name: str) -> None:
    """Refuses by a ValueError what is no name of a folder."""
    if not name.isprintable() or len(os.fsencode(name)) > 200:
        raise ValueError(
            f"{flag} is {name!r}; allowed is one line of at most 200 bytes, of letters that the "
            f"locale has"
        )
    if Path(name).name != name or name == "..":
        parent, _, last = name.rpartition("/")
        hint = f", such as {flag} {last} --storage {parent}" if last and parent else ""
        raise ValueError(
            f"{flag} is {name!r}; allowed is one folder name; use --storage for where it lies{hint}"
        )


def check_address(source: str, address: str) -> None:
    """Refuses by a ValueError what is no address of a cluster, such as that of Ray's client
    (`ray://`) or dashboard: the driver has to be part of the cluster."""
    host, _, port = address.rpartition(":")
    known = host and "://" not in address and port.isdecimal() and 0 < int(port) < 65536
    if address not in ("auto", "local") and not known:
        raise ValueError(
            f"{source} is {address}; allowed is local, auto, or HOST:PORT of the cluster's head, "
            f"from one of its machines; from elsewhere: ray job submit, or ray exec "
            f"(docs/cluster.md)"
        )


def parse_objectives(text: str) -> tuple[str, ...]:
    """Columns to optimise from `fid,seconds_train`, of which the metric is the first."""
    given = (name.strip() for name in text.split(","))
    names = tuple(RENAMED.get(name, name) for name in given)
    if unknown := [name for name in names if name not in OBJECTIVES]:
        shown = ", ".join(map(repr, unknown))
        raise ValueError(f"--objectives has {shown}; allowed: {', '.join(OBJECTIVES)}")
    if names[0] != METRIC or len(set(names)) < len(names):
        raise ValueError(
            f"--objectives is {text}; {METRIC} stands first, since it chooses each trial's epoch, "
            f"and each once"
        )
    return names


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Settings from `key=value` texts, with values in JSON or as bare words."""
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ValueError(f"--set is {text!r}; expected KEY=VALUE, such as ema_decay=0.999")
        if key in OWN_FLAGS:
            raise ValueError(f"--set {text}: use --{key} instead")
        if key in settings:
            raise ValueError(f"--set {key} stands twice")
        settings[key] = parse_value(value)
    return settings


def parse_value(text: str) -> Any:
    """A value in JSON, or as Python writes it (`.5`, `1_000`, `True`); else a bare word."""
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return parse(text)
    return text


def parse_share(text: str) -> float | None:
    """The share of a GPU from `0.25`; None from `auto`."""
    if text == "auto":
        return None
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise ValueError(
        f"--gpus-per-trial is {text}; allowed is above 0, up to 1 (a trial uses one GPU), or auto"
    )
