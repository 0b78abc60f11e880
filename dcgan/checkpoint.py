"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file.

Also the states of the only random streams the loop draws from (on their device); the position in
the data is the number of epochs, since checkpoints are taken between epochs.

It is what `torch.save` writes: a zip archive, which has a CRC of each of its records. `torch.load`
alone would read most damage in silence; `load` checks them first, and executes no code.
"""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcgan.config import TrainConfig, read_lanes
from dcgan.files import replace
from dcgan.lanes import split_lane
from dcgan.models import Generator
from dcgan.schema import (
    AVERAGES_FOLDER,
    CHECKPOINT_FILE,
    WEIGHTS_FILE,
    Row,
    averages_name,
    renamed,
)
from dcgan.weights import unpack

VERSION = 4
# what zipfile raises at damaged headers
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, EOFError, RuntimeError)


def save(
    folder: Path | str,
    lanes: Sequence[TrainConfig],
    device: torch.device,
    states: list[dict[str, Any]],
    rows: list[Row],
    best: dict[str, Any],
) -> Path:
    """Writes `folder/checkpoint.pt`, whole or not at all. `states` are of each network
    (`dcgan.state.contents`), `best` is of the best epoch (`dcgan.loop.best_epoch`)."""
    path = Path(folder) / CHECKPOINT_FILE
    content = {
        "version": VERSION,
        "lanes": [lane.to_dict() for lane in lanes],
        "device": device.type,
        "states": states,
        "rows": rows,
        "best": best,
    }
    write(path, content)
    return path


def save_averages(folder: Path | str, epoch: int, states: Sequence[dict[str, Any]]) -> None:
    """Writes an epoch's snapshot of the averages of G, before its checkpoint: after a kill between
    the two, the epoch that is trained again writes the same."""
    names = ("power_averages", "updates", "rngs")  # the latter for the number of lanes
    content = [{name: state[name] for name in names} for state in states]
    write(Path(folder) / AVERAGES_FOLDER / averages_name(epoch), {"states": content})


def load_averages(folder: Path | str, epoch: int) -> list[dict[str, Any]]:
    """The states of an epoch's snapshot. Raises as `load`."""
    path = Path(folder) / AVERAGES_FOLDER / averages_name(epoch)
    if not path.is_file():
        raise FileNotFoundError(f"no snapshot of averages at {path}")
    states: list[dict[str, Any]] = read(path).get("states", [])
    if not states:
        raise ValueError(f"{path} is no snapshot of this run's averages")
    return states


def lane_weights(states: Sequence[dict[str, Any]], lane: int, name: str) -> dict[str, Tensor]:
    """A lane's own weights of a net of the states of a checkpoint or a snapshot."""
    for state in states:
        count = len(state["rngs"])
        if lane < count:
            return split_lane(state[name], lane, count)
        lane -= count
    raise ValueError(f"the states have no lane {lane} more")


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, buffer.getvalue())


def load(path: Path | str) -> dict[str, Any]:
    """Reads a checkpoint file, or the one in a folder, onto the CPU. Its rows have the columns of
    today.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, truncated or of another format; the message names it.
    """
    path = Path(path)
    path = path / CHECKPOINT_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    content = read(path)
    version = content.get("version")
    if version != VERSION:
        raise ValueError(
            f"{path} has checkpoint version {version}; this code reads version {VERSION}"
        )
    if "rows" not in content:
        raise ValueError(f"{path} is no checkpoint of dcgan: it has no rows")
    return content | {"rows": [renamed(row) for row in content["rows"]]}


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote, on the CPU. Raises as `load`."""
    archive = path.read_bytes()
    damaged = f"{path} is damaged, truncated or no checkpoint of dcgan; use another one"
    if not is_whole(archive):
        raise ValueError(damaged)
    try:
        content = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whole, but it would execute code
        raise ValueError(
            f"{path} is no checkpoint of dcgan: it holds more than tensors and plain values"
        ) from error
    # a zip archive of another origin, or damage where there is no CRC
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise ValueError(damaged) from error
    return content if isinstance(content, dict) else {}


def is_whole(archive: bytes) -> bool:
    """Whether the CRC of every record of a zip archive holds, and all are plain files as
    `torch.save` writes them: PyTorch would take a record that is marked otherwise for empty."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as records:
            plain = all(
                record.external_attr == 0 and record.compress_type == zipfile.ZIP_STORED
                for record in records.infolist()
            )
            return plain and records.testzip() is None
    except DAMAGE:
        return False


def check_same_run(path: Path | str, content: dict[str, Any], lanes: Sequence[TrainConfig]) -> None:
    """Refuses to continue a checkpoint's run under other configs by a ValueError. Only `epochs` may
    differ, though not below those done."""
    saved = content["lanes"]
    if len(saved) != len(lanes):
        raise ValueError(
            f"{path} belongs to another config: it has {len(saved)} lanes, not {len(lanes)}"
        )
    for own, lane in zip(saved, lanes, strict=True):
        # what a later version has added was as it is by default
        was = TrainConfig.from_dict(own).to_dict()
        differing = [
            f"{name} was {was[name]!r}, is {value!r}"
            for name, value in lane.to_dict().items()
            if name != "epochs" and was[name] != value
        ]
        if differing:
            raise ValueError(
                f"{path} belongs to another config: {'; '.join(differing)}; "
                f"only epochs may change on resuming"
            )
    done = len(content["rows"]) // len(lanes)
    if lanes[0].epochs < done:
        raise ValueError(
            f"epochs is {lanes[0].epochs}; {path} has trained {done} already, "
            f"so allowed is at least {done}"
        )


def load_generator(path: Path | str, *, last: bool = False) -> tuple[Generator, TrainConfig, int]:
    """The generator of a checkpoint's best epoch (or its last), its config, and that epoch.

    Of several lanes, it is the best one's in the epoch with the best mean, and the first one's in
    the last epoch. Of a folder that `dcgan.export` wrote, it is the exported one, of epoch 0.
    Raises as `load`.
    """
    exported = Path(path) / WEIGHTS_FILE
    if exported.is_file() and not (Path(path) / CHECKPOINT_FILE).is_file():
        return load_exported(exported)
    content = load(path)
    lane, epoch = content["best"]["lane"], content["best"]["epoch"]
    weights = content["best"]["generator"]
    if last:
        lane, epoch = 0, content["rows"][-1]["epoch"]
        state = content["states"][0]
        weights = split_lane(state.get("average", state["generator"]), 0, len(state["rngs"]))
    config = TrainConfig.from_dict(content["lanes"][lane])
    generator = Generator(config)
    generator.load_state_dict(weights)
    return generator, config, epoch


def load_exported(file: Path) -> tuple[Generator, TrainConfig, int]:
    """An exported generator, and its config; ValueError where the file is damaged."""
    (config,) = read_lanes(file.parent)
    generator = Generator(config)
    try:
        generator.load_state_dict(unpack(file.read_bytes()))
    except (*DAMAGE, KeyError, RuntimeError) as error:
        raise ValueError(f"{file} is damaged or of other settings; export it again") from error
    return generator, config, 0
