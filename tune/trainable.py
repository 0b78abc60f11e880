"""The Ray trainable: one trial is one `TrainConfig`, trained by `dcgan.loop.train`, a report and a checkpoint an epoch."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from ray import tune as ray_tune

from dcgan.config import TrainConfig
from dcgan.loop import train
from dcgan.schema import Row

DIVERGED = "diverged.txt"


def trainable(params: dict[str, Any], *, data_dir: Path | None, cpus: int) -> None:
    """Trains the config that Ray hands over, from the trial's checkpoint if it has one."""
    config = TrainConfig.from_dict(params)
    torch.set_num_threads(cpus)
    trial_dir = Path(ray_tune.get_context().get_trial_dir())
    note = trial_dir / DIVERGED
    if note.exists():  # Ray retries failed trials, for the sake of killed workers; a divergence would only come again
        raise FloatingPointError(note.read_text())
    with tempfile.TemporaryDirectory(dir=trial_dir) as folder:
        checkpoint_dir = Path(folder)

        def report(row: Row) -> None:
            ray_tune.report(dict(row), checkpoint=ray_tune.Checkpoint.from_directory(checkpoint_dir))

        def run(resume_from: Path | None) -> None:
            train(config, report=report, checkpoint_dir=checkpoint_dir, resume_from=resume_from, data_dir=data_dir)

        try:
            if checkpoint := ray_tune.get_checkpoint():
                with checkpoint.as_directory() as saved:
                    run(Path(saved))
            else:
                run(None)
        except FloatingPointError as error:
            note.write_text(str(error))
            raise
