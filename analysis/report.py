"""The report: `python -m analysis.report RUN [RUN…]` writes one page that needs nothing else, and
Markdown.

A report is a list of sections of plain blocks (text, tables, charts, pictures); two functions write
it out. What it says is computed from the runs' files, and it says what is missing: a search that
still runs, trials that failed, files left out.
"""

import argparse
import contextlib
import dataclasses
import io
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import claims, cli, confirm, figures, tables
from analysis.load import is_trial, load_trials, local, over_lanes, read_search, run_names
from analysis.page import Block, Code, Picture, Section, Table, to_html, to_markdown
from dcgan.schema import (
    BEST_SAMPLES,
    COLUMNS,
    CONFIRM_FOLDER,
    METRIC,
    REPORT_FILE,
    SAMPLES_FOLDER,
    SEARCH_FILE,
    STATUSES,
)

PARTS = {
    "baseline": "Baseline",
    "architecture": "Architecture",
    "hparams": "Hyperparameters",
    "precision": "Precision",
    "joint": "All together",
}
"""Searches by name, in the order in which they are read, and their titles."""
SHOWN_TRIALS = 3
FRAME_MS, LAST_MS, SHADES = 700, 2500, 16
BESIDE = ("sharpness", "path_length", "sample_coverage", "seconds_train", "images_per_second")
"""Columns whose means stand beside the metric's, level by level."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A search as it is read."""

    path: str
    name: str
    search: dict[str, Any]
    frame: pd.DataFrame
    """One row a trial and epoch, over its lanes."""
    by_lane: pd.DataFrame
    """One row a trial, lane and epoch."""
    ranked: pd.DataFrame
    """One row a trial, best first (see `analysis.tables.rank`)."""
    charts: list[figures.Chart]
    pictures: list[Picture]
    confirmed: pd.DataFrame | None
    """One row a candidate of the confirm stage, if there is one."""
    sentences: list[str]
    """What the confirm stage says."""

    @property
    def kind(self) -> str:
        return str(self.search.get("search", self.name))

    @property
    def best(self) -> pd.Series | None:
        known = self.ranked.dropna(subset=METRIC)
        return None if known.empty else known.iloc[0]


def read(paths: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs, in the order of `PARTS`, and what was left out of them.

    Raises:
        FileNotFoundError, ValueError: as `analysis.load.load_trials`.
    """
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as copies:
        warnings.simplefilter("always")
        folders = [copies.enter_context(local(path, whole=True)) for path in paths]
        runs = [
            _read_run(path, name, folder)
            for path, name, folder in zip(paths, run_names(paths), folders, strict=True)
        ]
    kinds = list(PARTS)
    runs.sort(key=lambda run: kinds.index(run.kind) if run.kind in kinds else len(kinds))
    return runs, list(dict.fromkeys(str(warning.message) for warning in caught))


def _read_run(path: str, name: str, folder: Path) -> Run:
    search, by_lane = read_search(folder), load_trials(folder)
    frame = over_lanes(by_lane)
    ranked = tables.rank(frame, search)
    confirmed = None
    if (folder / CONFIRM_FOLDER / SEARCH_FILE).is_file():
        confirmed = confirm.summarize(confirm.load_confirm(folder))
    return Run(
        path=path,
        name=name,
        search=search,
        frame=frame,
        by_lane=by_lane,
        ranked=ranked,
        charts=[
            dataclasses.replace(chart, name=f"{name}-{chart.name}")
            for chart in figures.charts(frame, folder, search)
        ],
        pictures=_pictures(folder, name, ranked),
        confirmed=confirmed,
        sentences=[] if confirmed is None else confirm.verdict(confirmed),
    )


def _pictures(folder: Path, name: str, ranked: pd.DataFrame) -> list[Picture]:
    """Real digits, those of the best trials, interpolations of the best, and what it drew over the
    epochs; as there are."""
    best = list(ranked.dropna(subset=METRIC)["trial"][:SHOWN_TRIALS])
    alone = is_trial(folder)  # a single run is its own trial
    trials = {trial: folder if alone else folder / trial for trial in best}
    files = {"real": (folder / "real.png", "real digits of the validation split")}
    for rank, (trial, path) in enumerate(trials.items(), start=1):
        caption = f"{trial}, rank {rank}, its best epoch, from fixed noise"
        files[f"{trial}-best"] = (path / SAMPLES_FOLDER / BEST_SAMPLES, caption)
    for trial in best[:1]:
        caption = f"{trial} along great circles between two noises, from left to right"
        files["interpolation"] = (folder / "interpolation.png", caption)
    pictures = [
        Picture(name=f"{name}-{what}.png", caption=f"{name}: {caption}", content=path.read_bytes())
        for what, (path, caption) in files.items()
        if path.is_file()
    ]
    for trial in best[:1]:
        if len(frames := sorted((trials[trial] / SAMPLES_FOLDER).glob("epoch_*.png"))) > 1:
            epochs = ", ".join(str(int(frame.stem.removeprefix("epoch_"))) for frame in frames)
            caption = f"{name}: {trial} over training, the same noise: epochs {epochs}"
            try:
                pictures.append(
                    Picture(
                        name=f"{name}-{trial}-epochs.gif",
                        caption=caption,
                        content=animation(frames),
                    )
                )
            except OSError as error:
                warnings.warn(
                    f"an image of {trials[trial] / SAMPLES_FOLDER} is damaged, so no animation: {error}",
                    stacklevel=2,
                )
    return pictures


def animation(frames: Sequence[Path]) -> bytes:
    """A GIF of images of one size, which dwells on the last.

    Raises:
        OSError: one of them is damaged.
    """
    from PIL import Image

    images = [Image.open(frame).convert("RGB").quantize(SHADES) for frame in frames]
    durations = [FRAME_MS] * (len(images) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def compose(runs: Sequence[Run], left_out: Sequence[str]) -> list[Section]:
    """The whole report."""
    verdicts = claims.judge(
        pd.concat([run.by_lane.assign(run=run.name) for run in runs], ignore_index=True)
    )
    return [
        _summary(runs, verdicts),
        *(_search_section(run) for run in runs),
        _claims(verdicts),
        *(
            [Section(title="Pictures", blocks=shown)]
            if (shown := [p for run in runs for p in run.pictures])
            else []
        ),
        _method(runs, left_out),
        _reproduce(runs),
    ]


def _summary(runs: Sequence[Run], verdicts: pd.DataFrame) -> Section:
    ranked = pd.concat([run.ranked.assign(run=run.name) for run in runs], ignore_index=True)
    blocks: list[Block] = [
        f"Searches: {', '.join(run.name for run in runs)}. Trials: {len(ranked)} ({_counts(ranked['status'])}), "
        f"{ranked['seconds'].sum() / 60:,.0f} minutes of training and evaluation in all."
    ]
    rows = [_best_row(run) for run in runs if run.best is not None]
    if not rows:
        return Section(title="Summary", blocks=[*blocks, "No trial has finished an epoch yet."])
    order = sorted((run for run in runs if run.best is not None), key=lambda run: run.best[METRIC])  # type: ignore[index]
    first = order[0]
    assert first.best is not None
    picked = "It was picked for this very value, which flatters it, and was not trained anew on fresh seeds."
    what = f"The best is {first.best['trial']} of {first.name}, {METRIC} {first.best[METRIC]:.2f}: {_settings(first, first.best)}."
    blocks.append(f"{what} {' '.join(first.sentences) or picked}")
    counted = verdicts["verdict"].value_counts()
    counts = ", ".join(
        f"{counted.get(verdict, 0)} {verdict}"
        for verdict in ("supported", "contradicted", "undecided")
    )
    blocks.append(
        f"Of the original study's {len(verdicts)} claims that can be measured: {counts} (see Claims)."
    )
    caption = f"The best trial of each search. {METRIC}: {COLUMNS[METRIC]}."
    blocks.append(Table(name="best", caption=caption, rows=pd.DataFrame(rows)))
    blocks += [p for p in first.pictures if p.name.endswith(f"{first.best['trial']}-best.png")]
    return Section(title="Summary", blocks=blocks)


def _best_row(run: Run) -> dict[str, Any]:
    best = run.best
    assert best is not None
    row = {
        "search": run.name,
        "trials": str(len(run.ranked)),
        "best": best["trial"],
        METRIC: f"{best[METRIC]:.2f}",
    }
    row |= {"settings": _settings(run, best), "best epoch": f"{best['best_epoch']}"}
    confirmed = (
        run.confirmed[run.confirmed["trial"] == best["trial"]]
        if run.confirmed is not None
        else pd.DataFrame()
    )
    for name in ("validation", "test"):
        values = [
            cli.spread(c[name], c[f"{name}_low"], c[f"{name}_high"])
            for _, c in confirmed.iterrows()
        ]
        row[f"confirmed, {name}"] = next(iter(values), "")
    return row


def _search_section(run: Run) -> Section:
    """What one search found."""
    axes = run.search.get("axes") or {}
    planned = run.search.get("num_trials", len(run.ranked))
    texts = [f"{name} ({tables.axis_text(axis)})" for name, axis in axes.items()]
    varies = "; ".join(texts) or "nothing"
    blocks: list[Block] = [
        f"Varies {varies}. Sampler: {run.search.get('sampler', 'none')}; scheduler: {run.search.get('scheduler', 'none')}. "
        f"{len(run.ranked)} of {planned} trials: {_counts(run.ranked['status'])}."
    ]
    if len(run.ranked) < planned or (run.ranked["status"] == "unfinished").any():
        blocks.append(
            "This search is still running, or was interrupted: what follows is of the trials so far."
        )
    if run.confirmed is not None:
        blocks += run.sentences
    known = run.frame[METRIC].notna().any()
    for axis in axes if known else ():
        caption = f"By {axis}: mean of the best {METRIC} over finished trials and seeds, with its 95 % bootstrap interval; the "
        caption += "difference from the best level; Cliff's delta against the other levels; and means of other columns."
        blocks.append(Table(name=f"{run.name}-{axis}", caption=caption, rows=_levels(run, axis)))
    if known:
        ends = tables.boundary(run.frame, axes)
        for _, row in ends[ends["flag"].fillna(False)].iterrows():
            blocks.append(
                f"The best trials lie at the {row['end']} end of {row['axis']} ({row['low']:g} to {row['high']:g}; "
                f"{row['share']:.0%} of the best {row['n']}): better ones may lie beyond."
            )
    blocks += run.charts
    caption = "All trials, best first. " + (tables.conditions(run.frame))
    blocks.append(Table(name=run.name, caption=caption, rows=tables.as_text(run.ranked)))
    title = PARTS.get(run.kind, run.kind.capitalize())
    return Section(title=title if run.name == run.kind else f"{title}: {run.name}", blocks=blocks)


def _levels(run: Run, axis: str) -> pd.DataFrame:
    """The comparison of an axis's levels, as texts."""
    table = tables.compare(run.by_lane, axis)
    counts = table[[axis, "trials", "finished", "stopped", "failed", "n"]].astype(str)
    text = counts.fillna("unknown")  # settings that could not be read
    for name, sign in (("mean", ""), ("difference", "+")):
        ends = table[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        text[f"{METRIC}, {name}"] = [
            cli.spread(value, low, high, sign) for value, low, high in ends
        ]
    text.loc[table["difference"] == 0, f"{METRIC}, difference"] = "best"
    text["Cliff's delta"] = table["cliffs_delta"].map("{:+.2f}".format).replace("+nan", "")
    for name in BESIDE:
        text[name] = [
            f"{value:.3g}" if pd.notna(value) else ""
            for value in tables.compare(run.by_lane, axis, name)["mean"]
        ]
    return text


def _claims(verdicts: pd.DataFrame) -> Section:
    rows = verdicts[["effect", "low", "high", "unit"]].itertuples(index=False)
    effects = [
        f"{cli.spread(effect, low, high, '+')} {unit}" if pd.notna(effect) else ""
        for effect, low, high, unit in rows
    ]
    text = verdicts[["part", "claim", "verdict"]].assign(
        effect=effects, expected=verdicts["expected"]
    )
    text["n"] = [
        f"{n} {of}" if n else "" for n, of in zip(verdicts["n"], verdicts["of"], strict=True)
    ]
    text = text.assign(measured=verdicts["measured"], remark=verdicts["remark"])
    how = (
        "Each sentence of the original study that can be measured, what measures it in these runs, and what they say. Settings "
        "are compared with others that differ in nothing else, seed by seed; intervals are of 95 % (Student's t). A claim is "
        "supported if the interval lies wholly within what it means, contradicted if wholly outside, else undecided."
    )
    table = Table(name="claims", caption="Claims of the original study.", rows=text.fillna(""))
    return Section(title="Claims", blocks=[how, table])


def _method(runs: Sequence[Run], left_out: Sequence[str]) -> Section:
    rows = []
    for run in runs:
        versions = ", ".join(
            f"{name} {version}" for name, version in run.search.get("versions", {}).items()
        )
        settings = run.frame.iloc[0]
        row = {"search": run.name} | {
            name: str(settings.get(name, "")) for name in ("dataset", "epochs", "lanes", "seed")
        }
        row |= {name: str(run.search.get(name, "")) for name in ("device", "platform")}
        rows.append(row | {"versions": versions, "seconds": f"{run.ranked['seconds'].sum():,.0f}"})
    protocols = dict.fromkeys(tables.conditions(run.frame) for run in runs)
    glossary = pd.DataFrame(COLUMNS.items(), columns=["column", "meaning"])
    blocks: list[Block] = [
        "A trial is judged by its best epoch on the validation split, which flatters all alike; the confirm stage trains anew "
        "on fresh seeds and judges on test. seed is the first of a trial's seeds, lanes their number.",
        *protocols,
        Table(
            name="conditions",
            caption="Hardware, versions, seeds and budget.",
            rows=pd.DataFrame(rows),
        ),
        Table(name="columns", caption="What the columns mean.", rows=glossary),
    ]
    return Section(
        title="Method", blocks=[*blocks, *(f"Left out: {warning}" for warning in left_out)]
    )


def _reproduce(runs: Sequence[Run]) -> Section:
    asked = [run.search.get("options", run.search.get("arguments")) for run in runs]
    commands = [command(options) for options in asked if options]  # a single run has none
    again = f"python -m analysis.report {' '.join(run.path for run in runs)}"
    source = (
        "from pathlib import Path\nfrom analysis import draw, figures\nfrom analysis.load import load_trials, read_search\n\n"
        f'run = Path("{runs[0].path}")\nfor chart in figures.charts(load_trials(run), run, read_search(run)):\n'
        '    draw.to_png(chart, Path(f"{chart.name}.png"))'
    )
    blocks: list[Block] = ["The searches:", Code(text="\n".join(commands))] if commands else []
    blocks += ["This report:", Code(text=again), "Its figures, each by itself:", Code(text=source)]
    return Section(title="Reproduce", blocks=blocks)


def command(options: dict[str, Any]) -> str:
    """The command line of a search, from what `search.json` keeps of it; where data lay is left to
    the reader."""
    given = {
        name: value
        for name, value in options.items()
        if value is not None and value is not False and value != [] and name != "data_dir"
    }
    words = ["python", "-m", "tune.run"]
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    return shlex.join(words)


def _settings(run: Run, trial: pd.Series) -> str:
    """A trial's own settings, as a person says them."""
    known = {name: trial[name] for name in run.search.get("axes", {}) if name in trial}
    texts = [
        f"{name} {v:.3g}" if isinstance(v, float) else f"{name} {v}" for name, v in known.items()
    ]
    return ", ".join(texts) or ("the baseline" if run.kind == "baseline" else "the only setting")


def _counts(statuses: pd.Series) -> str:
    counted = statuses.value_counts()
    return ", ".join(f"{counted[status]} {status}" for status in STATUSES if status in counted)


def write(paths: Sequence[str], out: Path, *, page_only: bool = False) -> Path:
    """Writes `report.html` to a folder and, unless `page_only`, the same as `report.md`, `figures/`
    and `tables/`, which takes longer; returns the page's path.

    Raises:
        FileNotFoundError, ValueError: as `analysis.load.load_trials`.
    """
    sections = compose(*read(paths))
    title = f"DCGAN study: {', '.join(run_names(paths))}"
    out.mkdir(parents=True, exist_ok=True)
    if not page_only:
        text = to_markdown(sections, title, out)
        (out / "report.md").write_text(text, encoding="utf-8")
    page = out / REPORT_FILE
    page.write_text(to_html(sections, title), encoding="utf-8")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description="Write what searches found as one page that opens without a network (report.html), and as Markdown "
        "(report.md, with figures/ and tables/). Searches may still be running.",
    )
    parser.add_argument("run", nargs="+", help="the folder of a search, or its URI (s3://…)")
    what = "folder to write (default: the search's own; of several searches, report)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=what)
    cli.run(parser, lambda args: str(write(args.run, args.out or default_out(args.run))))


def default_out(runs: Sequence[str]) -> Path:
    """A single search's own folder, else `report`."""
    return Path(runs[0]) if len(runs) == 1 and "://" not in runs[0] else Path("report")


if __name__ == "__main__":
    main()
