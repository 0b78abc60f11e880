"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file.

A file holds both nets, the averaged G, both optimizers and scalers, all of the replicas together, and the states of the
only random streams the loop draws from (on their device), one a replica; the config, the rows so far and the generator of
the best epoch. The position in the data is the number of rows, since checkpoints are taken between epochs.

It is what `torch.save` writes (a zip archive), with the sha256 of all that stands before it as the archive's comment:
`torch.load` can read it, and `load` notices any damage. It is read without executing code (`weights_only=True`).
"""

import dataclasses
import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from dcgan.config import TrainConfig
from dcgan.models import Generator, part
from dcgan.schema import Row

NAME = "checkpoint.pt"
VERSION = 3
DIGEST_BYTES = 32


def save(content: dict[str, Any], folder: Path | str) -> Path:
    """Writes `folder/checkpoint.pt`: either the whole new file is there afterwards, or the whole old one."""
    path = Path(folder) / NAME
    write(path, {"version": VERSION, **content})
    return path


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values as a sealed file, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, seal(buffer.getvalue()))


def write_rows(path: Path, rows: list[Row]) -> None:
    """Replaces a file of JSON lines in one step."""
    replace(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def replace(path: Path, content: bytes) -> None:
    """Writes a file: either the whole new one is there afterwards, or the whole old one."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def seal(archive: bytes) -> bytes:
    """A zip archive without a comment, with its own sha256 as its comment. The last two bytes are the comment's length."""
    body = archive[:-2] + DIGEST_BYTES.to_bytes(2, "little")
    return body + hashlib.sha256(body).digest()


def load(path: Path | str) -> dict[str, Any]:
    """Reads a checkpoint file, or the one in a folder, onto the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, truncated or of another format; the message names it.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    content = read(path)
    version = content.get("version")
    if version != VERSION:
        raise ValueError(f"{path} has checkpoint version {version}; this code reads version {VERSION}")
    return content


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, truncated or of another origin; the message names it.
    """
    sealed = path.read_bytes()
    if hashlib.sha256(sealed[:-DIGEST_BYTES]).digest() != sealed[-DIGEST_BYTES:]:
        raise ValueError(f"{path} is damaged, truncated or no checkpoint of dcgan; use another one")
    try:
        content = torch.load(io.BytesIO(sealed), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whole, but it would execute code
        raise ValueError(f"{path} is no checkpoint of dcgan: it holds more than tensors and plain values") from error
    return content if isinstance(content, dict) else {}


def check_same_run(path: Path | str, content: dict[str, Any], config: TrainConfig, besides: tuple[str, ...] = ()) -> None:
    """Refuses to continue a checkpoint's run under another config.

    Only `epochs`, though not below those done, and the settings named in `besides` may differ.

    Raises:
        ValueError: names the settings that differ.
    """
    saved, now, done, free = content["config"], config.to_dict(), len(content["history"]), ("epochs", *besides)
    differing = [f"{k} was {saved.get(k)!r}, is {v!r}" for k, v in now.items() if k not in free and saved.get(k) != v]
    if differing:
        may = f"only {', '.join(free)} may change on resuming"
        raise ValueError(f"{path} belongs to another config: {'; '.join(differing)}; {may}")
    if config.epochs < done:
        raise ValueError(f"epochs is {config.epochs}; {path} has trained {done} already, so allowed is at least {done}")


def load_generator(path: Path | str, *, last: bool = False) -> tuple[Generator, TrainConfig, int]:
    """The generator of a checkpoint's best epoch (or its last), its config, and that epoch.

    Of several replicas, it is the best one's in the best epoch, and the first one's in the last.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    content = load(path)
    config = TrainConfig.from_dict(content["config"])
    generator = Generator(dataclasses.replace(config, replicas=1))
    if last:
        state = content["states"][0]
        weights = state.get("average", state["generator"])
        generator.load_state_dict(part(weights, 0, len(state["rngs"])))
        return generator, config, len(content["history"])
    generator.load_state_dict(content["best"]["generator"])
    return generator, config, content["best"]["epoch"]
