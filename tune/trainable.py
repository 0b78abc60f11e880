"""The Ray trainable: one trial is one `TrainConfig`, trained by `dcgan.loop.train` in the trial's own folder.

The folder is the truth. Each epoch its checkpoint is replaced, which carries all rows so far, then `result.json` is
rewritten from these, and only then is the epoch reported: whoever is killed, no row is lost or doubled. Ray keeps no
checkpoints of its own. Where a storage is the truth, the trial works in a folder of its own, fetched from there as it begins.
"""

import json
import shutil
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from ray import tune as ray_tune
from tensorboardX import SummaryWriter

from dcgan import checkpoint, memory
from dcgan.config import TrainConfig
from dcgan.images import sample, save_grid
from dcgan.loop import RATES, train
from dcgan.schema import METRIC, Row
from tune.storage import Pace, StorageError, Store

ERROR = "error.txt"
GRID = 36  # images of a sample grid
SAMPLED = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)  # epochs whose samples are kept, besides the last


def trainable(
    params: dict[str, Any],
    *,
    folder: Path,
    uri: str,
    data_dir: Path | None,
    cpus: int,
    gpus: float,
    gpu_gib: float,
    patience: int,
    keep: Collection[int],
    pbt: bool,
) -> None:
    """Trains the config that Ray hands over in the trial's folder, from its checkpoint if there is one.

    Rows of earlier sessions are reported again, since the driver may have been killed before it saw the last.

    Args:
        folder: of the search, on this machine; of no use if there is a `uri`.
        uri: of the search in a storage.
        keep: epochs that must be there before they are reported; the others as often as it is worth.

    Raises:
        FloatingPointError, MemoryError: the trial diverged or collapsed, or ran out of memory, now or before. Ray tries
            failed trials again, for the sake of killed workers; this would only come again.
        StorageError: the storage cannot be reached.
    """
    torch.set_num_threads(cpus)
    if 0 < gpus < 1:
        memory.limit(gpus, gpu_gib)
    store = open_trial(ray_tune.get_context().get_trial_name(), folder, uri)
    trial, pace = store.folder, Pace(keep)
    error_file = trial / ERROR
    if error_file.exists():
        raise FloatingPointError(error_file.read_text())
    saved = load_saved(trial)
    if pbt and saved:  # its own or another member's: all but the rates comes with the weights
        params = saved["config"] | {name: params[name] for name in RATES}
    config = TrainConfig.from_dict(params)
    checkpoint.replace(trial / "params.json", (json.dumps(config.to_dict(), indent=2) + "\n").encode())
    rows: list[Row] = saved.get("history", [])
    if rows:  # a predecessor may have been killed between the checkpoint and these
        save_samples(trial, rows, config.epochs)
    checkpoint.write_rows(trial / "result.json", rows)
    events = write_events(trial, rows)
    for unfinished in trial.glob("*.tmp"):  # of a killed predecessor
        unfinished.unlink()

    def finish_epoch(row: Row) -> None:
        rows.append(row)
        save_samples(trial, rows, config.epochs)
        checkpoint.write_rows(trial / "result.json", rows)
        add_event(events, row)
        pace.keep(row["epoch"], store.put)
        ray_tune.report(dict(row))
        check_collapse(rows, patience)

    try:
        for row in rows[-1:] if pbt else rows:
            ray_tune.report(dict(row))
        check_collapse(rows, patience)
        resume_from = trial if rows else None
        train(config, report=finish_epoch, checkpoint_dir=trial, resume_from=resume_from, data_dir=data_dir, new_rates=pbt)
    except (FloatingPointError, MemoryError) as error:
        checkpoint.replace(error_file, f"{error}\n".encode())
        store.put()
        raise
    finally:
        events.close()


def open_trial(name: str, folder: Path, uri: str) -> Store:
    """The trial's folder; one of this machine's own, with all that the storage has of the trial, if there is a URI.

    Raises:
        StorageError: this machine does not reach the storage, or has another folder in its place.
    """
    if not uri:
        (folder / name).mkdir(parents=True, exist_ok=True)
        return Store(folder / name)
    if not Store(Path(), uri).has("study.db"):  # a folder that is not mounted here would take everything in silence
        raise StorageError(f"{uri} is not to be seen from {socket.gethostname()}")
    store = Store(Path.cwd() / name, f"{uri}/{name}")  # in Ray's working folder of this trial
    shutil.rmtree(store.folder, ignore_errors=True)  # what an earlier attempt left here is older than the storage
    store.folder.mkdir(parents=True)
    store.get()
    return store


def save_samples(trial: Path, rows: list[Row], epochs: int) -> None:
    """Writes digits from fixed noise to the trial's `samples/`: at some epochs, closer together at first, and of the best."""
    epoch = rows[-1]["epoch"]
    best = min(rows, key=lambda row: row[METRIC])["epoch"]
    wanted = {f"epoch_{epoch:03d}": True} if epoch in SAMPLED or epoch == epochs else {}
    wanted |= {"best": False} if epoch == best else {}
    for name, last in wanted.items():
        generator, config, _ = checkpoint.load_generator(trial, last=last)
        save_grid(sample(generator, config.latent_size, GRID), trial / "samples" / f"{name}.png")


def write_events(trial: Path, rows: list[Row]) -> SummaryWriter:
    """A trial's TensorBoard file, begun anew with the rows so far, so that no step is lost or doubled."""
    for old in trial.glob("events.out.tfevents.*"):
        old.unlink()
    events = SummaryWriter(str(trial), flush_secs=10)
    for row in rows:
        add_event(events, row)
    return events


def add_event(events: SummaryWriter, row: Row) -> None:
    """Adds an epoch to a TensorBoard file."""
    for name, value in row.items():
        if isinstance(value, int | float):
            events.add_scalar(name, value, row["epoch"])
    events.flush()  # Ray may end the worker as soon as the row is reported


def load_saved(trial: Path) -> dict[str, Any]:
    """The trial's checkpoint, or nothing. A damaged one is put aside, and the trial begins anew."""
    try:
        return checkpoint.load(trial)
    except FileNotFoundError:
        return {}
    except ValueError:
        path = trial / checkpoint.NAME
        path.replace(path.with_suffix(".damaged"))
        return {}


def check_collapse(rows: list[Row], patience: int) -> None:
    """Gives up a trial that is collapsed for good, as nearly none recovers from (docs/log.md): for `patience` epochs in a
    row and getting no better, or for twice as many if it never covered the digits, which may mean that it learns slowly.

    Raises:
        FloatingPointError: it is.
    """
    covered = any(not row["collapsed"] for row in rows)
    lost = patience if covered else 2 * patience
    before, last = rows[:-lost], rows[-lost:]
    if not before or not all(row["collapsed"] for row in last):
        return
    if min(row[METRIC] for row in last) >= min(row[METRIC] for row in before):
        raise FloatingPointError(f"collapsed for {lost} epochs in a row and no better, up to epoch {rows[-1]['epoch']}")
