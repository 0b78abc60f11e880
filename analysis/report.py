"""The report: `python -m analysis.report RUN ...` writes the answer of searches as one page that
opens without a network, as Markdown, and as JSON.

`read` gathers the answer as plain values, and what is shown with it; report.jinja says it, in the
forms that report.html.jinja and report.md.jinja give it. Scores of different protocols cannot be
compared: runs are grouped by protocol and objective, and each group has a best trial of its own.
"""

import argparse
import base64
import contextlib
import datetime
import functools
import io
import json
import re
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import vl_convert
from markupsafe import Markup, escape

from analysis import charts, claims, cli, confirm, tables
from analysis.load import (
    KNOWN,
    PROTOCOL,
    is_trial,
    load_trials,
    local,
    over_lanes,
    read_search,
    run_names,
    settings_of,
)
from dcgan.cli import Parser
from dcgan.files import replace
from dcgan.schema import (
    ANSWER_FILE,
    BEST_SAMPLES,
    CONFIRM_FOLDER,
    LABEL_COLUMNS,
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
    "joint": "All settings at once",
}
"""Searches by name, in the order in which they are read, and their titles."""
ABOUT = ("search", "num_trials", "sampler", "scheduler", "rungs", "device", "platform", "versions")
"""What of `search.json` the answer repeats."""
VERDICTS = ("supported", "contradicted", "undecided", "not testable")
SCHEMA = 1  # of the answer
FRAME_MS, LAST_MS, SHADES = 700, 2500, 16  # of an animation
HERE = Path(__file__).parent


class Table(NamedTuple):
    """A table in short texts, and its data for a CSV file."""

    name: str
    rows: pd.DataFrame
    data: pd.DataFrame


class Picture(NamedTuple):
    """An image file."""

    name: str
    caption: str
    content: bytes


class Run(NamedTuple):
    """A search, or a single run: its answer as plain values, and what is shown of it."""

    answer: dict[str, Any]
    frame: pd.DataFrame
    charts: dict[str, dict[str, Any]]
    tables: dict[str, Table]
    pictures: dict[str, Picture]
    command: str
    """What made it, if it is known."""

    @property
    def title(self) -> str:
        kind, name = self.answer["search"], self.answer["name"]
        title = PARTS.get(kind, kind or "Run")
        return title if kind == name else f"{title}: {name}"

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return re.sub(r"[^\w.-]+", "-", self.answer["name"]).strip("-")


class Report(NamedTuple):
    """All that is said: the whole answer, the runs by name, the claims of each group."""

    answer: dict[str, Any]
    runs: dict[str, Run]
    claims: list[Table]


# What is said


def read(paths: Sequence[str]) -> Report:
    """Reads runs, in the order of `PARTS`.

    Raises:
        FileNotFoundError, ValueError: as `analysis.load.load_trials`.
    """
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as copies:
        warnings.simplefilter("always")
        runs = [
            read_run(path, name, copies.enter_context(local(path, whole=True)))
            for path, name in zip(paths, run_names(paths), strict=True)
        ]
    order = {kind: number for number, kind in enumerate(PARTS)}
    runs.sort(key=lambda run: order.get(run.answer["search"], len(order)))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        alike = [run.answer[name] for name in ("protocol", "metric", "mode")]
        groups.setdefault(repr(alike), []).append(run)
    found = [read_group(members) for members in groups.values()]
    said = list(dict.fromkeys(str(warning.message) for warning in caught))
    return Report(
        answer={"schema": SCHEMA, "groups": [group for group, _ in found], "warnings": said},
        runs={run.answer["name"]: run for run in runs},
        claims=[claim_table(table, number) for number, (_, table) in enumerate(found, start=1)],
    )


def read_group(runs: Sequence[Run]) -> tuple[dict[str, Any], pd.DataFrame]:
    """The answer of runs of one protocol and objective, and the claims put to them."""
    frame = pd.concat([run.frame.assign(run=run.answer["name"]) for run in runs], ignore_index=True)
    shared = {name: runs[0].answer[name] for name in ("protocol", "metric", "mode")}
    best = tables.best_of(tables.ranking(frame, [], shared["metric"], shared["mode"]))
    first = [run.answer for run in runs if best is not None and run.answer["name"] == best["run"]]
    verdicts = claims.verdicts(frame)
    answer = shared | {
        "best": first[0]["best"] if first else None,
        "labels": labels_answer(frame, shared["metric"], shared["mode"]),
        "runs": [run.answer for run in runs],
        "verdicts": verdicts["verdict"].value_counts().to_dict(),
        "claims": cli.records(verdicts),
    }
    return answer, verdicts


def labels_answer(frame: pd.DataFrame, metric: str, mode: str) -> dict[str, Any] | None:
    """What nets that are given labels gain: their trials beside those without, and how well the
    best one makes what it is asked for, at its first epoch and at its best. None without such
    nets."""
    if "conditional" not in frame or "label_accuracy" not in frame:
        return None
    given = frame[frame["conditional"].ne("none") & frame["label_accuracy"].notna()]
    best = tables.best_of(tables.ranking(given, [], metric, mode)) if len(given) else None
    if best is None:
        return None
    rows = over_lanes(given[(given["run"] == best["run"]) & (given["trial"] == best["trial"])])
    shown = [name for name in ("epoch", metric, *LABEL_COLUMNS) if name in rows]
    epochs = rows[rows["epoch"].isin([1, best["best_epoch"]])][shown]
    levels = frame["conditional"].nunique() > 1
    compared = tables.compare(frame, "conditional", metric, mode) if levels else None
    return {
        "run": best["run"],
        "trial": best["trial"],
        "epochs": cli.records(epochs),
        "levels": [] if compared is None else cli.records(compared),
        "units": "" if compared is None else compared.attrs["units"],
    }


def read_run(path: str, name: str, folder: Path) -> Run:
    """Reads a run from its folder; `path` and `name` are what it is called."""
    search = read_search(folder)
    metric, mode = tables.goals_of(search)[0]
    frame = one_protocol(load_trials(folder), path)
    ranked = tables.rank(frame, search)
    axes = search.get("axes", {})
    done = (frame["status"] == "finished") & frame[metric].notna()
    known = [axis for axis in axes if done.any() and axis in frame and frame[axis].nunique() > 1]
    levels = {axis: tables.compare(frame, axis, metric, mode) for axis in known}
    ends = tables.boundary(frame, axes, metric, mode)
    counts = ranked["status"].value_counts()
    answer: dict[str, Any] = {"name": name, "path": path} | {key: search.get(key) for key in ABOUT}
    answer |= {
        "protocol": protocol_of(frame, search),
        "conditions": tables.conditions(frame),
        "metric": metric,
        "mode": mode,
        "axes": {axis: tables.axis_text(values) for axis, values in axes.items()},
        "trials": {status: int(counts[status]) for status in STATUSES if status in counts},
        "minutes": float(ranked["seconds"].sum()) / 60,
        "best": best_answer(name, ranked, frame, metric),
        "levels": {axis: cli.records(table) for axis, table in levels.items()},
        "beyond": cli.records(ends[ends["flag"]]),
        "confirmed": None,
        "sentences": [],
    }
    shown = {"trials": Table("trials", tables.as_text(ranked), ranked)}
    if levels:
        shown["levels"] = level_table(levels, metric)
    summary = None
    if (folder / CONFIRM_FOLDER / SEARCH_FILE).is_file():
        stage = confirm.load_confirm(folder)
        summary = confirm.summarize(stage)
        shown["confirm"] = Table("confirm", confirm.as_text(summary), summary)
        answer["confirmed"] = cli.records(summary)
        answer["sentences"] = confirm.sentences(stage, summary)
        for candidate in answer["confirmed"]:
            if answer["best"] and candidate["trial"] == answer["best"]["trial"]:
                answer["best"]["confirmed"] = candidate
    options = search.get("options", search.get("arguments"))
    return Run(
        answer=answer,
        frame=frame,
        charts=charts.specs(frame, search, summary),
        tables=shown,
        pictures=pictures_of(folder, answer["best"]),
        command=command(options) if options else "",
    )


def protocol_of(frame: pd.DataFrame, search: Mapping[str, Any]) -> dict[str, Any]:
    """What scores are scores of; what is planned where there is none yet."""
    known = frame.reindex(columns=PROTOCOL).dropna(subset="eval_split")
    if len(known):
        return dict(cli.records(known.head(1))[0])
    planned = search.get("base", {}) | search.get("protocol", {})
    return {name: planned.get(name) for name in PROTOCOL}


def one_protocol(frame: pd.DataFrame, path: str) -> pd.DataFrame:
    """Leaves out, with a warning, trials of another protocol than most trials of a run have."""
    known = frame.reindex(columns=["trial", *PROTOCOL]).groupby("trial").first()
    known = known.dropna(subset="eval_split")
    number = known.groupby(PROTOCOL, dropna=False).ngroup()
    if number.nunique() < 2:
        return frame
    other = number.index[number != number.mode().iloc[0]]
    message = f"{path}: trials of another protocol are left out: {', '.join(other)}"
    warnings.warn(message, stacklevel=2)
    return frame[~frame["trial"].isin(other)]


def best_answer(
    run: str, ranked: pd.DataFrame, frame: pd.DataFrame, metric: str
) -> dict[str, Any] | None:
    """The best trial of a run, with all its settings."""
    best = tables.best_of(ranked)
    if best is None:
        return None
    rows = frame[frame["trial"] == best["trial"]]
    settings = [name for name in settings_of(rows) if name not in ("seed", "lanes")]
    return {
        "run": run,
        "trial": best["trial"],
        "value": float(best[metric]),
        "epoch": int(best["best_epoch"]),
        "seeds": [int(seed) for seed in rows["seed"].dropna().unique()],
        "settings": cli.records(rows[settings].head(1))[0],
        "confirmed": None,
    }


def pictures_of(folder: Path, best: Mapping[str, Any] | None) -> dict[str, Picture]:
    """Real images, those of the best trial, between two noises, and over the epochs; as there
    are."""
    if best is None:
        return {}
    trial = best["trial"]
    samples = (folder if is_trial(folder) else folder / trial) / SAMPLES_FOLDER
    files = {
        "real": (folder / "real.png", "real images of the validation split"),
        "best": (samples / BEST_SAMPLES, f"{trial} at its best epoch"),
        "between": (
            folder / "interpolation.png",
            f"{trial} along great circles between two noises",
        ),
    }
    pictures = {
        name: Picture(f"{name}.png", caption, path.read_bytes())
        for name, (path, caption) in files.items()
        if path.is_file()
    }
    frames = sorted(samples.glob("epoch_*.png"))
    epochs = ", ".join(str(int(frame.stem.removeprefix("epoch_"))) for frame in frames)
    try:
        if len(frames) > 1:
            caption = f"{trial}, the same noise after epochs {epochs}"
            pictures["epochs"] = Picture("epochs.gif", caption, animation(frames))
    except OSError as error:
        message = f"an image of {samples} is damaged, so no animation is shown: {error}"
        warnings.warn(message, stacklevel=2)
    return pictures


def animation(frames: Sequence[Path]) -> bytes:
    """A GIF of images of one size, which dwells on the last.

    Raises:
        OSError: one of them is damaged.
    """
    from PIL import Image

    images = [Image.open(frame).convert("RGB").quantize(SHADES) for frame in frames]
    durations = [FRAME_MS] * (len(images) - 1) + [LAST_MS]
    more: dict[str, Any] = {"save_all": True, "append_images": images[1:], "loop": 0}
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", duration=durations, **more)
    return buffer.getvalue()


def level_table(levels: Mapping[str, pd.DataFrame], metric: str) -> Table:
    """The levels of all settings of a run, one below the other."""
    texts, data = [], []
    for setting, table in levels.items():
        text = pd.DataFrame({"setting": setting, "level": charts.level_names(table[setting])})
        text["finished"] = table["finished"].map(str) + " of " + table["trials"].map(str)
        text["n"] = table["n"].map(str) + f" ({table.attrs['units']})"
        for name, sign in (("mean", ""), ("difference", "+")):
            ends = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
            text[f"{metric}, {name}"] = [cli.spread(*end, sign=sign) for end in ends]
        text.loc[table["difference"] == 0, f"{metric}, difference"] = "best"
        for name in (name for name in tables.BESIDE if name in table):
            text[name] = [tables.cell(name, value) for value in table[name]]
        texts.append(text)
        data.append(table.rename(columns={setting: "level"}).assign(setting=setting))
    return Table("levels", pd.concat(texts), pd.concat(data))


def claim_table(verdicts: pd.DataFrame, number: int) -> Table:
    """The original study's claims, as a group's runs decide them, those that are decided first."""
    ends = zip(verdicts["effect"], verdicts["low"], verdicts["high"], strict=True)
    effects = pd.Series([cli.spread(*end, sign="+") for end in ends], index=verdicts.index)
    remarks = ("; " + verdicts["remark"]).where(verdicts["remark"] != "", "")
    text = verdicts[["part", "claim", "verdict", "expected"]].assign(
        effect=(effects + " " + verdicts["unit"]).where(effects != "", ""),
        n=(verdicts["n"].map(str) + " " + verdicts["of"]).where(verdicts["n"] > 0, ""),
        measure=verdicts["measured"] + remarks,
    )
    order = text["verdict"].map(VERDICTS.index).sort_values(kind="stable").index
    return Table(f"claims-{number}", text.loc[order], verdicts)


def command(options: Mapping[str, Any]) -> str:
    """The command line of a search, from what `search.json` keeps of it; where data lay is left to
    the reader."""
    words = ["python", "-m", "tune.run"]
    for name, value in options.items():
        if name == "data_dir" or value is None or value is False or value == []:
            continue
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    return shlex.join(words)


# How it is written


def fill(report: Report, form: str, filters: Mapping[str, Callable[..., Any]], **more: Any) -> str:
    """Fills report.jinja, whose parts the macros of a form draw."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        finalize=escape_markdown if form == "report.md.jinja" else None,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "anchor": lambda title: re.sub(r"\W+", "-", title).strip("-").lower(),
        "cell": lambda value, name: tables.cell(name, value),
        "spread": cli.spread,
        "pick": lambda pictures, names: [pictures[name] for name in names if name in pictures],
        **filters,
    }
    paths = [run.answer["path"] for run in report.runs.values()]
    commands = [run.command for run in report.runs.values() if run.command]
    commands.append(shlex.join(["python", "-m", "analysis.report", *paths]))
    template = environment.get_template("report.jinja")
    made = f"{datetime.datetime.now():%Y-%m-%d %H:%M}"
    context = {
        "form": form,
        "made": made,
        "commands": commands,
        "columns": KNOWN,
        "verdicts": VERDICTS,
    }
    return template.render(**context, report=report, groups=report.answer["groups"], **more)


def to_html(report: Report) -> str:
    """One page, which opens without a network: style, code, charts and pictures are all in it."""

    def uri(picture: Picture) -> str:
        kind = Path(picture.name).suffix.removeprefix(".")
        return f"data:image/{kind};base64,{base64.b64encode(picture.content).decode()}"

    filters = {"uri": uri, "wrap": lambda name: escape(name).replace("_", Markup("_<wbr>"))}
    return fill(report, "report.html.jinja", filters, script=Markup(vega()), brief=False)


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which takes seconds to make."""
    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]


def to_markdown(report: Report, *, brief: bool = False) -> tuple[str, dict[str, bytes]]:
    """Markdown, and the files of its figures and tables by path; if `brief`, of the answer
    alone."""
    files: dict[str, bytes] = {}

    def keep(path: str, content: bytes) -> str:
        files[path] = content
        return path

    filters: dict[str, Callable[..., Any]] = {
        "csv": lambda table, stem: keep(
            f"tables/{stem}{table.name}.csv", table.data.to_csv(index=False).encode()
        ),
        "png": lambda spec, name: keep(f"figures/{name}.png", charts.png_of(spec)),
        "file": lambda picture, stem: keep(f"figures/{stem}-{picture.name}", picture.content),
        "lines": lambda text: [Markup(line) for line in text.splitlines()],
        "squash": lambda text: Markup(" ".join(text.split())),
    }
    text = fill(report, "report.md.jinja", filters, script="", brief=brief)
    return re.sub(r"\n\s*\n", "\n\n", text).strip() + "\n", files


def escape_markdown(value: Any) -> Any:
    """A value that cannot be taken for Markdown's links, tables, or HTML."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).splitlines()).replace("&", "&amp;").replace("<", "&lt;")
    return Markup(text.replace("|", "\\|").replace("](", "]\\("))


def write(paths: Sequence[str], out: Path, *, page_only: bool = False) -> Path:
    """Writes the report of runs to a folder (see `write_files`); returns the page's path.

    Raises:
        FileNotFoundError, ValueError: as `analysis.load.load_trials`.
    """
    return write_files(read(paths), out, page_only=page_only)


def write_files(report: Report, out: Path, *, page_only: bool = False) -> Path:
    """Writes `report.html` and `answer.json` and, unless `page_only`, `report.md` with `figures/`
    and `tables/`, which takes longer."""
    files = {ANSWER_FILE: (json.dumps(report.answer, indent=1) + "\n").encode()}
    if not page_only:
        text, shown = to_markdown(report)
        files |= {"report.md": text.encode(), **shown}
    files[REPORT_FILE] = to_html(report).encode()
    for path, content in files.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        replace(out / path, content)
    return out / REPORT_FILE


def main() -> None:
    parser = Parser(
        prog="python -m analysis.report",
        description="Write what searches found as a page that opens without a network "
        "(report.html), as Markdown (report.md, with figures/ and tables/), and for programs "
        "(answer.json). Searches may still be running.",
    )
    parser.add_argument("run", nargs="+", help=f"{cli.RUN_HELP}; or several")
    what = "folder to write (default: the search's own; of several searches, report)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=what)
    cli.run(parser, show)


def show(args: argparse.Namespace) -> tuple[str, Any]:
    """The text of the command's answer, and its data."""
    report = read(args.run)
    text, _ = to_markdown(report, brief=True)
    alone = len(args.run) == 1 and "://" not in args.run[0]
    out = args.out or Path(args.run[0] if alone else "report")
    try:
        page = write_files(report, out)
    except OSError as error:
        print(json.dumps(report.answer, indent=2) if args.json else text)
        raise OSError(
            f"no report is written to {out} ({error.strerror}); name another folder by --out"
        ) from error
    return f"{text}\n{page}", report.answer


if __name__ == "__main__":
    main()
