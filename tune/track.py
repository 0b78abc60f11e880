"""`python -m tune.track RUN`: a search in Weights & Biases, told from its files.

A process of its own follows the search's folder, so that nothing W&B does, or fails to do, can reach the search: each
trial is a run, with a step an epoch, and the search one more, with the answer. `RUN/wandb.json` remembers how far each was
told, so that a resumed search goes on in the same runs. Offline, a run is written when its trial has ended (or the search
was interrupted), in one go.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import netrc
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from dcgan import checkpoint, cli
from dcgan.config import TrainConfig
from dcgan.schema import METRIC, Row
from tune.plan import SEARCH_FILE, Plan
from tune.storage import Store, stored
from tune.study import STUDY, open_study

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

    from tune.runner import Stop

MODES = ("online", "offline", "disabled")
LEDGER = "wandb.json"
LOG = "wandb.log"
PROJECT = "dcgan-tune"  # unless WANDB_PROJECT names another
POLL_SECONDS = 3.0
POLL_STORAGE_SECONDS = 15.0
FINISH_SECONDS = 60.0  # that a search waits, at its end, for its runs to be complete
INIT_SECONDS = 20.0  # after which an unreachable server is given up, and runs are kept offline
ANSWERS = ("table.csv", "table.md", "best.json", "best.png", "confirm.csv", "confirm.md")  # what a search found
REPORTS = ("report.html", "report.md")  # the same, but for the time at which they were made
BEST = 5  # trials whose samples are shown side by side
CHARTS = {
    "Quality": (METRIC, "sample_coverage", "sharpness", "path_length"),
    "Training": ("generator_loss", "discriminator_loss", "d_real", "d_fake"),
    "Cost": ("images_per_second", "peak_memory_bytes"),
}
"""Columns in the dashboard's line charts."""
STATUSES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped", TrialState.FAIL: "failed"}


def default_mode() -> str:
    """`WANDB_MODE`, else online where there is a key, in the environment or from `wandb login`, else offline."""
    if (asked := os.environ.get("WANDB_MODE")) in MODES:
        return asked
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0]
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(os.environ.get("NETRC")).authenticators(host):
            return "online"
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def describe(mode: str, folder: Path) -> str:
    """What is tracked and where to, as a person reads it."""
    if mode == "disabled":
        return "off"
    if mode == "online":
        return "W&B, online"
    return f"W&B, offline: {sync_command(folder)}"


def sync_command(folder: Path) -> str:
    """The command that sends offline runs, several at a time."""
    return f"wandb sync -n 8 {folder}/wandb/offline-run-*"


class Tracker:
    """Tells W&B what is new in a search's folder, or in a storage, of which it has a copy of its own."""

    def __init__(self, store: Store, mode: str) -> None:
        folder = store.folder
        self.store, self.folder, self.mode = store, folder, mode
        store.clear()
        store.get_small()
        self.search = json.loads((folder / SEARCH_FILE).read_text())
        self.file = folder / LEDGER
        fresh: dict[str, Any] = {"id": secrets.token_hex(4), "told": {}, "runs": [], "answers": []}
        self.ledger: dict[str, Any] = json.loads(self.file.read_text()) if self.file.is_file() else fresh
        self.open: dict[str, Any] = {}
        self.studies: dict[tuple[Path, int], optuna.Study] = {}
        for run in (folder / "wandb").glob("offline-run-*"):
            if run.name not in self.ledger["runs"]:
                shutil.rmtree(run)  # of a process that was killed as it wrote: it is told again

    def update(self, *, last: bool) -> None:
        """Tells what is new: of trials that have ended, or of all when online or for the last time."""
        self.store.get_small()
        self.store.get(STUDY)
        for trial, status in self.trials():
            name = str(trial.relative_to(self.folder))
            ended = status in STATUSES.values()
            told = self.ledger["told"].get(name, {"epochs": 0, "status": ""})
            rows = [row for row in read_rows(trial) if row["epoch"] > told["epochs"]]
            if (rows or (ended and status != told["status"])) and (ended or last or self.mode == "online"):
                self.tell(trial, name, rows, status)
                self.ledger["told"][name] = {"epochs": told["epochs"] + len(rows), "status": status}
                if ended or last:
                    self.close(name)
                self.save()

    def trials(self) -> Iterator[tuple[Path, str]]:
        """Folder and status of each trial that has begun, of the search and of its confirm stage."""
        for stage in (self.folder, self.folder / "confirm"):
            file = stage / STUDY
            if not file.is_file():
                continue
            key = stage, file.stat().st_ino  # a copy is replaced as it changes
            study = self.studies[key] = self.studies.get(key) or open_study(stage)
            for trial in study.get_trials(deepcopy=False):
                path = stage / f"trial_{trial.number:04d}"
                if (path / "params.json").is_file():
                    yield path, STATUSES.get(trial.state, "unfinished")

    def tell(self, trial: Path, name: str, rows: list[Row], status: str) -> None:
        """Logs a trial's new rows, and what is known of it by now."""
        config = TrainConfig.from_file(trial).to_dict()
        kind = "confirm" if trial.parent != self.folder else "trial"
        if name not in self.open:
            self.open[name] = self.begin(name, kind, config)
        run = self.open[name]
        for row in rows:
            images = trial / "samples" / f"epoch_{row['epoch']:03d}.png"
            run.log(loggable(row) | ({"samples": picture(images)} if images.is_file() else {}), step=row["epoch"])
        best = min(read_rows(trial), key=lambda row: row[METRIC], default=None)
        if best:
            run.summary.update({f"best/{column}": value for column, value in loggable(best).items()})
        if (trial / "samples" / "best.png").is_file():
            run.summary["best/samples"] = picture(trial / "samples" / "best.png")
        run.summary["status"] = status
        run.tags = (self.search["search"], kind, status)

    def begin(self, name: str, kind: str, config: dict[str, Any]) -> Any:
        """A new W&B run, or the one of that name told of before."""
        import wandb

        mode: Any = self.mode
        settings = wandb.Settings(
            silent=True, console="off", x_disable_stats=True, save_code=False, disable_git=True, init_timeout=INIT_SECONDS
        )  # fmt: skip
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), dir=self.folder, mode=mode, settings=settings,
                id=f"{self.ledger['id']}-{name.replace('/', '-')}", resume="allow", reinit="create_new",
                name=f"{self.folder.name}/{name}", group=self.folder.name, job_type=kind, config=config,
            )  # fmt: skip
        except Exception as error:  # of many classes: no network, no such key, no such project
            if self.mode != "online":
                raise
            print(f"W&B cannot be reached ({error!r}); going on offline: {sync_command(self.folder)}", flush=True)
            os.execv(sys.executable, [*sys.orig_argv, "--wandb", "offline"])  # W&B's service will not take this run again
        run.define_metric("*", step_metric="epoch")
        if self.mode == "offline":
            self.ledger["runs"].append(Path(run.dir).parent.name)
        return run

    def close(self, name: str) -> None:
        self.open.pop(name).finish()

    def save(self) -> None:
        checkpoint.replace(self.file, (json.dumps(self.ledger, indent=2) + "\n").encode())
        self.store.put(self.folder / "wandb", self.file)

    def summarize(self) -> None:
        """One more run, of the search: its table, the samples of the best, importances, the answer and the best G."""
        import wandb

        answer = hashlib.sha256(b"".join(path.read_bytes() for path in self.files(ANSWERS))).hexdigest()
        with (self.folder / "table.csv").open() as file:
            table: list[dict[str, Any]] = [{k: number(cell) for k, cell in row.items()} for row in csv.DictReader(file)]
        ranked = [row for row in table if row[METRIC] is not None]
        if not ranked or answer in self.ledger["answers"]:
            return
        about = ("search", "axes", "base", "sampler", "scheduler", "num_trials", "protocol", "device", "versions")
        run = self.begin("summary", "search", {name: self.search[name] for name in about})
        study = open_study(self.folder)
        rows: list[Any] = [list(row.values()) for row in table]
        shown: dict[str, Any] = {"trials": wandb.Table(columns=list(table[0]), data=rows, allow_mixed_types=True)}
        best = [self.folder / row["trial"] / "samples" / "best.png" for row in ranked[:BEST]]
        shown["best trials"] = [picture(path, path.parents[1].name) for path in best if path.is_file()]
        if importances := importance(study):
            bars = wandb.Table(columns=["setting", "importance"], data=[[*pair] for pair in importances.items()])
            shown["importance"] = wandb.plot.bar(bars, "setting", "importance", title="Importance of settings (PED-ANOVA)")
        if len(self.search["axes"]) > 1:
            shown["settings"] = wandb.Plotly(optuna.visualization.plot_parallel_coordinate(study))
        run.log(shown, step=len(self.ledger["answers"]))
        self.store.get(f"{ranked[0]['trial']}/{checkpoint.NAME}")
        files = {"model": [self.folder / ranked[0]["trial"] / checkpoint.NAME], "answer": self.files(ANSWERS + REPORTS)}
        for kind, paths in files.items():
            artifact = wandb.Artifact(f"{self.folder.name}-{kind}", type=kind)
            for path in paths:
                artifact.add_file(str(path))
            run.log_artifact(artifact)
        run.summary.update({f"best/{METRIC}": ranked[0][METRIC], "best/trial": ranked[0]["trial"]})
        run.finish()
        if self.mode == "online" and "dashboard" not in self.ledger:
            self.ledger["dashboard"] = dashboard(run.entity, run.project, self.folder.name, self.search["axes"]).save().url
        self.ledger["answers"].append(answer)
        self.save()

    def files(self, names: Sequence[str]) -> list[Path]:
        """Those of these files that the search has."""
        return [self.folder / name for name in names if (self.folder / name).is_file()]


def dashboard(entity: str, project: str, group: str, axes: Mapping[str, str]) -> "Workspace":
    """A W&B workspace of one search's runs: quality, samples, settings, training and cost, each over epochs."""
    from wandb_workspaces.reports.v2 import interface as panels
    from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace

    column = panels.ParallelCoordinatesPlotColumn
    columns = [column(panels.Config(name), log="log" in text) for name, text in axes.items()]
    columns.append(column(panels.SummaryMetric(f"best/{METRIC}")))
    sections: dict[str, list[Any]] = {
        title: [panels.LinePlot(x="epoch", y=[name]) for name in names] for title, names in CHARTS.items()
    }
    sections["Samples"] = [panels.MediaBrowser(media_keys=["samples"])]
    sections["Settings"] = [panels.ParallelCoordinatesPlot(columns=columns)]
    return Workspace(
        entity=entity,
        project=project,
        name=group,
        sections=[Section(name=title, panels=shown, is_open=True) for title, shown in sections.items()],
        runset_settings=RunsetSettings(filters=f"Metric('Group') == '{group}'"),
    )


def importance(study: optuna.Study) -> dict[str, float]:
    """How much of the good trials' difference from the others each setting makes; nothing where too few say so."""
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # too few trials, or several objectives
        return {}


def number(cell: str) -> float | str | None:
    """A cell of a CSV file: a number, a text, or nothing."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def read_rows(trial: Path) -> list[Row]:
    """The rows that a trial has reported."""
    path = trial / "result.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def loggable(row: Row) -> Row:
    """What of a row can be a line in a chart."""
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def picture(path: Path, caption: str | None = None) -> Any:
    """An image file as W&B takes it."""
    import wandb

    return wandb.Image(str(path), caption=caption)


def tracked(location: str) -> Store:
    """A search's folder; of one in a storage a copy for the tracker alone, since the driver writes in its own."""
    return stored(location, purpose="tracked")


@contextlib.contextmanager
def tracking(plan: Plan, mode: str, stop: "Stop") -> Iterator[None]:
    """Follows a search in a process of its own, which notices when this one ends, however it does."""
    if mode == "disabled":
        yield
        return
    log = (plan.folder / LOG).open("ab")
    command = [sys.executable, "-m", "tune.track", plan.location, "--wandb", mode, "--follow"]
    follower = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        assert follower.stdin
        follower.stdin.close()
        try:
            failed = follower.wait(1 if stop.asked else FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"W&B is still being told, in the background; see {log.name}")
        else:
            if failed:
                print(f"W&B was not told all: see {log.name}; tell it by: python -m tune.track {plan.location}")
            plan.store.get(LEDGER)
            if url := dashboard_url(plan.folder):
                print(f"W&B's dashboard of all runs: {url}")


def dashboard_url(folder: Path) -> str | None:
    """Where a search's dashboard is, if it has one."""
    ledger = folder / LEDGER
    return json.loads(ledger.read_text()).get("dashboard") if ledger.is_file() else None


def wait_for_end(stream: IO[str]) -> threading.Event:
    """Set when the search that holds the other end of a stream ends."""
    ended = threading.Event()

    def wait() -> None:
        stream.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    return ended


def main() -> None:
    parser = cli.Parser(prog="python -m tune.track", description="Tell Weights & Biases what is new in a search's folder.")
    parser.add_argument("run", help="the folder of a search, or its URI (s3://…)")
    parser.add_argument("--wandb", choices=MODES[:2], help="default: online where there is a key, else offline")
    parser.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)  # until standard input ends
    args = parser.parse_args()
    with cli.one_line_errors(parser):
        store = tracked(args.run)
        tracker = Tracker(store, args.wandb or default_mode())
        if args.follow:
            ended = wait_for_end(sys.stdin)
            while not ended.wait(POLL_STORAGE_SECONDS if store.uri else POLL_SECONDS):
                tracker.update(last=False)
        tracker.update(last=True)
        if (store.folder / "table.csv").is_file():
            tracker.summarize()


if __name__ == "__main__":
    main()
