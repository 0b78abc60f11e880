"""`dcgan.checkpoint`: whole files or none, and damage of any kind named. The checkpoint is a real
one of a tiny run."""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan import checkpoint
from dcgan.config import TrainConfig, replicate
from dcgan.files import write_rows
from dcgan.lanes import join_lanes
from dcgan.loop import train
from dcgan.schema import CHECKPOINT_FILE

CONFIG = TrainConfig(
    dataset="mnist-mini",
    image_size=16,
    generator_width=2,
    discriminator_width=2,
    batch_size=1000,
    epochs=1,
    ema_decay=0.5,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of one epoch. Read it only."""
    folder = tmp_path_factory.mktemp("trained")
    train([CONFIG], report=lambda row: None, checkpoint_dir=folder, device=CPU)
    return folder / CHECKPOINT_FILE


def content_of(path: Path) -> dict[str, Any]:
    content = checkpoint.load(path)
    assert content.pop("version") == 4
    return content


def same(a: Any, b: Any) -> bool:
    """Whether two contents are equal in every key, value, tensor and type."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def damaged(path: Path) -> str:
    """Pattern of the message about a file that cannot be read."""
    return f"^{re.escape(str(path))} is damaged, truncated or no checkpoint of dcgan"


# --- saving


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    rows = [{"lane": 0, "epoch": 1, "fid": 3.5, "collapsed": True, "device": "cpu"}]
    tensors = {
        "w": torch.randn(3, 4),
        "n": torch.tensor(7),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    states = [{"generator": tensors, "rngs": [torch.Generator().get_state()], "updates": 8}]
    best = {"epoch": 1, "fid": 3.5, "lane": 0, "generator": tensors}
    folder = tmp_path / "new" / "run"
    saved = checkpoint.save(folder, [CONFIG], CPU, states, rows, best)
    assert saved == folder / "checkpoint.pt"
    expected = {"lanes": [CONFIG.to_dict()], "device": "cpu"}
    expected |= {"states": states, "rows": rows, "best": best}
    assert same(content_of(folder), expected)
    assert same(content_of(folder / "checkpoint.pt"), expected)
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]


def test_a_run_is_saved_and_loaded_unchanged(trained: Path, tmp_path: Path) -> None:
    content = content_of(trained)
    assert content["lanes"] == [CONFIG.to_dict()]
    assert [row["epoch"] for row in content["rows"]] == [1]
    checkpoint.write(tmp_path / CHECKPOINT_FILE, {"version": 4, **content})
    assert same(content_of(tmp_path), content)


@contextlib.contextmanager
def file_size_limit() -> Iterator[None]:
    """Makes the system refuse part way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_FILE
    checkpoint.write(path, {"version": 4, "epoch": 1, "weights": torch.ones(10)})
    before = path.read_bytes()
    with pytest.raises(OSError, match="File too large"), file_size_limit():
        checkpoint.write(path, {"version": 4, "epoch": 2, "weights": torch.ones(100_000)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    checkpoint.write(path, {"version": 4, "epoch": 3, "rows": [], "weights": torch.ones(100_000)})
    assert content_of(path)["epoch"] == 3


def test_a_file_without_rows_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / CHECKPOINT_FILE, {"version": 4, "lanes": []})
    with pytest.raises(ValueError, match=r"checkpoint\.pt is no checkpoint .*: it has no rows$"):
        checkpoint.load(tmp_path)


def test_rows_are_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old\n" * 5)
    rows = [{"epoch": 1, "fid": 2.5}, {"epoch": 2, "fid": 1.5, "device": "cpu"}]
    write_rows(path, rows)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    with pytest.raises(OSError, match="File too large"), file_size_limit():
        write_rows(path, rows * 1000)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["result.json", CHECKPOINT_FILE])
def test_processes_that_write_one_file_do_not_share_an_unfinished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.extend(path.name for path in tmp_path.glob("*.tmp"))
    )
    for pid in (11, 12):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        if name == CHECKPOINT_FILE:
            checkpoint.write(tmp_path / name, {"epoch": 1})
        else:
            write_rows(tmp_path / name, [{"epoch": 1}])
    stem = name.split(".")[0]
    assert synced == [f"{stem}.11.tmp", f"{stem}.12.tmp"]


# --- damage


@pytest.mark.parametrize("twelfths", range(12))
def test_a_truncated_file_is_named(trained: Path, tmp_path: Path, twelfths: int) -> None:
    content = trained.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: len(content) * twelfths // 12])
    with pytest.raises(ValueError, match=damaged(path)):
        checkpoint.load(path)


@pytest.mark.parametrize("missing", [1, 10, 100])
def test_a_file_without_its_last_bytes_is_named(
    trained: Path, tmp_path: Path, missing: int
) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(trained.read_bytes()[:-missing])
    with pytest.raises(ValueError, match=damaged(path)):
        checkpoint.load(path)


def stored(path: Path) -> list[int]:
    """Offsets of every byte that belongs to a stored object, rather than to the archive around
    it."""
    content = path.read_bytes()
    offsets: list[int] = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name_length, extra_length = struct.unpack_from("<HH", content, entry.header_offset + 26)
            start = entry.header_offset + 30 + name_length + extra_length
            offsets += range(start, start + entry.file_size)
    return offsets


@pytest.mark.parametrize("bits", [0x01, 0xFF])
@pytest.mark.parametrize("twelfths", range(12))
def test_a_flipped_byte_in_what_is_stored_is_noticed(
    trained: Path, tmp_path: Path, twelfths: int, bits: int
) -> None:
    content, offsets = bytearray(trained.read_bytes()), stored(trained)
    content[offsets[(len(offsets) - 1) * twelfths // 11]] ^= bits
    path = tmp_path / "flipped.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=damaged(path)):
        checkpoint.load(path)


def refused_or_equal(path: Path, original: Any) -> bool:
    """Whether a file is refused by name; if not, what is loaded has to be what was saved."""
    try:
        found = checkpoint.load(path)
    except ValueError as error:
        assert str(error).startswith(str(path))  # noqa: PT017, since not every flip does harm
        return True
    assert same(found, original)
    return False


def test_a_flipped_bit_anywhere_is_noticed_or_does_no_harm(trained: Path, tmp_path: Path) -> None:
    """Within records the archive's CRCs see it; around them are times and other things that nobody
    reads."""
    original, path = trained.read_bytes(), tmp_path / "flipped.pt"
    saved = checkpoint.load(trained)
    rng = random.Random(0)
    places = [rng.randrange(len(original)) for _ in range(400)]
    # the directories before and after, where a flip changes what is read
    places += [rng.randrange(1500) for _ in range(300)]
    places += [len(original) - 1 - rng.randrange(6000) for _ in range(600)]
    refused = 0
    for place in places:
        content = bytearray(original)
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        refused += refused_or_equal(path, saved)
    assert refused > 0.7 * len(places)


def in_directory(content: bytes, field: int) -> int:
    """Offset of a field in the central directory's entry of the first weights."""
    return content.rindex(b"PK\1\2", 0, content.rindex(b"archive/data/0")) + field


@pytest.mark.parametrize(
    ("find", "bit"),
    [
        pytest.param(lambda content: in_directory(content, 38), 0x10, id="read as a folder"),
        pytest.param(lambda content: in_directory(content, 10), 0x08, id="read as compressed"),
        pytest.param(lambda content: in_directory(content, 46), 0x80, id="name is no UTF-8"),
        pytest.param(lambda content: content.rindex(b"PK\6\6") + 50, 0x40, id="place of directory"),
    ],
)
def test_a_flipped_bit_in_the_directory_is_noticed(
    trained: Path, tmp_path: Path, find: Callable[[bytes], int], bit: int
) -> None:
    content = bytearray(trained.read_bytes())
    content[find(bytes(content))] ^= bit
    path = tmp_path / "flipped.pt"
    path.write_bytes(content)
    assert refused_or_equal(path, checkpoint.load(trained))


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_file_is_not_executed(tmp_path: Path) -> None:
    path, trap = tmp_path / "evil.pt", tmp_path / "executed"
    torch.save({"version": 4, "lanes": Malicious(trap)}, path)
    with pytest.raises(
        ValueError,
        match=f"^{re.escape(str(path))} is no checkpoint of dcgan: it holds more than tensors",
    ):
        checkpoint.load(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap works


def test_pytorch_alone_can_read_a_checkpoint(trained: Path) -> None:
    assert torch.load(trained, weights_only=True)["lanes"] == [CONFIG.to_dict()]


@pytest.mark.parametrize(
    "content", [{}, {"weights": torch.ones(2)}, [1, 2], 3, "text", None, torch.tensor(1.0)]
)
def test_other_content_is_no_checkpoint(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} has checkpoint version None"):
        checkpoint.load(path)


def test_other_files_are_no_checkpoint(tmp_path: Path) -> None:
    text, old, plain = tmp_path / "text.pt", tmp_path / "old.pt", tmp_path / "plain.zip"
    text.write_text("epoch 1")
    torch.save({"version": 1}, old, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("readme", "epoch 1")
    for path in (text, old, plain):
        with pytest.raises(ValueError, match=damaged(path)):
            checkpoint.load(path)


@pytest.mark.parametrize("version", [1, 3, 5])
def test_another_version_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"version": version}, path)
    message = f"{path} has checkpoint version {version}; this code reads version 4"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checkpoint.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match=f"^no checkpoint at {re.escape(str(path))}"):
            checkpoint.load(path)


# --- resuming and reading back


def test_a_checkpoint_of_the_version_before_is_refused_by_its_version(tmp_path: Path) -> None:
    """It had its sha256 as the archive's comment."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"version": 3, "weights": torch.ones(5)}, path)
    body = path.read_bytes()[:-2] + (32).to_bytes(2, "little")
    path.write_bytes(body + hashlib.sha256(body).digest())
    message = f"{path} has checkpoint version 3; this code reads version 4"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checkpoint.load(path)


def test_only_epochs_may_change(tmp_path: Path) -> None:
    saved = {"lanes": [CONFIG.to_dict()], "rows": [{}] * 3}
    longer = dataclasses.replace(CONFIG, epochs=50)
    checkpoint.check_same_run(tmp_path, saved, [longer])
    other = dataclasses.replace(longer, generator_lr=1e-3, seed=4)
    message = (
        f"{tmp_path} belongs to another config: generator_lr was 0.0002, is 0.001; "
        f"seed was 0, is 4; only epochs may change on resuming"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checkpoint.check_same_run(tmp_path, saved, [other])
    message = f"epochs is 2; {tmp_path} has trained 3 already, so allowed is at least 3"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checkpoint.check_same_run(tmp_path, saved, [dataclasses.replace(CONFIG, epochs=2)])
    with pytest.raises(ValueError, match=r"belongs to another config: it has 1 lanes, not 2$"):
        checkpoint.check_same_run(tmp_path, saved, replicate(CONFIG, 2))
    del saved["lanes"][0]["penalty"]  # of code that had none, as it is by default
    checkpoint.check_same_run(tmp_path, saved, [longer])
    with pytest.raises(ValueError, match=r"penalty was 0\.0, is 1\.0;"):
        checkpoint.check_same_run(tmp_path, saved, [dataclasses.replace(longer, penalty=1.0)])


def test_epochs_of_several_lanes_are_counted_once(tmp_path: Path) -> None:
    lanes = replicate(CONFIG, 2)
    saved = {"lanes": [lane.to_dict() for lane in lanes], "rows": [{}] * 6}
    checkpoint.check_same_run(tmp_path, saved, replicate(dataclasses.replace(CONFIG, epochs=3), 2))
    with pytest.raises(ValueError, match="has trained 3 already"):
        checkpoint.check_same_run(tmp_path, saved, lanes)


def test_a_run_of_another_config_is_not_resumed(trained: Path) -> None:
    other = dataclasses.replace(CONFIG, discriminator_lr=1e-3)
    with pytest.raises(ValueError, match=r"discriminator_lr was 0\.0002, is 0\.001;"):
        train([other], report=lambda row: None, resume_from=trained, device=CPU)


def test_the_best_or_the_last_generator_is_loaded(trained: Path, tmp_path: Path) -> None:
    content = checkpoint.load(trained)
    lanes = replicate(CONFIG, 3)
    (state,) = content["states"]
    best, last, live, second = ({k: v + i for k, v in state["generator"].items()} for i in range(4))
    both, averages = join_lanes([live, second]), {"average": join_lanes([last, second])}
    rngs = state["rngs"] * 2
    rows = [{"epoch": epoch} for epoch in (1, 2, 3) for _ in lanes]
    for average, expected in ((averages, last), ({}, live)):
        states = [{"generator": both, "rngs": rngs, **average}]
        states.append({"generator": second, "rngs": rngs[:1]})
        found_best = {"epoch": 2, "lane": 1, "generator": best}
        checkpoint.save(tmp_path, lanes, CPU, states, rows, found_best)
        cases = ((False, best, 2, lanes[1]), (True, expected, 3, lanes[0]))
        for use_last, weights, epoch, lane in cases:
            generator, config, found = checkpoint.load_generator(tmp_path, last=use_last)
            assert (config, found) == (lane, epoch)
            assert same(dict(generator.state_dict()), weights)
