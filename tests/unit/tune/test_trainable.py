"""What a trial does in its folder: means over lanes, trials that are given up, damaged
checkpoints."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dcgan import checkpoint
from dcgan.config import TrainConfig, replicate
from dcgan.loop import train
from dcgan.schema import COLUMNS, OVER_LANES
from tune.trainable import Pace, check_collapse, mean_row, saved_rows

TINY = TrainConfig(
    dataset="mnist-mini",
    image_size=16,
    generator_width=2,
    discriminator_width=2,
    batch_size=2000,
    epochs=1,
)


def row(epoch: int, fid: float, **columns: Any) -> dict[str, Any]:
    return {"epoch": epoch, "fid": fid, **columns}


def test_an_epoch_is_the_mean_of_its_lanes() -> None:
    one = {"lane": 0, "epoch": 3, "generator_loss": 1.0, "fid": 10.0, "classes_covered": 9}
    one |= {"collapsed": False, "seconds_train": 2.0, "device": "cpu", "threads": 1}
    two = one | {"lane": 1, "generator_loss": 2.0, "fid": 13.0, "classes_covered": 7}
    two |= {"collapsed": True, "seconds_train": 3.0}
    assert mean_row([one, two]) == {
        "epoch": 3, "generator_loss": 1.5, "fid": 11.5, "classes_covered": 7, "collapsed": True,
        "seconds_train": 5.0, "device": "cpu", "threads": 1,
    }  # fmt: skip
    alone = mean_row([one])
    assert alone == {name: value for name, value in one.items() if name != "lane"}
    assert json.loads(json.dumps(alone)) == alone


def test_what_is_taken_over_lanes_otherwise_is_a_column() -> None:
    assert OVER_LANES.keys() <= COLUMNS.keys()


def test_real_rows_have_a_mean() -> None:
    rows = train(replicate(TINY, 2), report=lambda row: None, device=torch.device("cpu"))
    mean = mean_row(rows)
    assert mean.keys() == COLUMNS.keys() - {"lane"}
    assert mean["seconds_train"] == sum(row["seconds_train"] for row in rows)
    for name in ("epoch", "eval_samples", "eval_seed", "extractor", "images_seen", "threads"):
        assert mean[name] == rows[0][name] == rows[1][name]


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        ("", None),
        ("9", None),
        ("9c", None),
        ("9 8c", None),
        ("9 9c 9c", 2),  # covered once: two epochs suffice
        ("9 10c 11c", 2),
        ("9 10c 8c", None),  # better than before
        ("9 8c 9c", None),
        ("9 9.5c 9c", 2),  # as good is no better
        ("9 10c 11", None),
        ("10c 9 11c", None),
        ("10c 9 11c 12", None),
        ("10c 9 11c 12c", 2),
        ("8c 9 8c 8.5c", 2),  # worse than when it was collapsed
        ("9 20c 7c 8c", None),  # the last two are better than all before
        ("9 20c 8c 8c 8.5c", 2),
        ("9c 9c 9c 9c", None),  # never covered: four
        ("9c 9c 9c 9c 9c", 4),
        ("9c 9c 9c 9c 8.9c", None),
        ("9c 8c 9c 9c 9c 7c", None),
        ("9c 7c 9c 9c 9c 8c", 4),
    ],
)
def test_a_collapse_for_good(rows: str, lost: int | None) -> None:
    """Scores by epoch, with a `c` where collapsed, at a patience of two."""
    history = [
        row(i, float(text.strip("c")), collapsed="c" in text)
        for i, text in enumerate(rows.split(), 1)
    ]
    if lost is None:
        check_collapse(history, patience=2)
        return
    message = f"^collapsed for {lost} epochs in a row and no better, up to epoch {len(history)}$"
    with pytest.raises(FloatingPointError, match=message):
        check_collapse(history, patience=2)


def test_a_damaged_checkpoint_is_put_aside(tmp_path: Path) -> None:
    assert saved_rows(tmp_path) == []
    rows = [row(1, 2.0)]
    file = checkpoint.save(tmp_path, [TINY], torch.device("cpu"), [], rows, {})
    whole = file.read_bytes()
    assert saved_rows(tmp_path) == rows
    middle = len(whole) // 2
    # in a record: what lies between records is padding, where a change does no harm
    inside = whole.index(b"mnist-mini")
    flipped = whole[:inside] + b"x" + whole[inside + 1 :]
    for damaged in (whole[:middle], flipped, b"", b"noise"):
        file.write_bytes(damaged)
        assert saved_rows(tmp_path) == []
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.damaged"]
        assert (tmp_path / "checkpoint.damaged").read_bytes() == damaged
    assert saved_rows(tmp_path) == []


def test_rows_of_an_earlier_version_have_the_columns_of_today(tmp_path: Path) -> None:
    """So that a search that it began goes on, whatever its objectives."""
    before = {"lane": 0, "epoch": 1, "fid": 2.0, "digits_covered": 9, "digit_kl": 0.1}
    checkpoint.save(tmp_path, [TINY], torch.device("cpu"), [], [before], {})
    assert saved_rows(tmp_path) == [
        {"lane": 0, "epoch": 1, "fid": 2.0, "classes_covered": 9, "class_kl": 0.1}
    ]


def test_uploads_take_at_most_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch takes a second, an upload two: it is worth one every forty seconds, and at epochs
    that must not be lost."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace, put = Pace([3, 100]), []

    def upload() -> None:
        now[0] += 2
        put.append(epoch)

    for epoch in range(1, 101):
        now[0] += 1
        pace.keep(epoch, upload)
    assert put == [1, 3, 43, 83, 100]


def test_uploads_that_cost_nothing_are_made_each_epoch() -> None:
    pace, put = Pace([]), []
    for epoch in range(5):
        pace.keep(epoch, partial(put.append, epoch))
        time.sleep(0.01)
    assert put == [0, 1, 2, 3, 4]
