"""Bad input to every command line: exit code 2, one line that names it, nothing written, soon."""

import importlib
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

READERS = ("tables", "confirm", "importance", "claims", "report", "rungs")
"""Command lines of `analysis` that take a search."""
REFUSED: dict[str, list[tuple[str, str]]] = {
    "dcgan.train": [
        ("--epochs 0", "epochs is 0; allowed is 1 to 100000: each keeps a row"),
        ("--epochs x", "argument --epochs: invalid int value: 'x'"),
        ("--epochs 10000000000000000000000", "epochs is 10000000000000000000000"),
        (
            "--batch-size 9000 --dataset mnist-mini",
            "batch_size is 9000; the training split of mnist-mini holds 8000 images",
        ),
        ("--batch-size 1", "batch_size is 1; batch norm needs at least 2 images a batch"),
        ("--config nope", "no config at nope"),
        (
            "--config a.json",
            "a.json is not valid JSON: Expecting ',' delimiter: line 1 column 5 (char 4)",
        ),
        ("--config b.json", "b.json: unknown config key 'lr'"),
        ("--config c.json", "c.json: there are no lanes; expected at least one config"),
        ("--config d.json", "d.json: it holds int; expected a JSON object of config keys"),
        ("--config e.json", "e.json: lane 1 has batch_size 3, lane 0 64"),
        (
            "--config bin",
            "bin is not valid JSON: 'utf-8' codec can't decode byte 0x80 in positio",
        ),
        ("--config empty", "no config at empty"),
        ("--resume", "no config at runs/train"),
        (
            "--resume --out file",
            "file is not valid JSON: Expecting value: line 1 column 1 (char 0)",
        ),
        ("--out file --dataset mnist-mini", "--out is file (File exists); choose another folder"),
        ("--replicas 0", "replicas is 0; allowed is 1 to 64"),
        ("--replicas 1000", "replicas is 1000; allowed is 1 to 64"),
        ("--samples-every -1", "--samples-every is -1; allowed is at least 0"),
        ("--generator-width {big}", "argument --generator-width: invalid int value: '{big}'"),
        (
            "--generator-lr nan",
            "generator_lr is nan; allowed is a finite number above 0, such as 2e-4",
        ),
        (
            "--generator-lr inf",
            "generator_lr is inf; allowed is a finite number above 0, such as 2e-4",
        ),
        ("--image-size 17", "image_size is 17"),
        ("--precision float16", "precision float16 needs a CUDA GPU, and this run is on the cpu"),
        (
            "--dataset mnist --data-dir m",
            "m/MNIST/raw/train-images-idx3-ubyte.gz is damaged or truncated (its sha256 is wrong)",
        ),
        (
            "--dataset mnist --data-dir file",
            "MNIST is not in file/MNIST/raw and could not be fetched",
        ),
        ("--seed -1", "seed is -1; allowed is 0 to 4294967295"),
        ("--foo", "unrecognized arguments: --foo"),
        ("pos", "unrecognized arguments: pos"),
        (
            "--out /proc/x --dataset mnist-mini",
            "--out is /proc/x (No such file or directory); choose another folder",
        ),
        ("--latent-size 0", "latent_size is 0; allowed is 1 to 4096"),
        ("--generator-depth 9", "generator_depth is 9; allowed is 1 to 3"),
    ],
    "dcgan.sample": [
        ("", "the following arguments are required: checkpoint"),
        ("nope", "no checkpoint at nope"),
        ("file", "file is damaged, truncated or no checkpoint of dcgan; use another one"),
        ("bin", "bin is damaged, truncated or no checkpoint of dcgan; use another one"),
        ("empty", "no checkpoint at empty/checkpoint.pt"),
        ("file --count 0", "--count is 0; allowed is 1 to 10000: a grid is one picture in memory"),
        ("file --count 1000000000", "--count is 1000000000"),
        ("file --interpolate 1", "--interpolate is 1"),
        ("empty --label 3", "no checkpoint at empty/checkpoint.pt"),
        ("file --seed -1", "--seed is -1; allowed is 0 to 4294967295"),
    ],
    "dcgan.export": [
        ("", "the following arguments are required: run, --out"),
        ("nope --out o", "no checkpoint at nope"),
        ("file --out o", "file is damaged, truncated or no checkpoint of dcgan; use another one"),
        ("empty --out o", "no checkpoint at empty/checkpoint.pt"),
    ],
    "dcgan.average": [
        ("", "the following arguments are required: run"),
        ("nope", "no checkpoint at nope"),
        ("file", "file is damaged, truncated or no checkpoint of dcgan; use another one"),
        ("empty", "no checkpoint at empty/checkpoint.pt"),
        ("empty --lengths", "argument --lengths: expected at least one argument"),
        ("empty --lengths 0.05 x", "argument --lengths: invalid float value: 'x'"),
        ("empty --lengths 0.05 0", "--lengths is 0.0; allowed is 0.01 to 0.28"),
        ("empty --lengths nan", "--lengths is nan; allowed is 0.01 to 0.28"),
        ("empty --lengths 0.29", "--lengths is 0.29; allowed is 0.01 to 0.28"),
        ("empty --out file", "--out is file, which is a file; choose another folder"),
        ("empty --lane x", "argument --lane: invalid int value: 'x'"),
    ],
    "dcgan.bench": [
        ("--qualify", "--qualify and --out go together; give both or neither"),
        ("--out o", "--qualify and --out go together; give both or neither"),
        ("--ways sideways", "--ways is 'sideways'; allowed: grouped, grouped-nchw, patches"),
        ("--minutes 0", "--minutes is 0.0; allowed is a finite number above 0"),
        ("--widths 0", "generator_width is 0; allowed is 1 to 1024"),
        ("--widths x", "argument --widths: invalid int value: 'x'"),
        ("--repeats 0", "--repeats is 0; allowed is at least 1"),
        (
            "--json /proc/x/y.json",
            "--json is /proc/x/y.json (No such file or directory); choose another",
        ),
        ("--foo", "unrecognized arguments: --foo"),
    ],
    "dcgan.mnist_mini": [
        ("", "the following arguments are required: --data-dir"),
        ("--data-dir nope", "MNIST is not in nope/MNIST/raw and could not be fetched"),
        (
            "--data-dir m --out o",
            "m/MNIST/raw/train-images-idx3-ubyte.gz is damaged or truncated (its sha256 is wrong)",
        ),
    ],
    "tune.simulate": [
        ("--seeds 0", "--seeds is 0; allowed is 1 to 10000: all are simulated here"),
        ("--seeds 1000000000000", "--seeds is 1000000000000"),
        ("--workers 0", "--workers is 0; allowed is 1 to 10000: all are simulated here"),
        ("--workers 1000000000000", "--workers is 1000000000000"),
        ("--num-trials 0", "--num-trials is 0; allowed is 1 to 100000: all are simulated here"),
        ("--num-trials 10000000000000000000000", "--num-trials is 10000000000000000000000"),
        ("--grace-period 0", "--grace-period is 0; allowed is 1 to 12: the curves end there"),
        ("--grace-period 99", "--grace-period is 99; allowed is 1 to 12: the curves end there"),
        (
            "--curves nope",
            "nope is no table of curves ([Errno 2] No such file or directory: 'nope')",
        ),
        ("--curves file", "file is no table of curves (Input format not supported by decoder)"),
        ("--curves bin", "bin is no table of curves (Input format not supported by decoder)"),
        ("--curves empty", "empty is no table of curves ([Errno 21] Is a directory: 'empty')"),
        (
            "--search joint",
            "curves.csv.xz holds no curves of search joint",
        ),
    ],
    "tune.track": [
        ("", "the following arguments are required: run"),
        ("nope", "no search at nope: it has no search.json"),
        ("file", "no search at file: it has no search.json"),
        ("empty", "no search at empty: it has no search.json"),
        (
            "empty --wandb x",
            "argument --wandb: invalid choice: 'x' (choose from 'online', 'offline')",
        ),
        ("s3://", "no search at s3:: it has no search.json"),
        (
            "foo://x/y",
            "storage foo://x/y cannot be used: allowed: folders, s3://, gs://, what",
        ),
    ],
    "analysis.tables": [
        ("", "the following arguments are required: run"),
    ],
    "analysis.confirm": [
        ("", "the following arguments are required: run"),
    ],
    "analysis.importance": [
        ("", "the following arguments are required: run"),
    ],
    "analysis.claims": [
        ("", "the following arguments are required: RUN"),
        ("nope nope", "runs are nope, nope; expected at least one path, and each once"),
    ],
    "analysis.report": [
        ("", "the following arguments are required: run"),
        ("empty empty", "runs are empty, empty; expected at least one path, and each once"),
        ("nope --out file", "no results at nope"),
    ],
    "analysis.rungs": [
        ("", "the following arguments are required: run"),
    ],
    "tune.run": [
        ("", "--search is missing"),
        (
            "--search x",
            "argument --search: invalid choice: 'x' (choose from 'baseline', 'hpara",
        ),
        ("--resume empty/", "no search 'empty' in runs; there: none"),
        ("--resume ''", "--resume is empty; leave it out, or give it a value"),
        ("--resume x --storage file", "no search 'x' in file; there: none"),
        ("--search hparams --name ''", "--name is empty; leave it out, or give it a value"),
        ("--search hparams --name a/b", "--name is 'a/b'"),
        (
            "--search hparams --name {long}",
            "--name is 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        ),
        (
            "--search hparams --num-trials 10000000000000000000000",
            "--num-trials is 10000000000000000000000",
        ),
        (
            "--search hparams --confirm 1000000",
            "--confirm is 1000000; allowed is up to the 15 trials of the search",
        ),
        ("--search hparams --confirm-seeds 1000000", "--confirm-seeds is 1000000"),
        (
            "--search hparams --epochs 10000000000000000000000",
            "--epochs is 10000000000000000000000",
        ),
        ("--search hparams --max-concurrent -5", "--max-concurrent is -5; allowed is at least 1"),
        (
            "--search hparams --set beta1",
            "--set is 'beta1'; expected KEY=VALUE, such as ema_decay=0.999",
        ),
        ("--search hparams --set beta1=x", "beta1 is 'x', a str; expected float"),
        ("--search hparams --set 'beta1=[1]'", "beta1 is [1], a list; expected float"),
        ("--search hparams --set beta1=", "beta1 is '', a str; expected float"),
        ("--search hparams --set =", "unknown config key ''"),
        (
            "--search hparams --set beta1=1e999",
            "beta1 is inf; allowed is 0 up to, not including, 1",
        ),
        (
            "--search hparams --set batch_size=3",
            "batch_size cannot be fixed: search hparams varies generator_lr, batch_size, optimizer",
        ),
        ("--search hparams --set image_size=1e3", "image_size is 1000.0, a float; expected int"),
        ("--search hparams --storage file", "results cannot be written to file (Not a directory)"),
        ("--search hparams --storage s3://", "--storage is s3://"),
        ("--search hparams --storage foo://x", "storage foo://x/hparams-"),
        (
            "--search hparams --storage /proc/x",
            "results cannot be written to /proc/x (No such file or directory)",
        ),
        ("--search hparams --points-from nope", "no study at nope/study.db"),
        ("--search hparams --points-from file", "no study at file/study.db"),
        ("--search hparams --points-from empty", "no study at empty/study.db"),
        (
            "--search hparams --address local:1",
            "cannot join the Ray cluster at --address local:1: nothing answers at local:1",
        ),
        (
            "--search hparams --address 127.0.0.1:1",
            "cannot join the Ray cluster at --address 127.0.0.1:1: nothing answers at 127.0.0.1:1",
        ),
        ("--search hparams --address x", "--address is x"),
        (
            "--search hparams --dataset mnist --data-dir m",
            "m/MNIST/raw/train-images-idx3-ubyte.gz is damaged or truncated (its sha256 is wrong)",
        ),
        ("--search hparams --gpus-per-trial 0", "--gpus-per-trial is 0"),
        (
            "--search hparams --grace-period 100",
            "--grace-period is 100; allowed is up to the 9 epochs of a trial",
        ),
        ("--search hparams --width 99999", "generator_width is 99999; allowed is 1 to 1024"),
        ("--search hparams --width {big}", "argument --width: invalid int value: '{big}'"),
        (
            "--search hparams --objectives ''",
            "--objectives is empty; leave it out, or give it a value",
        ),
        ("--search hparams --objectives fid,fid", "--objectives is fid,fid"),
        (
            "--search hparams --sampler grid --num-trials 13",
            "--num-trials is 13; the grid of hparams has 12 settings",
        ),
        ("--search hparams --seed 4294967296", "--seed is 4294967296; allowed is 0 to 4294967295"),
        (
            "--search hparams --replicas 64 --seed 4294967291",
            "seed is 4294967296; allowed is 0 to 4294967295",
        ),
        (
            "--search hparams --resume x",
            "--search cannot go with --resume: the search keeps its own settings",
        ),
        (
            "--search hparams --wandb x",
            "argument --wandb: invalid choice: 'x' (choose from 'online', 'offline', 'disabled')",
        ),
        ("--search hparams --num-trials 1.5", "argument --num-trials: invalid int value: '1.5'"),
        ("--search hparams --set dataset=mnist", "--set dataset=mnist: use --dataset instead"),
        (
            "--search hparams --data-dir file --dataset mnist",
            "MNIST is not in file/MNIST/raw and could not be fetched",
        ),
        (
            "--search precision --set precision=float32",
            "precision cannot be fixed: search precision varies precision",
        ),
        (
            "--search baseline --points-from empty",
            "--points-from does not go with --sampler grid, whose settings are fixed",
        ),
    ],
}
NO_SEARCH = ["nope", "file", "bin", "empty", "s3://", "'a\x01b'", "foo://x/y"]
CASES = [(module, words, said) for module, cases in REFUSED.items() for words, said in cases]
CASES += [
    (f"analysis.{name}", words, " at ")
    for name in READERS
    for words in NO_SEARCH[:-1]
    if name != "confirm"
]
CASES += [("analysis.confirm", words, "no confirm stage in ") for words in NO_SEARCH[:-1]]
CASES += [(f"analysis.{name}", "foo://x/y", "Protocol not known: foo") for name in READERS]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of odd files, which is the current one, and a home beside it."""
    place = tmp_path / "place"
    raw = place / "m" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (place / "empty").mkdir()
    (place / "file").write_text("text")
    (place / "bin").write_bytes(bytes(range(256)) * 10)
    lanes = '[{"seed": 1}, {"seed": 2, "batch_size": 3}]'
    texts = {"a": "[1,2", "b": '{"lr": 1}', "c": "[]", "d": "3", "e": lanes}
    for name, text in texts.items():
        (place / f"{name}.json").write_text(text)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").write_bytes(b"x")
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return place


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """What changes when anything is written: of each file, its size and its time."""
    stats = {path: path.stat() for path in folder.rglob("*")}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("module", "words", "said"), CASES)
def test_bad_input_takes_one_line_and_writes_nothing(
    module: str, words: str, said: str, command: Any, place: Path
) -> None:
    long = {"big": "9" * 5000, "long": "x" * 300}
    before, begin = files(place), time.monotonic()
    main = importlib.import_module(module).main
    code, output, error = command(main, *shlex.split(words.format(**long)))
    assert time.monotonic() - begin < 10
    assert (code, output) == (2, "")
    assert error.startswith(f"python -m {module}: error: ")
    assert error.count("\n") == 1
    assert said.format(**long) in error.replace(f"{place}/", "")
    assert files(place) == before


def test_there_are_at_least_sixty_of_all_command_lines() -> None:
    assert len(CASES) >= 60
    found = {
        f"{path.parent.name}.{path.stem}"
        for room in ("dcgan", "tune", "analysis")
        for path in (Path(__file__).parents[2] / room).glob("*.py")
        if "\ndef main(" in path.read_text(encoding="utf-8")
    }
    assert found - {"dcgan.yardstick"} == {module for module, _, _ in CASES}
