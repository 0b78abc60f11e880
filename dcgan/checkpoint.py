"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file.

A file holds both nets, the averaged G, both optimizers and scalers, the state of the only random stream the loop draws
from (on its device), the config, the rows so far and the generator of the best epoch. The position in the data is the
number of rows, since checkpoints are taken between epochs.

It is what `torch.save` writes (a zip archive), with the sha256 of all that stands before it as the archive's comment:
`torch.load` can read it, and `load` notices any damage. It is read without executing code (`weights_only=True`).
"""

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from dcgan.config import TrainConfig
from dcgan.models import Generator

NAME = "checkpoint.pt"
VERSION = 1
DIGEST_BYTES = 32


def save(content: dict[str, Any], folder: Path | str) -> Path:
    """Writes `folder/checkpoint.pt`: either the whole new file is there afterwards, or the whole old one."""
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **content}, buffer)
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(seal(buffer.getvalue()))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


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
    sealed = path.read_bytes()
    if hashlib.sha256(sealed[:-DIGEST_BYTES]).digest() != sealed[-DIGEST_BYTES:]:
        raise ValueError(f"{path} is damaged, truncated or no checkpoint of dcgan; use another one")
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(sealed), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whole, but it would execute code
        raise ValueError(f"{path} is no checkpoint of dcgan: it holds more than tensors and plain values") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise ValueError(f"{path} has checkpoint version {version}; this code reads version {VERSION}")
    return content


def check_same_run(path: Path | str, content: dict[str, Any], config: TrainConfig) -> None:
    """Refuses to continue a checkpoint's run under another config; only `epochs` may differ, and not below those done.

    Raises:
        ValueError: names the settings that differ.
    """
    saved, now, done = content["config"], config.to_dict(), len(content["history"])
    differing = [f"{k} was {saved.get(k)!r}, is {v!r}" for k, v in now.items() if k != "epochs" and saved.get(k) != v]
    if differing:
        raise ValueError(f"{path} belongs to another config: {'; '.join(differing)}; only epochs may change on resuming")
    if config.epochs < done:
        raise ValueError(f"epochs is {config.epochs}; {path} has trained {done} already, so allowed is at least {done}")


def load_generator(path: Path | str, *, last: bool = False) -> tuple[Generator, TrainConfig, int]:
    """The generator of a checkpoint's best epoch (or its last), its config, and that epoch.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    content = load(path)
    config = TrainConfig.from_dict(content["config"])
    generator = Generator(config)
    if last:
        generator.load_state_dict(content["average"] or content["generator"])
        return generator, config, len(content["history"])
    generator.load_state_dict(content["best"]["generator"])
    return generator, config, content["best"]["epoch"]
