"""The Ray trainable: one trial is one setting, trained by `dcgan.loop.train` in its own folder.

The folder is the truth. Each epoch its checkpoint is replaced, which carries all rows so far, then
`result.json` is rewritten from these, and only then is the epoch reported to Ray: whoever is
killed, no row is lost or doubled. Ray keeps no checkpoints of its own. Where a storage is the
truth, the trial works in a folder of its own, fetched from the storage as it begins.
"""

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune as ray_tune

from dcgan import checkpoint, memory
from dcgan.config import TrainConfig, replicate, write_lanes
from dcgan.evaluate import hand_over
from dcgan.files import replace, write_rows
from dcgan.images import sample_grid, save_grid
from dcgan.loop import train
from dcgan.schema import (
    BEST_SAMPLES,
    CHECKPOINT_FILE,
    ERROR_FILE,
    METRIC,
    OVER_LANES,
    PARAMS_FILE,
    ROWS_FILE,
    SAMPLES_FOLDER,
    Row,
    samples_name,
)
from dcgan.store import Store

GRID = 36  # images of a sample grid
SAMPLED = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)  # epochs whose samples are kept, besides the last
UPLOAD_SHARE = 0.05  # of a trial's time
TAKE: dict[str, Callable[[list[Any]], Any]] = {"sum": sum, "min": min, "max": max}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What every trial of a search is handed besides its settings."""

    store: Store  # of the search
    data_dir: Path | None
    replicas: int  # seeds that a trial trains side by side
    gpus: float  # share of a GPU that a trial has
    patience: int  # of `check_collapse`
    keep: Collection[int]  # epochs that must be in the storage before they are reported
    yardstick: bytes = b""  # weights of one that was trained for the search


def trainable(params: dict[str, Any], *, task: Task) -> None:
    """Trains the setting that Ray hands over in the trial's folder, from its checkpoint if there is
    one. Epochs of earlier sessions are reported again, since the driver may have been killed before
    it saw the last.

    Ray tries failed trials again, for the sake of killed workers; one that diverged, collapsed or
    ran out of memory would only do so again, and fails at once.
    """
    torch.set_num_threads(1)
    if 0 < task.gpus < 1:
        memory.limit(task.gpus)
    if task.yardstick:
        hand_over(params["dataset"], task.yardstick)
    store = task.store.trial(ray_tune.get_context().get_trial_name())
    error_file = store.folder / ERROR_FILE
    lanes = replicate(TrainConfig.from_dict(params), task.replicas)
    trial = TrialFolder(store, lanes, task)
    try:
        for row in trial.means:
            ray_tune.report(row)
        if error_file.exists():  # only now: the driver may not have seen what it reached
            raise FloatingPointError(error_file.read_text(encoding="utf-8").strip())
        check_collapse(trial.means, task.patience)
        train(
            lanes,
            report=trial.report,
            checkpoint_dir=store.folder,
            resume_from=store.folder if trial.rows else None,
            data_dir=task.data_dir,
        )
    except (FloatingPointError, MemoryError) as error:
        replace(error_file, f"{error}\n".encode())
        store.put()
        raise
    finally:
        trial.events.close()


class Pace:
    """How often a trial's epochs are uploaded: so that uploads take at most a twentieth of the
    time, besides those of the epochs at which a trial may end.

    What a lost machine costs is the time since the last upload: an epoch, or 20 times what an
    upload takes.
    """

    def __init__(self, always: Collection[int]) -> None:
        self.always = always
        self.next = 0.0

    def keep(self, epoch: int, put: Callable[[], None]) -> None:
        """Uploads the epoch, if it is time."""
        start = time.monotonic()
        if epoch in self.always or start >= self.next:
            put()
            now = time.monotonic()
            self.next = now + (now - start) / UPLOAD_SHARE


class TrialFolder:
    """A trial's rows, samples and TensorBoard file, brought to what its checkpoint says."""

    def __init__(self, store: Store, lanes: Sequence[TrainConfig], task: Task) -> None:
        # only here: the driver, which writes none, starts sooner
        from tensorboardX import SummaryWriter

        self.store, self.lanes, self.patience = store, lanes, task.patience
        self.pace = Pace(task.keep)
        self.folder = store.folder
        self.rows = saved_rows(self.folder)
        write_lanes(self.folder / PARAMS_FILE, lanes)
        for unfinished in self.folder.glob("*.tmp"):  # of a killed predecessor
            unfinished.unlink()
        if self.rows:  # a predecessor may have been killed between the checkpoint and these
            self.save_samples()
        write_rows(self.folder / ROWS_FILE, self.rows)
        for old in self.folder.glob("events.out.tfevents.*"):  # so that no step is lost or doubled
            old.unlink()
        self.events = SummaryWriter(str(self.folder), flush_secs=10)
        for row in self.means:
            self.add_event(row)

    @property
    def means(self) -> list[Row]:
        """One row an epoch."""
        size = len(self.lanes)
        return [mean_row(self.rows[i : i + size]) for i in range(0, len(self.rows), size)]

    def report(self, row: Row) -> None:
        """Takes a lane's row; writes an epoch of all lanes, whose checkpoint is, and reports it."""
        self.rows.append(row)
        if row["lane"] < len(self.lanes) - 1:
            return
        self.save_samples()
        write_rows(self.folder / ROWS_FILE, self.rows)
        mean = self.means[-1]
        self.add_event(mean)
        self.pace.keep(mean["epoch"], self.store.put)
        ray_tune.report(mean)
        check_collapse(self.means, self.patience)

    def add_event(self, row: Row) -> None:
        """Adds an epoch to the TensorBoard file."""
        for name, value in row.items():
            if isinstance(value, int | float):
                self.events.add_scalar(name, value, row["epoch"])
        self.events.flush()  # Ray may end the worker as soon as the row is reported

    def save_samples(self) -> None:
        """Draws images from fixed noise, at some epochs and of the best."""
        epoch = self.means[-1]["epoch"]
        best = min(self.means, key=lambda row: row[METRIC])["epoch"]
        if epoch in SAMPLED or epoch == self.lanes[0].epochs:
            self._draw(samples_name(epoch), last=True)
        if epoch == best:
            self._draw(BEST_SAMPLES, last=False)

    def _draw(self, name: str, *, last: bool) -> None:
        generator, config, _ = checkpoint.load_generator(self.folder, last=last)
        images, columns = sample_grid(generator, config.latent_size, GRID)
        save_grid(images, self.folder / SAMPLES_FOLDER / name, columns)


def mean_row(rows: Sequence[Row]) -> Row:
    """One row of the lanes' rows of an epoch, without `lane`: means, but for `OVER_LANES`."""
    mean = {}
    for name, value in rows[0].items():
        values = [row[name] for row in rows]
        if name == "lane":
            continue
        if len(rows) == 1 or isinstance(value, str) or name == "epoch":
            mean[name] = value
        elif name in OVER_LANES:
            mean[name] = TAKE[OVER_LANES[name]](values)
        else:
            mean[name] = statistics.fmean(values)
    return mean


def saved_rows(folder: Path) -> list[Row]:
    """The rows in a trial's checkpoint. A damaged one is put aside, and the trial begins anew."""
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return []
    try:
        rows: list[Row] = checkpoint.load(path)["rows"]
    except ValueError:
        path.replace(path.with_suffix(".damaged"))
        return []
    return rows


def check_collapse(rows: Sequence[Row], patience: int) -> None:
    """Raises FloatingPointError for a trial that is collapsed for good, which nearly none recovers
    from (docs/log.md): for `patience` epochs in a row and getting no better, or for twice as many
    if it never covered the classes, which may mean that it learns slowly. One row an epoch."""
    covered = any(not row["collapsed"] for row in rows)
    lost = patience if covered else 2 * patience
    before, last = rows[:-lost], rows[-lost:]
    if not before or not all(row["collapsed"] for row in last):
        return
    if min(row[METRIC] for row in last) >= min(row[METRIC] for row in before):
        raise FloatingPointError(
            f"collapsed for {lost} epochs in a row and no better, up to epoch {rows[-1]['epoch']}"
        )
