"""`dcgan.average`: averages made from a run's snapshots against averages kept as it trained."""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import few_digits  # noqa: F401 - registers a data set
import pytest
import torch
from torch import Tensor

import dcgan.average
import dcgan.sample
from dcgan import checkpoint, loop
from dcgan.average import Lane, average_of, read_lane
from dcgan.config import TrainConfig, replicate
from dcgan.loop import train
from dcgan.power import exponent
from dcgan.schema import ANSWER_FILE, AVERAGES_FOLDER, CHECKPOINT_FILE, SEARCH_FILE, Row
from dcgan.state import State, weights_to_evaluate

TINY = TrainConfig(
    dataset="few-digits",
    image_size=16,
    generator_width=2,
    discriminator_width=2,
    batch_size=50,
    generator_lr=1e-3,
    epochs=6,
    snapshots_every=1,
    seed=5,
)
TOLERANCES = {0.03: 0.3, 0.05: 1e-5, 0.07: 0.03, 0.1: 1e-5, 0.15: 0.03, 0.2: 0.05, 0.25: 0.15}
"""By length: of six snapshots, over how far the average is from the last weights."""
Direct = dict[tuple[int, float, str], Tensor]  # by lane, length and name of the weight


def follow(direct: Direct, group: Sequence[State]) -> None:
    """The paper's recursion, in float64, of each lane of a network and each length."""
    for state in group:
        t = int(state.updates)
        for lane, config in enumerate(state.lanes):
            weights = weights_to_evaluate(state, lane)
            for length in TOLERANCES:
                beta = (1 - 1 / t) ** (exponent(length) + 1)
                for name, weight in weights.items():
                    key = (config.seed, length, name)
                    before = direct.get(key, torch.zeros(()))
                    direct[key] = beta * before + (1 - beta) * weight.double()


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Direct]:
    """A run of two lanes, and averages of their weights that were kept at each update."""
    folder, direct = tmp_path_factory.mktemp("followed"), Direct()
    make = loop.make_update

    def make_and_follow(group: Sequence[State], *given: Any) -> loop.Update:
        update = make(group, *given)

        def update_and_follow(index: Tensor, noise: Tensor) -> None:
            update(index, noise)
            follow(direct, group)

        return update_and_follow

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcgan.loop.make_update", make_and_follow)
        train(replicate(TINY, 2), report=lambda row: None, checkpoint_dir=folder)
    return folder, direct


@pytest.fixture
def run(followed: tuple[Path, Direct], tmp_path: Path) -> Path:
    """A copy of that run, to be damaged."""
    return shutil.copytree(followed[0], tmp_path / "run")


def joined(weights: dict[str, Tensor]) -> Tensor:
    """Weights and statistics as one vector; counts of batches are no part of it."""
    return torch.cat([w.double().flatten() for name, w in weights.items() if "num" not in name])


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("length", TOLERANCES)
def test_an_average_is_the_one_kept_directly(
    length: float, number: int, followed: tuple[Path, Direct]
) -> None:
    """A kept length within float32's rounding, others the closer, the less their error."""
    folder, direct = followed
    lane = read_lane(folder, number)
    assert lane.updates == [32, 64, 96, 128, 160, 192]
    seed = TINY.seed + number
    expected = {name: w for (s, own, name), w in direct.items() if (s, own) == (seed, length)}
    generator, error = average_of(lane, length)
    assert error < TOLERANCES[length] + 0.11
    ours, theirs = joined(generator.state_dict()), joined(expected)
    missed = (ours - theirs).norm() / (theirs - joined(lane.last["last epoch"])).norm()
    assert missed < TOLERANCES[length]


def test_keeping_them_changes_no_row(followed: tuple[Path, Direct]) -> None:
    lanes = replicate(dataclasses.replace(TINY, snapshots_every=0), 2)
    plain = train(lanes, report=lambda row: None)
    for ours, theirs in zip(checkpoint.load(followed[0])["rows"], plain, strict=True):
        for name in ("generator_loss", "discriminator_loss", "fid", "path_length"):
            assert ours[name] == theirs[name]


def test_snapshots_are_of_every_nth_epoch(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, epochs=5, snapshots_every=2, batch_size=800)
    train([config], report=lambda row: None, checkpoint_dir=tmp_path)
    files = sorted(file.name for file in (tmp_path / AVERAGES_FOLDER).iterdir())
    assert files == ["epoch_002.pt", "epoch_004.pt"]
    assert read_lane(tmp_path).updates == [4, 8, 10]
    # of an epoch whose checkpoint was never written
    (tmp_path / AVERAGES_FOLDER / "epoch_006.pt").write_bytes(b"")
    assert read_lane(tmp_path).updates == [4, 8, 10]


def words(*arguments: object) -> list[str]:
    return ["average", *(str(argument) for argument in arguments)]


def test_of_a_search_the_best_trials_best_average_is_named_and_written(
    followed: tuple[Path, Direct],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    search = tmp_path / "search"
    shutil.copytree(followed[0], search / "trial_0007")
    (search / SEARCH_FILE).write_text("{}")
    (search / ANSWER_FILE).write_text('{"groups": [{"best": {"trial": "trial_0007"}}]}')
    lengths = ("--lengths", 0.05, 0.2)
    monkeypatch.setattr(sys, "argv", words(search, *lengths, "--lane", 1, "--out", out))
    dcgan.average.main()
    printed = capsys.readouterr().out
    table = {line[:16].strip(): line[16:].split() for line in printed.splitlines()}
    lane = read_lane(followed[0], 1)
    assert float(table["last epoch"][0]) == pytest.approx(lane.rows[-1]["fid"], rel=0.001)
    best_epoch = min(lane.rows, key=lambda row: float(row["fid"]))
    assert float(table[f"best epoch, {best_epoch['epoch']}"][0]) == pytest.approx(
        best_epoch["fid"], rel=0.001
    )
    best = min((0.05, 0.2), key=lambda length: float(table[f"length {length}"][0]))
    assert f"best: length {best}; fid " in printed
    generator, config, _ = checkpoint.load_generator(out)
    assert config == lane.config
    expected, _ = average_of(lane, best)
    for name, weight in generator.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name])
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"The average of length {best} (arXiv 2312.02696)" in card
    assert "against the test split" in card
    picture = tmp_path / "samples.png"
    monkeypatch.setattr(sys, "argv", ["sample", str(out), "--out", str(picture)])
    dcgan.sample.main()
    assert picture.is_file()


def test_the_plain_average_stands_beside_them(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, ema_decay=0.9, epochs=2, conditional="projection")
    train([config], report=lambda row: None, checkpoint_dir=tmp_path)
    lane, rows = read_lane(tmp_path), list[Row]()
    score = dcgan.average.Scorer(config, None, "validation")
    dcgan.average.score_averages(lane, (0.1,), score, rows.append)
    assert [row["which"] for row in rows] == ["last epoch", "ema_decay 0.9", "length 0.1"]
    assert rows[1]["fid"] == pytest.approx(lane.rows[-1]["fid"], rel=1e-6)
    assert "label_accuracy" in rows[2]


def test_a_variance_is_never_negative(followed: tuple[Path, Direct]) -> None:
    lane: Lane = read_lane(followed[0])
    for number, weights in enumerate(lane.snapshots):
        for name in [name for name in weights if name.endswith("running_var")]:
            weights[name] = weights[name] * 0 + number % 2
    generator, _ = average_of(lane, 0.02)
    for name, tensor in generator.state_dict().items():
        assert not name.endswith("running_var") or tensor.min() >= 0


def test_what_cannot_be_averaged_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--lane is 2; allowed is 0 to 1: the run's lanes"):
        read_lane(run, 2)
    snapshot = run / AVERAGES_FOLDER / "epoch_003.pt"
    whole = snapshot.read_bytes()
    for content in (b"", whole[:1000], whole[:2000] + b"x" + whole[2001:]):
        snapshot.write_bytes(content)
        with pytest.raises(ValueError, match=r"epoch_003\.pt is damaged, truncated or no"):
            read_lane(run)
    checkpoint.write(snapshot, {})
    with pytest.raises(ValueError, match=r"epoch_003\.pt is no snapshot of this run's averages$"):
        read_lane(run)
    snapshot.unlink()
    with pytest.raises(FileNotFoundError, match=r"^no snapshot of averages at .*epoch_003\.pt$"):
        read_lane(run)
    train([dataclasses.replace(TINY, snapshots_every=0, epochs=1)], **quietly(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"none has no snapshots of averages; train with --snap"):
        read_lane(tmp_path / "none")
    with pytest.raises(ValueError, match=r"checkpoint\.pt has no snapshots of averages; train"):
        read_lane(tmp_path / "none" / CHECKPOINT_FILE)


def quietly(folder: Path) -> dict[str, Any]:
    """Arguments of a run that reports to nobody."""
    return {"report": lambda row: None, "checkpoint_dir": folder}
