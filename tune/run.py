"""`python -m tune.run`: one command from a question to a table."""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before Ray is imported: no usage reports, and Tune's own status output gives way to tune.progress.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of trials that fail as the search ends; each is told

import torch

from dcgan import checkpoint, cli
from dcgan.config import DATASETS, TrainConfig
from dcgan.data import default_data_dir, load_split, source, to_unit_range
from dcgan.precision import absurdly_slow, default_device, usable
from dcgan.schema import METRIC
from tune.cluster import Cluster, There, check_data, check_storage, check_versions, here
from tune.plan import (
    SAMPLERS,
    SCHEDULERS,
    SEARCH_FILE,
    Plan,
    default_grace_period,
    describe,
    describe_axes,
    preflight,
    record,
    resources,
    seconds_per_epoch,
    usable_cpus,
)
from tune.searches import DEMO, OBJECTIVES, PRESETS, REPORT, SEARCHES, Point, Search, make_search
from tune.storage import LOCK, StorageError, place, stored

if TYPE_CHECKING:
    from tune.runner import Stop  # Ray takes 2 s to import, which --help and errors need not wait for

ON_RESUMING = ("resume", "storage", "address", "dry_run", "confirm", "confirm_seeds", "retry_failed", "wandb")
CHANGED = ("confirm", "confirm_seeds", "wandb")  # on resuming, if given
GRID = 64  # images of a sample grid
ROWS, STEPS = 8, 10  # strips of interpolated images, and images of each
NOT_KEPT = ("resume", "storage", "address", "dry_run", "name", "retry_failed")


def make_parser() -> cli.Parser:
    """The command line. What is kept in search.json and used again on resuming is what `read_plan` reads."""
    searches = "\n".join(f"  {name:<13}{' '.join((f.__doc__ or '').split())}" for name, f in SEARCHES.items())
    presets = "\n".join(
        f"  {p.name:<13}{p.dataset}, width {p.width}, {p.epochs} epochs, {p.num_trials} trials" for p in PRESETS.values()
    )
    parser = cli.Parser(
        prog="python -m tune.run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Search for the DCGAN settings that give the best digits, and end with a table.",
        epilog=f"searches:\n{searches}\n\npresets:\n{presets}\n\n"
        "Ctrl-C stops a search and prints the command that goes on with it.",
    )
    add = parser.add_argument
    add("--search", choices=SEARCHES, help="what to vary; see below")
    add("--preset", choices=PRESETS, help="budget; see below (default: report with a GPU, else demo)")
    add("--num-trials", type=int, metavar="N", help="settings to try (default: the preset's)")
    add("--epochs", type=int, metavar="N", help="epochs of a trial that is never stopped (default: the preset's)")
    add("--width", type=int, metavar="C", help="channels of both nets at the baseline (default: the preset's)")
    add("--dataset", choices=DATASETS, help="data set (default: the preset's)")
    cli.add_data_dir(parser)
    add("--sampler", choices=SAMPLERS, help="Optuna's TPE, chance, or the report's own grid (default: tpe)")
    add("--scheduler", choices=SCHEDULERS, help="what may end trials early: ASHA, nothing, or PBT (default: asha; grid: fifo)")
    add("--grace-period", type=int, metavar="N", help="epochs before ASHA's first decision (default: a sixth of them)")
    add("--replicas", type=int, metavar="R", help="seeds that each trial trains; their mean counts (default: 1)")
    add("--objectives", metavar="A,B", help=f"columns to optimise together, {METRIC} first: {', '.join(OBJECTIVES)}")
    add("--points-from", metavar="RUN", help="begin with the best settings of an earlier search's folder, or its URI")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="fix a setting: ema_decay=0.999; repeatable")
    add("--max-concurrent", type=int, metavar="N", help="trials at a time (default: all that fit; 1 repeats exactly)")
    add(
        "--gpus-per-trial", default="0.25", metavar="X",
        help="GPU share of a trial, if there is one; auto measures how many of the largest fit and pay, on GPUs of several "
        "sizes by their memory (default: 0.25)",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the sampler and of every trial (default: 0)")
    add("--confirm", type=int, metavar="K", help="train the best K again on fresh seeds, after; 0: not (default: the preset's)")
    add("--confirm-seeds", type=int, metavar="N", help="fresh seeds of each (default: the preset's)")
    add("--address", metavar="HOST:PORT", help="Ray cluster to run on; auto: the one this machine is of (default: no other)")
    add("--storage", default="runs", metavar="DIR", help="folder of all searches, or s3://… or gs://… (default: runs)")
    add("--name", help="this search's folder in it (default: search, date and time)")
    add("--resume", metavar="NAME", help="go on with the search of that name")
    add("--retry-failed", action="store_true", help="with --resume: begin failed trials anew, from their last epoch")
    add(
        "--wandb",
        choices=("online", "offline", "disabled"),
        help="Weights & Biases (default: online where there is a key, else offline)",
    )
    add("--dry-run", action="store_true", help="print the plan and its cost, and stop")
    return parser


def read_plan(
    args: argparse.Namespace, device: torch.device, points: list[Point] | None = None, cluster: Cluster | None = None
) -> Plan:
    """The plan that a command line with a settled preset asks for. `points` are those of the search to resume.

    Raises:
        ValueError: a value that is not allowed.
        FileNotFoundError: there is no search to take points from.
    """
    for flag in ("num_trials", "epochs", "max_concurrent", "grace_period", "replicas", "width", "confirm_seeds"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} is {value}; allowed is at least 1")
    if args.confirm is not None and args.confirm < 0:
        raise ValueError(f"--confirm is {args.confirm}; allowed is at least 0")
    preset = PRESETS[args.preset]
    preset = dataclasses.replace(preset, width=args.width or preset.width)
    settings = parse_settings(args.set)
    given = {"dataset": args.dataset, "epochs": args.epochs, "seed": args.seed, "replicas": args.replicas}
    settings |= {name: value for name, value in given.items() if value is not None}
    there = cluster.there if cluster else here
    search = make_search(args.search, preset, there(usable, device), settings)
    sampler = args.sampler or search.sampler
    objectives = parse_objectives(args.objectives)
    scheduler = args.scheduler or ("fifo" if sampler == "grid" or len(objectives) > 1 else "asha")
    there_are = len(search.grid_points()) if sampler == "grid" else search.settings
    num_trials = args.num_trials or int(there_are if sampler == "grid" else min(search.num_trials, there_are))
    if num_trials > there_are:
        what = "grid" if sampler == "grid" else "space"
        raise ValueError(f"--num-trials is {num_trials}; the {what} of {search.name} has {there_are} settings")
    grace_period = args.grace_period or default_grace_period(search.base.epochs)
    check_search(search, scheduler, objectives, args.confirm)
    if grace_period > search.base.epochs:
        raise ValueError(f"--grace-period is {grace_period}; allowed is up to the {search.base.epochs} epochs of a trial")
    data_dir = args.data_dir.expanduser().absolute() if args.data_dir else None  # workers run in other folders
    if not cluster:  # of whose machines each knows its own
        data_dir = data_dir or default_data_dir()
    share, gib = gpu_share(args, search, data_dir, device, cluster)
    slots, cpus, gpus = resources(share, args.max_concurrent, cluster.room if cluster else None)
    name = args.name or f"{search.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    check_name("--name", name)
    store = place(args.storage, name, several=bool(cluster and cluster.several))
    return Plan(
        search=search,
        sampler=sampler,
        scheduler=scheduler,
        objectives=objectives,
        points=first_points(search, sampler, num_trials, args.points_from) if points is None else points,
        num_trials=num_trials,
        grace_period=grace_period,
        seed=args.seed,
        data_dir=data_dir,
        folder=store.folder,
        store=store,
        slots=slots,
        cpus=cpus,
        gpus=gpus,
        gpu_gib=gib,
        address=cluster.address if cluster else "",
        nodes=cluster.nodes if cluster else (),
        confirm=0 if scheduler == "pbt" else preset.confirm if args.confirm is None else args.confirm,
        confirm_seeds=args.confirm_seeds or preset.confirm_seeds,
    )


def gpu_share(
    args: argparse.Namespace, search: Search, data_dir: Path | None, device: torch.device, cluster: Cluster | None = None
) -> tuple[float, float]:
    """The share of a GPU that each trial gets, and the GPU memory, GiB, that it asks for besides; measured for `auto`.

    On one machine what was measured is kept for resuming; a cluster may have other GPUs by then.

    Raises:
        ValueError: it is no share.
    """
    if args.gpus_per_trial == "auto" and device.type == "cuda":
        from tune.packing import cluster_share, measured_share

        if cluster:
            return cluster_share(search, data_dir, cluster)
        assert data_dir
        args.gpus_per_trial = measured_share(search, data_dir, device, usable_cpus())
    with contextlib.suppress(ValueError):
        share = 1.0 if args.gpus_per_trial == "auto" else float(args.gpus_per_trial)  # without a GPU it means nothing
        if 0 < share <= 1:
            return share, 0.0
    raise ValueError(f"--gpus-per-trial is {args.gpus_per_trial}; allowed is above 0, up to 1 (a trial uses one GPU), or auto")


def check_search(search: Search, scheduler: str, objectives: tuple[str, ...], confirm: int | None) -> None:
    """Refuses combinations that cannot work.

    Raises:
        ValueError: names them, and what to do.
    """
    if scheduler == "pbt" and confirm:
        raise ValueError("--confirm does not go with --scheduler pbt, which finds a schedule of rates and not a setting")
    if scheduler == "pbt" and not search.rates:
        raise ValueError(f"--scheduler pbt changes learning rates, which {search.name} does not vary; use hparams or joint")
    if scheduler != "fifo" and len(objectives) > 1:
        raise ValueError(f"--scheduler {scheduler} knows one objective; use fifo with --objectives {','.join(objectives)}")


def parse_objectives(text: str | None) -> tuple[str, ...]:
    """Columns to optimise from `fid,seconds_train`.

    Raises:
        ValueError: an unknown or doubled column, or another than the metric first.
    """
    names = tuple(name.strip() for name in text.split(",")) if text else (METRIC,)
    if unknown := [name for name in names if name not in OBJECTIVES]:
        raise ValueError(f"--objectives has {', '.join(map(repr, unknown))}; allowed: {', '.join(OBJECTIVES)}")
    if names[0] != METRIC or len(set(names)) < len(names):
        raise ValueError(f"--objectives is {text}; {METRIC} stands first, since it chooses each trial's epoch, and each once")
    return names


def first_points(search: Search, sampler: str, num_trials: int, earlier: str | Path | None) -> list[Point]:
    """Points tried before the sampler proposes any: the whole grid, or the baseline and the best of an earlier search."""
    if sampler == "grid":
        if earlier:
            raise ValueError("--points-from does not go with --sampler grid, whose settings are fixed")
        return search.grid_points()[:num_trials]
    if not search.axes and earlier:
        raise ValueError(f"--points-from does not go with --search {search.name}, which varies nothing")
    if not search.axes:
        return [search.baseline()]
    if not earlier:
        return [search.baseline()]
    from tune.study import STUDY, best_points

    store = stored(str(earlier), purpose="earlier")
    store.clear()
    store.get(STUDY)
    return [search.baseline(), *best_points(store.folder, search, max(1, num_trials // 3))]


def choose_preset(args: argparse.Namespace, device: torch.device) -> str:
    """Settles `args.preset` where the user left it open, and says how it was chosen."""
    where = "in the cluster" if args.address else "here"
    reason = "as asked" if args.preset else f"since there is {'a' if device.type == 'cuda' else 'no'} GPU {where}"
    args.preset = args.preset or (REPORT if device.type == "cuda" else DEMO).name
    return f"{args.preset}, {reason}" + (" (--preset report is the full study)" if args.preset == DEMO.name else "")


def check_name(flag: str, name: str) -> None:
    """Refuses what is not the name of one folder."""
    if Path(name).name != name or name == "..":
        raise ValueError(f"{flag} is {name!r}; allowed is one folder name; use --storage for where it lies")


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """Settings from `key=value` texts, with values in JSON or as bare words.

    Raises:
        ValueError: there is no `=`, a key stands twice, or there is a flag of its own for it.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ValueError(f"--set is {text!r}; expected KEY=VALUE, such as ema_decay=0.999")
        if key in settings or key in ("dataset", "epochs", "seed", "replicas"):
            raise ValueError(f"--set {key} stands twice" if key in settings else f"--set {text}: use --{key} instead")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def saved_search(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[Point]]:
    """Command line and first points of the search to resume.

    Raises:
        FileNotFoundError: there is no such search; names those there are.
        ValueError: flags that cannot change on resuming, or a damaged file.
    """
    check_name("--resume", args.resume)
    defaults = vars(parser.parse_args([]))
    if changed := [name for name, value in vars(args).items() if value != defaults[name] and name not in ON_RESUMING]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise ValueError(f"{flags} cannot go with --resume: the search keeps its own settings")
    store = place(args.storage, args.resume, several=False)
    store.get(SEARCH_FILE)
    file = store.folder / SEARCH_FILE
    if not (store.has(SEARCH_FILE) if store.uri else file.is_file()):  # a copy may be older than what is there now
        there = ", ".join(store.siblings(SEARCH_FILE)) or "none"
        raise FileNotFoundError(f"no search {args.resume!r} in {store.location.rpartition('/')[0]}; there: {there}")
    try:
        content = json.loads(file.read_text())
        saved, points = content["arguments"], content["points"]
        kept = {name: saved[name] for name in defaults if name not in NOT_KEPT}
        kept["data_dir"] = Path(kept["data_dir"]) if kept["data_dir"] else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged, or of an older version ({error!r}); its trials can still be read by python -m analysis.tables"
        ) from error
    kept |= {name: value for name in CHANGED if (value := getattr(args, name)) is not None}
    return argparse.Namespace(**kept, storage=args.storage, address=args.address, name=args.resume), points


def check_space(plan: Plan) -> None:
    """Refuses to resume a search whose space is another one here.

    Raises:
        ValueError: names what differs.
    """
    plan.store.get(SEARCH_FILE)
    was = json.loads((plan.folder / SEARCH_FILE).read_text())["axes"]
    now = describe_axes(plan)
    if differing := [f"{name} was over {was.get(name)}, is over {text}" for name, text in now.items() if was.get(name) != text]:
        raise ValueError(
            f"{plan.folder} cannot go on here: {'; '.join(differing)} (a device must do all precisions of a search)"
        )


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        if not args.resume and not args.search:
            parser.error(f"--search is missing; allowed: {', '.join(SEARCHES)}")
        try:
            sys.exit(run(args, parser))
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            sys.exit(130)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Checks, prints the plan, runs it, prints the answer; returns the exit code."""
    dry_run, resume, retry = args.dry_run, args.resume, args.retry_failed
    if retry and not resume:
        raise ValueError("--retry-failed goes with --resume NAME")
    points = None
    args.address = args.address or os.environ.get("RAY_ADDRESS")  # which Ray sets for a job
    if resume:
        args, points = saved_search(args, parser)
    cluster = Cluster(args.address) if args.address else None
    there: There = cluster.there if cluster else here
    if cluster:
        check_versions(cluster)
        if not cluster.check_ready():
            print("waiting for a machine that trials can run on, which the cluster starts now", flush=True)
    device = there(default_device)
    chosen = choose_preset(args, device)
    plan = read_plan(args, device, points, cluster)
    if plan.store.uri:
        check_storage(plan.store, cluster)
    if resume:
        check_space(plan)
    elif holds_search(plan):
        name = plan.folder.name
        raise ValueError(f"{plan.location} holds a search; go on with it by --resume {name}, or choose another --name")
    if cluster:
        check_data(cluster, plan.search.base, plan.data_dir)
    preflight(plan, device, there)
    print(describe(plan, chosen, None if resume else there(seconds_per_epoch, plan, device)), flush=True)
    if slow := there(absurdly_slow, plan.search.base.precision, device):
        print(f"warning  {slow}")
    if dry_run:
        return 0
    description = None
    if resume:  # what is asked for now holds for later, too
        description = json.loads((plan.folder / SEARCH_FILE).read_text())
        description["arguments"] |= {name: getattr(args, name) for name in CHANGED}
    else:
        kept = {name: value for name, value in vars(args).items() if name not in NOT_KEPT}
        paths = {name: str(value) for name, value in kept.items() if isinstance(value, Path)}
        arguments = kept | paths | {"data_dir": str(plan.data_dir) if plan.data_dir else None}
        description = there(record, plan, arguments, device)

    from tune import study
    from tune.runner import run_plan, session, storage_error
    from tune.track import default_mode, tracked, tracking
    from tune.track import describe as describe_tracking

    mode = args.wandb or default_mode()
    print(f"{'tracking':<8} {describe_tracking(mode, tracked(plan.location).folder)}\n", flush=True)
    found, interrupted = False, True
    try:
        with session(plan, description) as stop, tracking(plan, mode, stop):
            if retry:
                print(f"retrying {study.retry_failed(plan)} failed trials")
            run_plan(plan, stop)
            interrupted = stop.asked
            found = answer(plan)
            if found and plan.confirm and not stop.asked:
                confirm(plan, stop)
                interrupted = stop.asked
            if found and not interrupted:
                from analysis.report import write

                plan.store.put()
                page = write([plan.location], plan.folder, page_only=True)
                print(f"\nreport: {plan.location}/{page.name}")
            plan.store.put()
    except KeyboardInterrupt:  # before Ray was up, or for the second time
        interrupted = True
    except StorageError as error:
        raise storage_error(error, plan) or error from error
    if found:
        command = f"python -m analysis.report {shlex.quote(plan.location)}"
        print(f"\nagain, with figures for a paper, or of several searches: {command}")
    if interrupted:
        print(f"\nstopped; go on with: {plan.resume_command}")
    return 130 if interrupted else 0 if found else 1


def holds_search(plan: Plan) -> bool:
    """Whether there is something at the plan's place. A folder without a description is what is left of a search that is
    killed as it begins."""
    if plan.store.uri:
        return plan.store.has(SEARCH_FILE)
    files = plan.folder.iterdir() if plan.folder.exists() else ()
    return any(path.name != LOCK and path.suffix != ".tmp" for path in files)


def confirm(plan: Plan, stop: "Stop") -> None:
    """Trains the best settings anew, within a session, and prints how the search's estimates held."""
    from analysis.confirm import write
    from tune.confirm import confirm_plan, judge
    from tune.runner import run_plan

    stage = confirm_plan(plan, plan.confirm, plan.confirm_seeds, json.loads((plan.folder / SEARCH_FILE).read_text()))
    print(f"\nconfirming on fresh seeds: {stage.num_trials} runs of {stage.epochs} epochs", flush=True)
    run_plan(stage, stop)
    if not stop.asked:
        judge(stage, default_device())
    print(f"\n{write(plan.folder)[1]}")


def answer(plan: Plan) -> bool:
    """Prints the table, the best config, its samples and the paths of everything; returns whether there is a best."""
    from analysis import load, tables
    from dcgan.images import interpolate, sample, save_grid

    if not any(load.is_trial(folder) for folder in plan.folder.glob("trial_*")):
        print("no trial has begun")
        return False
    table, text = tables.write(plan.folder)
    print(f"\n{text}\n")
    ranked = table.dropna(subset=[plan.search.metric])
    if ranked.empty:
        print(f"see error.txt in the folders of {plan.folder}")
        return False
    best = ranked.iloc[0]
    config = TrainConfig.from_file(plan.folder / best["trial"])
    (plan.folder / "best.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    print(f"best: {best['trial']}, {plan.search.metric} {best[plan.search.metric]:.2f} at epoch {best['best_epoch']}")
    print("  " + ", ".join(f"{name} {value}" for name, value in config.to_dict().items()))
    written = {"table": "table.csv, table.md", "config": "best.json", "trials": "trial_*/", "study": "study.db"}
    try:
        plan.store.get(f"{best['trial']}/{checkpoint.NAME}")
        generator, config, _ = checkpoint.load_generator(plan.folder / best["trial"])
        save_grid(sample(generator, config.latent_size, GRID), plan.folder / "best.png")
        save_grid(interpolate(generator, config.latent_size, STEPS, ROWS, seed=0), plan.folder / "interpolation.png", STEPS)
        real = load_split(source(config, plan.data_dir, torch.device("cpu")), "validation").images[:GRID]
        save_grid(to_unit_range(real), plan.folder / "real.png")
        written |= {"samples": "best.png, interpolation.png", "checkpoint": f"{best['trial']}/{checkpoint.NAME}"}
    except (FileNotFoundError, ValueError) as error:
        print(f"no samples: {error}", file=sys.stderr)
    print(f"\neverything is in {plan.location}:")
    print("\n".join(f"  {what:<11}{where}" for what, where in written.items()))
    return True


if __name__ == "__main__":
    main()
