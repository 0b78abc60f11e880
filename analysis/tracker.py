"""What `tune.track` logs to Weights & Biases: each trial is a run, with a step an epoch, and the
search one more, with the answer.

`RUN/wandb.json` remembers how far each run was logged, so that a resumed search goes on in the same
runs. Offline, a run is written when its trial has ended (or the search was interrupted), in one go.

Of a trial that trains several lanes, the mean over lanes is logged, with the standard deviation of
the metric.
"""

import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from analysis import charts
from analysis.importance import importance
from analysis.load import STD, load_trials, over_lanes, settings_of, study_statuses
from dcgan.files import write_json
from dcgan.schema import (
    ANSWER_FILE,
    BEST_FILE,
    BEST_SAMPLES,
    CHECKPOINT_FILE,
    COLUMNS,
    CONFIRM_FOLDER,
    METRIC,
    PARAMS_FILE,
    REPORT_FILE,
    ROWS_FILE,
    SAMPLES_FOLDER,
    SEARCH_FILE,
    STATUS_OF_STATE,
    STUDY_FILE,
    TABLE_FILE,
    Row,
    samples_name,
)
from dcgan.store import Store, stamp

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

RECORD = "wandb.json"
PROJECT = "dcgan-tune"  # unless WANDB_PROJECT names another
LOCKED_SECONDS = 20.0  # that the driver may hold the study's file
INIT_SECONDS = 20.0  # after which an unreachable server is given up
ANSWERS = (TABLE_FILE, "table.md", BEST_FILE, "best.png", "confirm.csv", "confirm.md")
"""What a search found."""
REPORTS = (REPORT_FILE, ANSWER_FILE, "report.md")
"""The same, but for the time at which they were made."""
BEST = 5  # trials whose samples are shown side by side
CHARTS = {
    "Quality": (METRIC, "sample_coverage", "sharpness", "path_length"),
    "Training": ("generator_loss", "discriminator_loss", "d_real", "d_fake"),
    "Cost": ("images_per_second", "peak_memory_bytes"),
}
"""Columns in the dashboard's line charts."""
ABOUT = (
    "search",
    "axes",
    "base",
    "sampler",
    "scheduler",
    "num_trials",
    "protocol",
    "device",
    "versions",
)
"""What of `search.json` is the config of the search's own run."""


class UnreachableError(Exception):
    """W&B does not take a run: no network, no such key, no such project."""


class Tracker:
    """Logs to W&B what is new in a search's folder, or in a storage, of which it has a copy of its
    own.

    Args:
        store: the search's.
        mode: `online` or `offline`.

    Raises:
        FileNotFoundError: there is no search.
    """

    def __init__(self, store: Store, mode: str) -> None:
        folder = store.folder
        self.store, self.folder, self.mode = store, folder, mode
        store.clear()
        store.get_small()
        if not (folder / SEARCH_FILE).is_file():
            raise FileNotFoundError(f"no search at {store.location}: it has no {SEARCH_FILE}")
        self.search = json.loads((folder / SEARCH_FILE).read_text(encoding="utf-8"))
        self.file = folder / RECORD
        self.record: dict[str, Any] = {"id": secrets.token_hex(4), "runs": [], "answers": []}
        if self.file.is_file():
            self.record = json.loads(self.file.read_text(encoding="utf-8"))
        # epochs and status that were logged, by trial; an earlier version's word for it was "told"
        self.logged = self.record.setdefault("logged", self.record.pop("told", {}))
        self.open: dict[str, Any] = {}
        self.seen: dict[str, tuple[Any, str]] = {}
        for run in (folder / "wandb").glob("offline-run-*"):
            if run.name not in self.record["runs"]:
                shutil.rmtree(run)  # of a process that was killed as it wrote: it is logged again

    def update(self, *, last: bool) -> None:
        """Logs what is new: of trials that have ended, or of all when online or for the last
        time."""
        self.store.get_small()
        self.store.get(STUDY_FILE)
        for trial, status in self.trials():
            ended = status in STATUS_OF_STATE.values()
            if ended or last or self.mode == "online":
                self.log_new(trial, status, close=ended or last)

    def trials(self) -> Iterator[tuple[Path, str]]:
        """Folder and status of each trial that has begun, of the search and of its confirm
        stage."""
        for stage in (self.folder, self.folder / CONFIRM_FOLDER):
            if not (stage / STUDY_FILE).is_file():
                continue
            for name, status in study_statuses(stage / STUDY_FILE, LOCKED_SECONDS).items():
                if (stage / name / PARAMS_FILE).is_file():
                    yield stage / name, status

    def log_new(self, trial: Path, status: str, *, close: bool) -> None:
        """Logs a trial's new epochs and its status, if there is anything new."""
        name, file = str(trial.relative_to(self.folder)), trial / ROWS_FILE
        now = stamp(file) if file.is_file() else None, status
        if self.seen.get(name) == now and name not in self.open:
            return
        self.seen[name] = now
        known = self.logged.get(name, {"epochs": 0, "status": ""})
        ended_now = status in STATUS_OF_STATE.values() and status != known["status"]
        frame = over_lanes(load_trials(trial))
        rows = loggable(frame)
        new = [row for row in rows if row["epoch"] > known["epochs"]]
        if new or ended_now:
            self.log(trial, config_of(frame), rows, new, status)
            self.logged[name] = {"epochs": rows[-1]["epoch"] if rows else 0, "status": status}
        if close and name in self.open:
            self.open.pop(name).finish()
        if new or ended_now:
            self.save()

    def log(
        self, trial: Path, config: dict[str, Any], rows: list[Row], new: list[Row], status: str
    ) -> None:
        """Logs those of a trial's rows that are new, and what all of them say."""
        name = str(trial.relative_to(self.folder))
        kind = "trial" if trial.parent == self.folder else "confirm"
        if name not in self.open:
            self.open[name] = self.begin(name, kind, config)
        run = self.open[name]
        for row in new:
            images = trial / SAMPLES_FOLDER / samples_name(row["epoch"])
            shown = {"samples": picture(images)} if images.is_file() else {}
            run.log(row | shown, step=row["epoch"])
        if known := [row for row in rows if METRIC in row]:
            best = min(known, key=lambda row: row[METRIC])
            run.summary.update({f"best/{column}": value for column, value in best.items()})
        if (trial / SAMPLES_FOLDER / BEST_SAMPLES).is_file():
            run.summary["best/samples"] = picture(trial / SAMPLES_FOLDER / BEST_SAMPLES)
        run.summary["status"] = status
        run.tags = (self.search["search"], kind, status)

    def begin(self, name: str, kind: str, config: dict[str, Any]) -> Any:
        """A new W&B run, or the one of that name begun before.

        Raises:
            UnreachableError: online, W&B does not take it.
        """
        import wandb

        mode: Any = self.mode
        settings = wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            save_code=False,
            disable_git=True,
            init_timeout=INIT_SECONDS,
        )
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=self.folder,
                mode=mode,
                settings=settings,
                id=f"{self.record['id']}-{name.replace('/', '-')}",
                resume="allow",
                reinit="create_new",
                name=f"{self.folder.name}/{name}",
                group=self.folder.name,
                job_type=kind,
                config=config,
            )
        except Exception as error:  # of many classes
            if self.mode == "online":
                raise UnreachableError(repr(error)) from error
            raise
        run.define_metric("*", step_metric="epoch")
        if self.mode == "offline":
            self.record["runs"].append(Path(run.dir).parent.name)
        return run

    def save(self) -> None:
        """Writes the record, after what it records."""
        write_json(self.file, self.record)
        self.store.put(self.folder / "wandb", self.file)

    def summarize(self) -> None:
        """Logs one more run, of the search: its table, the samples of the best, importances, the
        answer and the best G."""
        import wandb

        content = b"".join(path.read_bytes() for path in self.files(ANSWERS))
        answer = hashlib.sha256(content).hexdigest()
        table = pd.read_csv(self.folder / TABLE_FILE)
        ranked = table.dropna(subset="rank").to_dict("records")
        if not ranked or answer in self.record["answers"]:
            return
        best = self.folder / ranked[0]["trial"]
        run = self.begin("summary", "search", {name: self.search[name] for name in ABOUT})
        run.log(self.charts(table, ranked), step=len(self.record["answers"]))
        self.store.get(f"{best.name}/{CHECKPOINT_FILE}")
        artifacts = {"model": [best / CHECKPOINT_FILE], "answer": self.files(ANSWERS + REPORTS)}
        for kind, paths in artifacts.items():
            artifact = wandb.Artifact(f"{self.folder.name}-{kind}", type=kind)
            for path in paths:
                artifact.add_file(str(path))
            run.log_artifact(artifact)
        run.summary.update({f"best/{METRIC}": ranked[0][METRIC], "best/trial": best.name})
        run.finish()
        if self.mode == "online" and "dashboard" not in self.record:
            view = dashboard(run.entity, run.project, self.folder.name, self.search["axes"])
            self.record["dashboard"] = view.save().url
        self.record["answers"].append(answer)
        self.save()

    def charts(self, table: pd.DataFrame, ranked: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
        """What the search's own run shows."""
        import wandb

        cells = table.astype(object).where(table.notna(), None)
        data: list[Any] = cells.to_numpy().tolist()
        names: list[str | int] = [str(name) for name in table]
        trials = wandb.Table(columns=names, data=data, allow_mixed_types=True)
        folders = [self.folder / row["trial"] for row in ranked[:BEST]]
        images = {folder.name: folder / SAMPLES_FOLDER / BEST_SAMPLES for folder in folders}
        best = [picture(path, name) for name, path in images.items() if path.is_file()]
        shown: dict[str, Any] = {"trials": trials, "best trials": best}
        importances = importance(self.folder)[["setting", "importance"]].dropna()
        if len(importances):
            rows: list[Any] = importances.to_numpy().tolist()
            bars = wandb.Table(columns=["setting", "importance"], data=rows)
            title = "Importance of settings (PED-ANOVA)"
            shown["importance"] = wandb.plot.bar(bars, "setting", "importance", title=title)
        drawn = charts.specs(load_trials(self.folder), self.search)
        if "settings" in drawn:
            shown["settings"] = wandb.Image(
                Image.open(io.BytesIO(charts.png_of(drawn["settings"])))
            )
        return shown

    def files(self, names: Sequence[str]) -> list[Path]:
        """Those of these files that the search has."""
        return [self.folder / name for name in names if (self.folder / name).is_file()]


def loggable(frame: pd.DataFrame) -> list[Row]:
    """What of each epoch can be a line in a chart: the numbers that are known."""
    names = [name for name in (*COLUMNS, STD) if name in frame]
    rows = frame[frame["epoch"].notna()][names].to_dict("records")
    return [
        {str(k): v for k, v in row.items() if isinstance(v, int | float) and pd.notna(v)}
        for row in rows
    ]


def config_of(frame: pd.DataFrame) -> dict[str, Any]:
    """A trial's settings, those of its first lane, and how many seeds it trains."""
    (first,) = frame[settings_of(frame)].head(1).to_dict("records")
    config = {str(name): value for name, value in first.items()}
    return config | {"replicas": config.pop("lanes")}


def picture(path: Path, caption: str | None = None) -> Any:
    """An image file as W&B takes it."""
    import wandb

    return wandb.Image(str(path), caption=caption)


def dashboard(entity: str, project: str, group: str, axes: Mapping[str, Any]) -> "Workspace":
    """A W&B workspace of one search's runs: quality, samples, settings, training and cost, each
    over epochs.

    Args:
        axes: those of `search.json`.
    """
    from wandb_workspaces.reports.v2 import interface as panels
    from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace

    column = panels.ParallelCoordinatesPlotColumn
    logarithmic = {
        name: isinstance(axis, Mapping) and bool(axis["attributes"].get("log"))
        for name, axis in axes.items()  # an earlier version's are texts
    }
    columns = [column(panels.Config(name), log=log) for name, log in logarithmic.items()]
    columns.append(column(panels.SummaryMetric(f"best/{METRIC}")))
    sections: dict[str, list[Any]] = {
        title: [panels.LinePlot(x="epoch", y=[name]) for name in names]
        for title, names in CHARTS.items()
    }
    sections["Samples"] = [panels.MediaBrowser(media_keys=["samples"])]
    sections["Settings"] = [panels.ParallelCoordinatesPlot(columns=columns)]
    return Workspace(
        entity=entity,
        project=project,
        name=group,
        sections=[
            Section(name=name, panels=panel, is_open=True) for name, panel in sections.items()
        ],
        runset_settings=RunsetSettings(filters=f"Metric('Group') == '{group}'"),
    )


def dashboard_url(folder: Path) -> str | None:
    """Where a search's dashboard is, if it has one."""
    file = folder / RECORD
    if not file.is_file():
        return None
    url: str | None = json.loads(file.read_text(encoding="utf-8")).get("dashboard")
    return url
