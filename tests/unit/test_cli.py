"""`dcgan.cli` and `dcgan.train`'s flags: one line for every error, exit codes, progress, and flags over file over defaults."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dcgan import checkpoint, cli
from dcgan.config import TrainConfig
from dcgan.schema import Row
from dcgan.train import make_parser, progress_line, read_config, recorded_threads, run


@pytest.fixture
def parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m thing")
    parser.add_argument("--count", type=int, required=True)
    return parser


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "many"], "argument --count: invalid int value: 'many'"),
        (["--count", "1", "--nope"], "unrecognized arguments: --nope"),
        ([], "the following arguments are required: --count"),
        (["--count", "1\n2"], "argument --count: invalid int value: '1\\n2'"),
    ],
)
def test_wrong_arguments_take_one_line_and_exit_code_2(
    parser: cli.Parser, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parser.parse_args(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"python -m thing: error: {message} (see python -m thing --help)\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("batch_size is 1"), 2, "batch_size is 1"),
        (FileNotFoundError("no checkpoint at x"), 2, "no checkpoint at x"),
        (PermissionError(13, "Permission denied", "/x"), 2, "[Errno 13] Permission denied: '/x'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 2, "'utf-8' codec can't decode byte 0xff in position 0: bad"),
        (FloatingPointError("training diverged"), 1, "training diverged"),
        (ValueError("first line\n  second line\n\n third"), 2, "first line second line third"),
    ],
)
def test_errors_of_a_user_take_one_line(
    parser: cli.Parser, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    with pytest.raises(SystemExit, match=f"^{code}$"), cli.one_line_errors(parser):
        raise error
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"python -m thing: error: {line}\n")


@pytest.mark.parametrize("error", [KeyError("lost"), AssertionError("lost"), RuntimeError("lost"), KeyboardInterrupt("lost")])
def test_other_errors_keep_their_traceback(parser: cli.Parser, error: BaseException) -> None:
    with pytest.raises(type(error), match="lost"), cli.one_line_errors(parser):
        raise error


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (8.2, "8 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (11_429, "3 h 10 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds: float, words: str) -> None:
    assert cli.duration(seconds) == words


ROW: Row = {
    "epoch": 5,
    "fid": 12.345,
    "generator_loss": 0.69314,
    "discriminator_loss": 1.2,
    "images_per_second": 12345.6,
    "collapsed": False,
}


@pytest.mark.parametrize(
    ("row", "epochs", "elapsed", "first", "line"),
    [
        (
            ROW,
            25,
            10.0,
            0,
            "epoch  5/25 ████░░░░░░░░░░░░░░░░ fid 12.35  G 0.693  D 1.200  12,346 images/s  40 s left",
        ),
        (  # resumed after epoch 4: one epoch took 10 s
            ROW | {"fid": 3},
            25,
            10.0,
            4,
            "epoch  5/25 ████░░░░░░░░░░░░░░░░ fid 3.00  G 0.693  D 1.200  12,346 images/s  3 min 20 s left",
        ),
        (
            ROW | {"collapsed": True},
            5,
            10.0,
            0,
            "epoch 5/5 ████████████████████ fid 12.35  G 0.693  D 1.200  12,346 images/s  0 s left  COLLAPSED",
        ),
    ],
)
def test_progress_line(row: Row, epochs: int, elapsed: float, first: int, line: str) -> None:
    assert progress_line(row, epochs, elapsed, first) == line


OTHER: dict[str, Any] = {
    "dataset": "mnist-mini",
    "image_size": 32,
    "channels": 3,
    "latent_size": 7,
    "generator_depth": 3,
    "discriminator_depth": 1,
    "generator_width": 8,
    "discriminator_width": 16,
    "extra_convs": 2,
    "optimizer": "rmsprop",
    "generator_lr": 1e-3,
    "discriminator_lr": 3e-4,
    "beta1": 0.9,
    "beta2": 0.99,
    "rmsprop_alpha": 0.9,
    "batch_size": 128,
    "epochs": 3,
    "precision": "bfloat16",
    "ema_decay": 0.999,
    "seed": 9,
    "replicas": 2,
}


def test_every_setting_has_a_flag() -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(TrainConfig)}
    baseline = TrainConfig().to_dict()
    for name, value in OTHER.items():
        flag = "--" + name.replace("_", "-")
        assert value != baseline[name]
        args = make_parser().parse_args([flag, str(value)])
        assert read_config(args).to_dict() == baseline | {name: value}
        assert flag in make_parser().format_help()


def test_flags_win_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "my.json"
    file.write_text(json.dumps({"epochs": 7, "batch_size": 32, "ema_decay": 0.5}))
    args = make_parser().parse_args(["--config", str(file), "--batch-size", "128", "--ema-decay", "0", "--out", str(tmp_path)])
    assert read_config(args) == TrainConfig(epochs=7, batch_size=128)


def test_a_resumed_run_keeps_its_config(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(OTHER))
    args = make_parser().parse_args(["--resume", "--out", str(tmp_path), "--epochs", "30"])
    assert read_config(args).to_dict() == OTHER | {"epochs": 30}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1"], "batch_size is 1"),
        (["--generator-lr", "nan"], "generator_lr is nan"),
        (["--config", "nowhere.json"], "no config at nowhere.json"),
        (["--resume", "--out", "nowhere"], "no config at nowhere"),
    ],
)
def test_a_bad_setting_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_config(make_parser().parse_args(arguments))


def test_a_choice_that_is_none_is_refused_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        make_parser().parse_args(["--optimizer", "sgd"])
    assert re.search("invalid choice: 'sgd'.*adam.*rmsprop", capsys.readouterr().err)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    checkpoint.save({"history": []}, tmp_path)
    args = make_parser().parse_args(["--out", str(tmp_path)])
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))} already holds a run; go on with it by --resume"):
        run(args)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_a_refused_resumption_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    checkpoint.save({"history": [], "config": OTHER}, tmp_path)
    before = json.dumps(OTHER)
    (tmp_path / "params.json").write_text(before)
    args = make_parser().parse_args(["--resume", "--out", str(tmp_path), "--batch-size", "9000", "--precision", "float32"])
    with pytest.raises(ValueError, match=r"belongs to another config: .*batch_size was \d+, is 9000"):
        run(args)
    assert (tmp_path / "params.json").read_text() == before


@pytest.mark.parametrize(
    ("content", "threads"),
    [
        (b'{"epoch": 1, "threads": 3}\n{"epoch": 2, "threads": 4}\n', 3),
        (b'{"epoch": 1, "threads": 3}\n{"epo', 3),
        (b'{"epoch": 1}\n', None),  # of older code
        *((b'{"threads": %s}' % value, None) for value in (b"0", b"-1", b"true", b"2.0", b'"2"', b"null")),
        *((damaged, None) for damaged in (b"", b"\n", b'{"threads": 3', b"[3]", b"3", b"\xff\xfe")),
    ],
)
def test_threads_are_read_from_the_first_row(tmp_path: Path, content: bytes, threads: int | None) -> None:
    (tmp_path / "result.json").write_bytes(content)
    assert recorded_threads(tmp_path) == threads


def test_without_rows_there_are_no_threads(tmp_path: Path) -> None:
    (tmp_path / "best.json").touch()
    assert recorded_threads(tmp_path) is None
    assert recorded_threads(tmp_path / "best.json") is None
