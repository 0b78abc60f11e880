"""What `tune.track` logs to Weights & Biases: each trial is a run, with a step an epoch, and the
search one more, with the answer.

`RUN/wandb.json` remembers how far each run was logged when it was closed, so that a resumed search
goes on in the same runs. Of a run that a killed tracker had open online, W&B's server says what it
has; offline it is left alone, since only the server knows. Offline, a run is written when its trial
has ended (or the search was interrupted), in one go.

Of a trial that trains several lanes, the mean over lanes is logged, with the standard deviation of
the metric.
"""

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from analysis.load import FILES, KNOWN, STD, load_trials, over_lanes, settings_of, study_statuses
from dcgan.cli import one_line
from dcgan.files import write_json
from dcgan.schema import (
    ANSWER_FILE,
    BEST_FILE,
    BEST_SAMPLES,
    CARD_FILE,
    CHECKPOINT_FILE,
    CONFIRM_FOLDER,
    METRIC,
    MODEL_FOLDER,
    PARAMS_FILE,
    REPORT_FILE,
    ROWS_FILE,
    SAMPLES_FOLDER,
    SEARCH_FILE,
    STATUS_OF_STATE,
    STUDY_FILE,
    TABLE_FILE,
    WEIGHTS_FILE,
    Row,
    samples_name,
)
from dcgan.store import Store, stamp

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

RECORD = "wandb.json"
PROJECT = "dcgan-tune"  # unless WANDB_PROJECT names another
LOCKED_SECONDS = 20.0  # that the driver may hold the study's file
ARTIFACT_SECONDS = 120  # that an artifact may take
INIT_SECONDS = 20.0  # after which an unreachable server is given up
ANSWERS = (TABLE_FILE, "table.md", BEST_FILE, "best.png", "confirm.csv", "confirm.md")
"""What a search found."""
REPORTS = (REPORT_FILE, ANSWER_FILE, "report.md")
"""The same, but for the time at which they were made."""
MODEL = tuple(f"{MODEL_FOLDER}/{name}" for name in (WEIGHTS_FILE, PARAMS_FILE, CARD_FILE))
"""The best generator, for others."""
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


OF_A_RUN = (
    *("RUN", "NAME", "NOTES", "TAGS", "JOB_TYPE", "SWEEP", "RESUME", "FORK", "PROGRAM", "LAUNCH"),
    *("AGENT", "DIR", "SERVICE", "_SERVICE"),
)
"""How W&B's variables begin that say which run a process is, and how it runs; ours say themselves
what they are, and those of another job are not meant for them."""
NAME_LENGTH = 128  # of what W&B takes
LOST = re.compile(r'"msg":"(filestream: fatal error|runfiles: Create)|"task":"DefaultUploadTask{')
"""Marks the errors in a run's log that say what W&B's service gave up uploading."""
ARTIFACT = "{FileKind: 2"  # a file of an artifact, whose loss is known by waiting for it


class RefusedError(Exception):
    """W&B does not take a run: no network, no such key, no such project, a setting that it does not
    know."""


def wanted_mode() -> str:
    """What W&B itself would do in this environment: `online` only where it has a key and is not
    switched off, by `wandb offline`, `wandb disabled` or `WANDB_MODE`."""
    if os.environ.get("WANDB_MODE") == "disabled":  # whatever else is set, and half a second sooner
        return "disabled"
    try:
        # private: W&B's public ways to ask start a process of its own, prompt for a key, or print
        from wandb.sdk.lib.wbauth import authenticate_session
        from wandb.sdk.wandb_setup import singleton

        with without_other_runs():
            settings = singleton().settings
            key = authenticate_session(
                host=settings.base_url, source="tune.run", prompt=False, update_session=False
            )
    except Exception as error:  # of many classes
        print(f"W&B refuses its settings, so runs stay offline: {one_line(error)}", flush=True)
        return "offline"
    if settings.mode == "disabled":
        return "disabled"
    if settings.mode in ("offline", "dryrun"):
        return "offline"
    return "online" if key else "offline"


@contextlib.contextmanager
def without_other_runs() -> Iterator[None]:
    """Hides what W&B's variables say of a run, such as one of another job."""
    starts = tuple(f"WANDB_{start}" for start in OF_A_RUN)
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(starts)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def require_search(store: Store) -> None:
    """A FileNotFoundError if the folder has no search."""
    if not (store.folder / SEARCH_FILE).is_file():
        raise FileNotFoundError(f"no search at {store.location}: it has no {SEARCH_FILE}")


def fitting(name: str, allowed: str = r"\w. -") -> str:
    """A name as W&B takes it: other characters become dashes, and its end is cut off."""
    return re.sub(f"[^{allowed}]", "-", name, flags=re.ASCII)[:NAME_LENGTH]


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
        self.refused = False  # whether W&B did not take something
        self.project = fitting(os.environ.get("WANDB_PROJECT") or PROJECT)
        os.environ["WANDB_PROJECT"] = self.project  # W&B would refuse all for its name
        store.clear()
        store.get_small()
        require_search(store)
        self.search = json.loads((folder / SEARCH_FILE).read_text(encoding="utf-8"))
        self.file = folder / RECORD
        self.record: dict[str, Any] = {"id": secrets.token_hex(4), "runs": []}
        if self.file.is_file():
            self.record = json.loads(self.file.read_text(encoding="utf-8"))
        # hash of what was logged of each part of the search's own run; an earlier version had the
        # hashes of all answers, whose parts were logged together
        if answers := self.record.pop("answers", []):
            self.record["tables"] = len(answers)
            self.record["parts"] = dict.fromkeys(("table", "model", "answer"), answers[-1])
        if "dashboard" in self.record:
            self.record.setdefault("parts", {})["dashboard"] = "made"
        self.parts = self.record.setdefault("parts", {})
        # epochs and status by trial, when its run was closed; an earlier version wrote "told"
        self.logged = self.record.setdefault("logged", self.record.pop("told", {}))
        self.record.setdefault("open", [])  # the runs that were begun online and not closed
        # the same, with what W&B's client has and may not have sent yet
        self.handed_over = dict(self.logged)
        self.open: dict[str, Any] = {}
        self.seen: dict[str, tuple[Any, str]] = {}
        for run in (folder / "wandb").glob("offline-run-*"):
            if run.name not in self.record["runs"]:
                shutil.rmtree(run)  # of a process that was killed as it wrote: it is logged again
        if mode == "offline" and self.record["open"]:
            self.refused = True
            names = ", ".join(self.record["open"])
            print(f"begun online, and left to be logged online: {names}", flush=True)
        if not self.file.is_file():
            self.save()  # its id, by which a killed tracker's runs are found again

    def update(self, *, last: bool) -> None:
        """Logs what is new: of trials that have ended, or of all when online or for the last
        time."""
        # nothing of W&B's, which its service may be writing
        self.store.get(*FILES, f"*/{SAMPLES_FOLDER}/*")
        left = self.record["open"] if self.mode == "offline" else []
        for trial, status in self.trials():
            name = str(trial.relative_to(self.folder))
            if name in left:
                continue
            ended = status in STATUS_OF_STATE.values()
            if ended or last or self.mode == "online":
                with self.apart(name):
                    self.log_new(trial, status, close=ended or last)

    @contextlib.contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Has the failure of one thing lose no other: it becomes a line."""
        try:
            yield
        except RefusedError:
            raise
        except Exception as error:  # of W&B's many classes
            self.refused = True
            print(f"W&B did not take {what}: {one_line(error)}", flush=True)

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
        known = self.handed_over.get(name, {"epochs": 0, "status": ""})
        ended_now = status in STATUS_OF_STATE.values() and status != known["status"]
        frame = over_lanes(load_trials(trial))
        rows = loggable(frame)
        new = [row for row in rows if row["epoch"] > known["epochs"]]
        if new or ended_now:
            self.log(trial, config_of(frame), rows, new, status)
            epochs = rows[-1]["epoch"] if rows else 0
            self.handed_over[name] = {"epochs": epochs, "status": status}
        closed = close and name in self.open
        if closed:
            self.close_run(name)
        if new or ended_now or closed:
            self.save()

    def log(
        self, trial: Path, config: dict[str, Any], rows: list[Row], new: list[Row], status: str
    ) -> None:
        """Logs those of a trial's rows that are new, and what all of them say."""
        name = str(trial.relative_to(self.folder))
        kind = "trial" if trial.parent == self.folder else "confirm"
        if name not in self.open:
            self.open[name] = self.begin(name, kind, config)
            if self.mode == "online" and name not in self.record["open"]:
                self.record["open"].append(name)
                self.save()
        run = self.open[name]
        new = [row for row in new if row["epoch"] >= run.starting_step]  # the server has the others
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
        """A new W&B run, or the one of that name begun before; a RefusedError if W&B does not take
        it."""
        import wandb

        mode: Any = self.mode
        settings = wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            save_code=False,
            disable_git=True,
            x_save_requirements=kind == "search",  # reading all packages takes 0.1 s a run
            init_timeout=INIT_SECONDS,
        )
        group = self.folder.name[:NAME_LENGTH]
        try:
            run = wandb.init(
                project=self.project,
                dir=self.folder,
                mode=mode,
                settings=settings,
                id=f"{self.record['id']}-{name.replace('/', '-')}",
                resume="allow",
                reinit="create_new",
                name=f"{group[: NAME_LENGTH - len(name) - 1]}/{name}",
                group=group,
                job_type=kind,
                config=config,
            )
        except Exception as error:  # of many classes
            raise RefusedError(one_line(error)) from error
        run.define_metric("*", step_metric="epoch")
        if self.mode == "offline":
            self.record["runs"].append(Path(run.dir).parent.name)
        else:  # the server has rows of an earlier tracker, but maybe not their pictures
            for earlier in (self.folder / "wandb").glob(f"run-*-{run.id}/files"):
                pictures = f"{glob.escape(str(earlier))}/media/images/*.png"
                run.save(pictures, base_path=earlier, policy="now")
        return run

    def close_run(self, name: str) -> None:
        """Ends a trial's run, of which all is logged; a ConnectionError if W&B did not get it."""
        finish(self.open.pop(name))
        self.logged[name] = self.handed_over[name]
        if name in self.record["open"]:
            self.record["open"].remove(name)

    def save(self) -> None:
        """Writes the record, after what it records."""
        write_json(self.file, self.record)
        self.store.put(self.folder / "wandb", self.file)

    def summarize(self) -> None:
        """Logs one more run, of the search, whose parts are its table with the samples of the best,
        the best G, the answer and, online, the dashboard; each that W&B does not have yet. Nothing
        of a search without a table."""
        self.store.get_small()
        if not (self.folder / TABLE_FILE).is_file():
            return
        table = pd.read_csv(self.folder / TABLE_FILE)
        ranked = table.dropna(subset="rank").to_dict("records")
        if not ranked:
            return
        best = self.folder / ranked[0]["trial"]
        log = {
            "table": lambda run: self.log_table(run, table, ranked),
            "model": lambda run: self.log_artifact(
                run, "model", [best / CHECKPOINT_FILE, *self.files(MODEL)]
            ),
            "answer": lambda run: self.log_artifact(run, "answer", self.files(ANSWERS + REPORTS)),
        }
        content = b"".join(path.read_bytes() for path in self.files(ANSWERS))
        wanted = dict.fromkeys(log, hashlib.sha256(content).hexdigest())
        if self.mode == "online":
            log["dashboard"] = self.make_dashboard
            wanted["dashboard"] = "made"
        missing = [name for name in log if self.parts.get(name) != wanted[name]]
        if not missing:
            return
        self.store.get(f"{best.name}/{CHECKPOINT_FILE}", *MODEL)
        run = self.begin("summary", "search", {name: self.search[name] for name in ABOUT})
        logged = {}
        for name in missing:
            with self.apart(f"the search's {name}"):
                log[name](run)
                logged[name] = wanted[name]
        complete = False
        with self.apart("the search's run"):
            finish(run)
            complete = True
        if not complete:
            logged.pop("table", None)  # which is sent with the run
        self.parts |= logged
        self.save()

    def log_table(self, run: Any, table: pd.DataFrame, ranked: Sequence[Mapping[Any, Any]]) -> None:
        """Logs the table and what else the search's own run shows, a step an answer."""
        step = max(self.record.setdefault("tables", 0), run.starting_step)
        run.log(self.charts(table, ranked), step=step)
        best = {f"best/{METRIC}": ranked[0][METRIC], "best/trial": ranked[0]["trial"]}
        run.summary.update(best)
        self.record["tables"] = step + 1

    def log_artifact(self, run: Any, kind: str, files: Sequence[Path]) -> None:
        """Logs files as an artifact, and waits until it is uploaded."""
        import wandb

        artifact = wandb.Artifact(fitting(f"{kind}-{self.folder.name}", r"\w.-"), type=kind)
        for file in files:
            artifact.add_file(str(file))
        logged = run.log_artifact(artifact)
        if self.mode == "online":
            logged.wait(ARTIFACT_SECONDS)

    def make_dashboard(self, run: Any) -> None:
        """Makes the workspace of the search's runs."""
        group = self.folder.name[:NAME_LENGTH]
        view = dashboard(run.entity, run.project, group, self.search["axes"])
        self.record["dashboard"] = view.save().url

    def charts(self, table: pd.DataFrame, ranked: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
        """What the search's own run shows. (The import of what draws takes a second, for which a
        tracker that follows a search need not wait.)"""
        import wandb

        from analysis import charts
        from analysis.importance import importance

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


def finish(run: Any) -> None:
    """Ends a W&B run; a ConnectionError if not all of it was uploaded, which W&B at most prints."""
    run.finish()
    for line in Path(run.settings.log_internal).read_text(encoding="utf-8").splitlines():
        if '"level":"ERROR' in line and LOST.search(line) and ARTIFACT not in line:
            raise ConnectionError(json.loads(line)["msg"])


def loggable(frame: pd.DataFrame) -> list[Row]:
    """What of each epoch can be a line in a chart: the numbers that are known."""
    names = [name for name in (*KNOWN, STD) if name in frame]
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
        name=fitting(group),
        sections=[
            Section(name=name, panels=panel, is_open=True) for name, panel in sections.items()
        ],
        runset_settings=RunsetSettings(filters=f"Metric('Group') == {group!r}"),
    )


def dashboard_url(folder: Path) -> str | None:
    """Where a search's dashboard is, if it has one."""
    file = folder / RECORD
    if not file.is_file():
        return None
    url: str | None = json.loads(file.read_text(encoding="utf-8")).get("dashboard")
    return url
