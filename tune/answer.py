"""The answer of a search: its table, the best settings, their digits, what of it held, and the page
about all of it."""

import sys

import torch

from analysis import confirm, load, tables
from analysis.cli import rounded
from dcgan import checkpoint
from dcgan.config import read_lanes, write_lanes
from dcgan.data import load_split, to_unit_range
from dcgan.export import best_of_search, export_weights
from dcgan.images import interpolate, sample_grid, save_grid
from dcgan.schema import (
    BEST_FILE,
    CHECKPOINT_FILE,
    ERROR_FILE,
    METRIC,
    MODEL_FOLDER,
    STUDY_FILE,
    TRIALS_PATTERN,
)
from tune.plan import Plan, quoted

GRID = 64  # images of a sample grid
ROWS, STEPS = 8, 10  # strips of interpolated images, and images of each


def print_answer(plan: Plan) -> bool:
    """Prints the table, the best config and all paths; returns whether there is a best."""
    if not any(load.is_trial(folder) for folder in plan.folder.glob(TRIALS_PATTERN)):
        print("no trial has begun")
        return False
    table, text = tables.write(plan.folder)
    print(f"\n{text}\n")
    best = tables.best_of(table)
    if best is None:
        why = ""
        if (table["status"] == "failed").any():
            why = f"; what failed says why in its {ERROR_FILE}, in {plan.folder}"
        print(f"no trial has finished{why}")
        return False
    trial, value, epoch = best["trial"], best[METRIC], best["best_epoch"]
    lanes = read_lanes(plan.folder / trial)
    write_lanes(plan.folder / BEST_FILE, lanes)
    print(f"best: {trial}, {METRIC} {rounded(value)} at epoch {epoch}")
    settings = lanes[0].to_dict()
    if len(lanes) > 1:
        settings["seed"] = f"{lanes[0].seed} to {lanes[-1].seed}"
    print("  " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    written = {"table": "table.csv, table.md", "config": BEST_FILE}
    written |= {"trials": f"{TRIALS_PATTERN}/", "study": STUDY_FILE}
    if draw_samples(plan, trial):
        written["samples"] = "best.png, interpolation.png"
        written["checkpoint"] = f"{trial}/{CHECKPOINT_FILE}"
    print(f"\neverything is in {plan.location}:")
    for what, where in written.items():
        print(f"  {what:<11}{where}")
    return True


def draw_samples(plan: Plan, trial: str) -> bool:
    """Draws images of a trial's best generator, strips between two noises, and real images; returns
    whether it could: a cluster's driver may have no data, which its workers have."""
    folder = plan.folder
    try:
        plan.store.get(f"{trial}/{CHECKPOINT_FILE}")
        generator, config, _ = checkpoint.load_generator(folder / trial)
        images, columns = sample_grid(generator, config.latent_size, GRID)
        save_grid(images, folder / "best.png", columns)
        strips = interpolate(generator, config.latent_size, STEPS, ROWS, seed=0)
        save_grid(strips, folder / "interpolation.png", STEPS)
        source = config.source(plan.data_dir, torch.device("cpu"))
        real = load_split(source, "validation").images[:GRID]
        save_grid(to_unit_range(real), folder / "real.png")
    except (FileNotFoundError, ValueError) as error:
        print(f"no samples: {error}", file=sys.stderr)
        return False
    return True


def print_confirmed(plan: Plan) -> None:
    """Prints how the search's estimates held on fresh seeds."""
    print(f"\n{confirm.write(plan.folder)[1]}")


def write_page(plan: Plan) -> None:
    """Writes `report.html` and prints where it is."""
    from analysis import report  # only here: what draws charts need not delay the first trial

    plan.store.put()
    page = report.write([plan.location], plan.folder, page_only=True)
    print(f"\nreport: {plan.location}/{page.name}")


def write_model(plan: Plan) -> None:
    """Writes the best generator for others, with its card, and prints where it is."""
    trial, confirmed = best_of_search(plan.folder)
    plan.store.get(f"{trial.name}/{CHECKPOINT_FILE}")
    export_weights(trial, plan.folder / MODEL_FOLDER, confirmed)
    print(f"model:  {plan.location}/{MODEL_FOLDER}")


def report_command(plan: Plan) -> str:
    """The command that makes the report again."""
    return quoted("analysis.report", plan.location)
