"""The first digits of `mnist-mini` as a data set of their own, so that an epoch and its evaluation
take a fraction of a second."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from dcgan.data import DATASETS, Dataset, load_mini

SIZES = {"train": 1600, "validation": 400, "test": 400}


def load_few(split: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    images, labels = load_mini(split, data_dir)
    return images[: SIZES[split]], labels[: SIZES[split]]


def register() -> None:
    """For Ray's workers, which call it as they start: to import this file is enough."""


def for_workers(runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    """Ray's runtime environment with what its workers need to know the data set. `ray.init` calls
    the function that RAY_RUNTIME_ENV_HOOK names."""
    here = Path(__file__).parent
    variables = {"PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])}
    more = {"env_vars": variables, "worker_process_setup_hook": "few_digits.register"}
    return (runtime_env or {}) | more


DATASETS["few-digits"] = Dataset(load_few, size=28, channels=1, classes=10, yardstick="digits")
