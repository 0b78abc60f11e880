"""What a run leaves behind: columns of its rows with units, names of its files, folders, states.

The training loop emits one row per lane and epoch, and `analysis` reads it back. Nothing here
imports anything, so that `analysis` needs no PyTorch.
"""

from typing import Any, Final

Row = dict[str, Any]  # a number, a truth value or a text by column

COLUMNS: Final[dict[str, str]] = {
    # Progress
    "lane": "index of the lane within its trial, from 0; its seed and rates are in params.json",
    "epoch": "epochs finished, counted from 1",
    "images_seen": "real training images that the lane has used so far (whole batches only)",
    # Training, means over the epoch's batches
    "generator_loss": "generator's loss; non-saturating: -log D(G(z)), nats",
    "discriminator_loss": "discriminator's loss with its penalties; non-saturating: -log D(x) - "
    "log(1 - D(G(z))), nats",
    "d_real": "mean D(x): probability given to real images",
    "d_fake": "mean D(G(z)) before D's update: probability given to generated images",
    # Quality of generated images, on the features and predictions of the yardstick
    "fid": "Fréchet distance to the evaluation split on yardstick features; lower is better",
    "kid": "unbiased kernel distance to the evaluation split; lower is better, may be just below 0",
    "sample_precision": "share of generated images inside the real manifold, 0 to 1",
    "sample_recall": "share of real images inside the generated manifold, 0 to 1",
    "sample_density": "mean number of real neighbourhoods around a generated image, over k; "
    "real data gets about 1",
    "sample_coverage": "share of real neighbourhoods that hold a generated image, 0 to 1",
    "classifier_score": "exp of the mean KL from the predicted class to its marginal, from 1 to "
    "the number of classes; higher is better",
    "confident_share": "share of generated images of whose class the classifier is sure "
    "(probability at least 0.9), 0 to 1",
    "classes_covered": "classes that make up at least a tenth of an equal share of the generated "
    "images (of ten classes 1 %)",
    "class_kl": "KL of the generated class histogram from uniform, nats; 0 is best",
    "sharpness": "high-frequency energy of generated over that of real images; below 1 is blurred, "
    "above is noisy",
    "collapsed": "true if fewer than half of the classes appear or the samples nearly repeat one "
    "another",
    "path_length": "mean length, in feature space, of great circles between noises; less is a "
    "smoother transition",
    # Cost: of lanes that train side by side, each bears an equal share of the time
    "seconds_train": "seconds of training this epoch: the lane's share",
    "seconds_eval": "seconds of evaluation this epoch: the lane's share",
    "seconds_checkpoint": "seconds of writing the checkpoint of the epoch before: the lane's share",
    "images_per_second": "training images per second of seconds_train",
    "peak_memory_bytes": "peak while training so far, of all lanes: CUDA memory allocated, or the "
    "process's resident set on the CPU",
    # Protocol: the conditions under which the numbers above hold
    "eval_split": "the split compared against: validation or test",
    "eval_samples": "number of generated images, and of real images, that the metrics use",
    "eval_seed": "seed of the fixed evaluation noise",
    "fid_real": "the fid that as many real training images get: the floor of fid",
    "extractor": "first 12 hex digits of the yardstick's sha256",
    "extractor_accuracy": "share of the split's real images whose class the yardstick names right, "
    "or their turn where there are no labels, 0 to 1",
    "device": "what the epoch ran on",
    "threads": "CPU threads that trained",
}

LABEL_COLUMNS: Final[dict[str, str]] = {
    "label_accuracy": "share of generated images that the classifier takes for the class that was "
    "asked for, 0 to 1; of conditional nets alone",
    "fid_in_class": "mean over classes of the fid between what was asked for and real images of "
    "the class; of conditional nets alone, where each class has more images than features",
}
"""Columns that rows of conditional nets have, too."""

RENAMED: Final = {"digits_covered": "classes_covered", "digit_kl": "class_kl"}
"""Columns by the names that earlier versions gave them."""

CLASS_COLUMNS: Final = ("classifier_score", "confident_share", "classes_covered", "class_kl")
"""Columns that rows lack where the data set has no labels."""

ADDED_SETTINGS: Final[dict[str, Any]] = {
    "loss": "non-saturating",
    "label_smoothing": 0.0,
    "penalty": 0.0,
    "discriminator_norm": "batch",
    "augment": "none",
    "conditional": "none",
    "classes": 10,
    "snapshots_every": 0,
}
"""Settings that earlier versions lack, and what they did."""

METRIC: Final = "fid"
"""The validation metric that ranks trials and epochs; lower is better."""

OBJECTIVES: Final[dict[str, str]] = {
    METRIC: "min",
    "kid": "min",
    "class_kl": "min",
    "seconds_train": "min",
    "seconds_eval": "min",
    "peak_memory_bytes": "min",
    "sample_precision": "max",
    "sample_recall": "max",
    "sample_density": "max",
    "sample_coverage": "max",
    "classifier_score": "max",
    "classes_covered": "max",
    "images_per_second": "max",
}
"""Columns that a search can optimise, and which way."""

WANDB_MODES: Final = ("online", "offline", "disabled")
"""How a search is tracked in Weights & Biases."""

OVER_LANES: Final[dict[str, str]] = {
    "seconds_train": "sum",
    "seconds_eval": "sum",
    "seconds_checkpoint": "sum",
    "peak_memory_bytes": "max",
    "classes_covered": "min",
    "collapsed": "max",
}
"""How a column of one epoch is taken over a trial's lanes; other numbers are averaged."""

DATA_DIR_VARIABLE: Final = "DCGAN_DATA_DIR"
"""The environment's variable of the data folder."""

# Files of a search's folder
SEARCH_FILE: Final = "search.json"  # the question: space, rungs, seed, protocol, versions, options
STUDY_FILE: Final = "study.db"  # Optuna's study: what was proposed, scored and decided
TABLE_FILE: Final = "table.csv"
BEST_FILE: Final = "best.json"  # settings of the best trial
REPORT_FILE: Final = "report.html"
ANSWER_FILE: Final = "answer.json"  # all that the report says, for programs
DRIVER_FILE: Final = "driver.txt"  # in a storage: names the process that decides
LOCK_FILE: Final = ".lock"  # held by the driver
TRACKER_LOCK_FILE: Final = ".wandb.lock"  # held by the process that logs to W&B
YARDSTICK_FILE: Final = "yardstick.safetensors"  # of a data set without a shipped one
MODEL_FOLDER: Final = "model"  # the best generator, as `dcgan.export` writes it, without ONNX
CONFIRM_FOLDER: Final = "confirm"  # the confirm stage, laid out like a search

# Files of a trial's, or a single run's, folder
PARAMS_FILE: Final = "params.json"  # settings of each lane
ROWS_FILE: Final = "result.json"  # JSON lines: a row per lane and epoch
CHECKPOINT_FILE: Final = "checkpoint.pt"
WEIGHTS_FILE: Final = "generator.safetensors"  # of an exported generator
ONNX_FILE: Final = "generator.onnx"
CARD_FILE: Final = "README.md"  # of an exported generator
ERROR_FILE: Final = "error.txt"  # why the trial failed
TEST_FILE: Final = "test.json"  # of the confirm stage: scores on the test split
SAMPLES_FOLDER: Final = "samples"  # pictures from fixed noise
BEST_SAMPLES: Final = "best.png"
AVERAGES_FOLDER: Final = "averages"  # snapshots of averages of G, for `dcgan.average`

TRIALS_PATTERN: Final = "trial_*"  # matches every name that `trial_name` makes

STATUSES: Final = ("finished", "stopped", "failed", "unfinished")
"""`finished` trained all its epochs, `stopped` was ended early by the scheduler, `failed` ended in
an error, `unfinished` was still to train when the files were written (a running or interrupted
search)."""

STATUS_OF_STATE: Final = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}
"""The status of a trial by its state in Optuna; in all other states it is unfinished."""


def renamed(row: Row) -> Row:
    """The values of a row of any version, by the names that columns have now."""
    return {RENAMED.get(name, name): value for name, value in row.items()}


def trial_name(number: int) -> str:
    """Names the trial of a number: its folder, and the trial in Ray."""
    return f"trial_{number:04d}"


def samples_name(epoch: int) -> str:
    """Names the picture of an epoch in `SAMPLES_FOLDER`."""
    return f"epoch_{epoch:03d}.png"


def averages_name(epoch: int) -> str:
    """Names the snapshot of an epoch in `AVERAGES_FOLDER`."""
    return f"epoch_{epoch:03d}.pt"
