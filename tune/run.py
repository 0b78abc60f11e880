"""`python -m tune.run`: one command from a question to a table."""

import argparse
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

# Before Ray is imported: no usage reports, and Tune's own status output gives way to tune.progress.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import torch

from dcgan import checkpoint, cli
from dcgan.config import DATASETS, TrainConfig
from dcgan.data import default_data_dir
from dcgan.models import Generator
from dcgan.precision import absurdly_slow, default_device, usable
from tune.plan import SAMPLERS, Plan, describe, preflight, record, resources, seconds_per_epoch
from tune.searches import DEMO, PRESETS, REPORT, SEARCHES, make_search

SEARCH_FILE = "search.json"


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
    add("--dataset", choices=DATASETS, help="data set (default: the preset's)")
    cli.add_data_dir(parser)
    add("--sampler", choices=SAMPLERS, help="Optuna's TPE, chance, or the report's own grid (default: tpe)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="fix a setting: ema_decay=0.999; repeatable")
    add("--max-concurrent", type=int, metavar="N", help="trials at a time (default: all that fit; 1 repeats exactly)")
    add("--gpus-per-trial", type=float, default=0.25, metavar="X", help="GPU share of a trial, if any (default: 0.25)")
    add("--seed", type=int, default=0, help="seed of the sampler and of every trial (default: 0)")
    add("--storage", type=Path, default=Path("runs"), metavar="DIR", help="folder of all searches (default: runs)")
    add("--name", help="this search's folder in it (default: search, date and time)")
    add("--resume", metavar="NAME", help="go on with the search of that name; only --storage goes with it")
    add("--dry-run", action="store_true", help="print the plan and its cost, and stop")
    return parser


def read_plan(args: argparse.Namespace, device: torch.device) -> Plan:
    """The plan that a command line with a settled preset asks for.

    Raises:
        ValueError: a value that is not allowed.
    """
    for flag in ("num_trials", "epochs", "max_concurrent"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} is {value}; allowed is at least 1")
    if not 0 < args.gpus_per_trial <= 1:
        raise ValueError(f"--gpus-per-trial is {args.gpus_per_trial}; allowed is above 0, up to 1 (a trial uses one GPU)")
    settings = parse_settings(args.set)
    given = {"dataset": args.dataset, "epochs": args.epochs, "seed": args.seed}
    settings |= {name: value for name, value in given.items() if value is not None}
    search = make_search(args.search, PRESETS[args.preset], usable(device), settings)
    sampler = args.sampler or search.sampler
    wanted = len(search.grid_points()) if sampler == "grid" else search.num_trials
    if sampler == "grid" and args.num_trials and args.num_trials > wanted:
        raise ValueError(f"--num-trials is {args.num_trials}; the grid of {search.name} has {wanted} settings")
    slots, cpus, gpus = resources(args.gpus_per_trial, args.max_concurrent)
    name = args.name or f"{search.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    check_name("--name", name)
    return Plan(
        search=search,
        sampler=sampler,
        num_trials=args.num_trials or wanted,
        seed=args.seed,
        data_dir=(args.data_dir or default_data_dir()).expanduser().absolute(),  # workers run in other folders
        folder=args.storage.expanduser().absolute() / name,
        slots=min(slots, args.num_trials or wanted),
        cpus=cpus,
        gpus=gpus,
    )


def choose_preset(args: argparse.Namespace, device: torch.device) -> str:
    """Settles `args.preset` where the user left it open, and says how it was chosen."""
    reason = "as asked" if args.preset else f"since there is {'a' if device.type == 'cuda' else 'no'} GPU here"
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
        if key in settings or key in ("dataset", "epochs", "seed"):
            raise ValueError(f"--set {key} stands twice" if key in settings else f"--set {text}: use --{key} instead")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def saved_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line of the search to resume.

    Raises:
        FileNotFoundError: there is no such search; names those there are.
        ValueError: flags that cannot change on resuming, or a damaged file.
    """
    check_name("--resume", args.resume)
    untouched = vars(parser.parse_args([])) | {name: vars(args)[name] for name in ("resume", "storage", "dry_run")}
    if changed := [f"--{name.replace('_', '-')}" for name, value in vars(args).items() if value != untouched[name]]:
        raise ValueError(f"{', '.join(changed)} cannot go with --resume: the search keeps its own settings")
    storage = args.storage.expanduser().absolute()
    file = storage / args.resume / SEARCH_FILE
    if not file.is_file():
        there = ", ".join(sorted(path.parent.name for path in storage.glob(f"*/{SEARCH_FILE}"))) or "none"
        raise FileNotFoundError(f"no search {args.resume!r} in {storage}; there: {there}")
    try:
        saved = json.loads(file.read_text())["arguments"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}); its trials can still be read by python -m analysis.tables") from error
    saved["data_dir"] = Path(saved["data_dir"])
    return argparse.Namespace(**saved, storage=args.storage, name=args.resume)


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
    dry_run, resume = args.dry_run, args.resume
    device = default_device()
    if resume:
        args = saved_arguments(args, parser)
    chosen = choose_preset(args, device)
    plan = read_plan(args, device)
    if not resume and plan.folder.exists():
        raise ValueError(
            f"{plan.folder} holds a search; go on with it by --resume {plan.folder.name}, or choose another --name"
        )
    preflight(plan, device)
    print(describe(plan, chosen, seconds_per_epoch(plan, device)), flush=True)
    if slow := absurdly_slow(plan.search.base.precision, device):
        print(f"warning  {slow}")
    if dry_run:
        return 0
    if not resume:
        kept = {k: v for k, v in vars(args).items() if k not in ("resume", "dry_run", "storage", "name")}
        kept["data_dir"] = str(plan.data_dir)
        plan.folder.mkdir()  # claimed: another search of this name fails from here on
        (plan.folder / SEARCH_FILE).write_text(json.dumps(record(plan, kept, device), indent=2) + "\n")

    from tune.runner import run_plan  # Ray takes 2 s to import, which --help and errors need not wait for

    print(flush=True)
    try:
        interrupted = run_plan(plan)
    except KeyboardInterrupt:  # before Ray was up, or for the second time
        interrupted = True
    try:
        found = answer(plan)
    finally:
        if interrupted:
            print(f"\nstopped; go on with: {parser.prog} --resume {plan.folder.name} --storage {plan.folder.parent}")
    return 130 if interrupted else 0 if found else 1


def answer(plan: Plan) -> bool:
    """Prints the table, the best config, its samples and the paths of everything; returns whether there is a best."""
    from analysis import load, tables
    from dcgan.images import sample, save_grid

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
    written = {"table": "table.csv, table.md", "config": "best.json", "trials": "trial_*/"}
    if found := best_generator(plan.folder / best["trial"]):
        path, generator = found
        save_grid(sample(generator, config.latent_size, 64), plan.folder / "best.png")
        written |= {"samples": "best.png", "checkpoint": str(path.relative_to(plan.folder))}
    print(f"\neverything is in {plan.folder}:")
    print("\n".join(f"  {what:<11}{where}" for what, where in written.items()))
    return True


def best_generator(trial: Path) -> tuple[Path, Generator] | None:
    """The generator of the trial's best epoch, from its newest whole checkpoint: a kill can leave a half-copied one."""
    for path in sorted(trial.glob(f"checkpoint_*/{checkpoint.NAME}"), reverse=True):
        try:
            return path, checkpoint.load_generator(path)[0]
        except ValueError as error:
            print(f"skipped: {error}", file=sys.stderr)
    return None


if __name__ == "__main__":
    main()
