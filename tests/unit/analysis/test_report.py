"""The report: one best, one protocol a ranking, numbers of the same epoch, everything escaped."""

import json
import re
import sqlite3
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import charts, report
from analysis.load import INTEGERS, RESULTS
from analysis.report import command, main, read, to_html, to_markdown, write
from dcgan.schema import ANSWER_FILE

STUDY = Path(__file__).parents[3] / "docs" / "study" / "runs.zip"
STATES = {"finished": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "unfinished": "RUNNING"}
ADAM, RMSPROP = {"optimizer": "adam"}, {"optimizer": "rmsprop"}
SCRIPT = "</script><script>throw 1</script>|x](y"

Trial = tuple[dict[str, Any], str, Sequence[dict[str, Any]]]


def make(folder: Path, trials: Sequence[Trial], **search: Any) -> Path:
    """A search's folder of trials: settings, status, and the results of each epoch that matter."""
    folder.mkdir(parents=True)
    about = {"search": "hparams", "axes": {"optimizer": "adam, rmsprop"}, "num_trials": len(trials)}
    (folder / "search.json").write_text(json.dumps(about | search))
    with sqlite3.connect(folder / "study.db") as study:
        study.execute("CREATE TABLE trials (number INTEGER, state TEXT)")
        states = [(number, STATES[status]) for number, (_, status, _) in enumerate(trials)]
        study.executemany("INSERT INTO trials VALUES (?, ?)", states)
    study.close()
    for number, (settings, status, epochs) in enumerate(trials):
        trial = folder / f"trial_{number:04d}"
        trial.mkdir()
        known = {"dataset": "mnist-mini", "epochs": 2, "seed": 0} | settings
        (trial / "params.json").write_text(json.dumps(known))
        rows = [
            dict.fromkeys(RESULTS, 0.5)
            | dict.fromkeys(INTEGERS, 1)
            | {"lane": 0, "collapsed": False, "device": "cpu", "fid_real": 0.26}
            | {"eval_split": "validation", "extractor": "abc", "eval_samples": 2000}
            | {"epoch": epoch, **own}
            for epoch, own in enumerate(epochs, start=1)
        ]
        (trial / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if status == "failed":
            (trial / "error.txt").write_text(f"FloatingPointError: {SCRIPT}\n")
    return folder


def fids(*values: float) -> list[dict[str, Any]]:
    return [{"fid": value} for value in values]


def confirm(run: Path, scores: Sequence[tuple[float, float]], seeds: Sequence[int]) -> None:
    """A confirm stage of the run's first trial and the baseline, with each seed's scores on
    validation and test, one candidate after the other."""
    candidates = [
        {"trial": "trial_0000", "estimate": 5.0, "baseline": False},
        {"trial": None, "estimate": None, "baseline": True},
    ]
    trials: list[Trial] = [(ADAM, "finished", fids(99.0, score)) for score, _ in scores]
    folder = make(run / "confirm", trials, candidates=candidates, seeds=list(seeds))
    for number, (_, test) in enumerate(scores):
        path = folder / f"trial_{number:04d}" / "test.json"
        path.write_text(json.dumps({"fid": test}))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and Vega itself take a second each; they are made in tests/integration."""
    monkeypatch.setattr(charts, "png_of", lambda spec: json.dumps(spec).encode())
    monkeypatch.setattr(report, "vega", str)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A search whose lowest fid is a stopped trial's."""
    trials: list[Trial] = [
        (ADAM, "finished", fids(9.0, 5.0)),
        (RMSPROP, "finished", fids(8.0, 7.0)),
        (RMSPROP, "stopped", fids(3.0)),
        (ADAM, "failed", []),
    ]
    return make(tmp_path / "hparams", trials)


def answer_of(*paths: Path) -> dict[str, Any]:
    return read([str(path) for path in paths]).answer


def markdown_of(*paths: Path) -> str:
    return to_markdown(read([str(path) for path in paths]))[0]


def rows_of(markdown: str, first: str) -> list[dict[str, str]]:
    """The rows of the table whose first column has this name."""
    lines = markdown.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    cells = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_other_columns_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    """Not each column's own best: the minima are 0 and .1."""
    epochs = [
        {"fid": 9.0, "sample_coverage": 0.0, "sharpness": 0.1},
        {"fid": 5.0, "sample_coverage": 0.3, "sharpness": 0.9},
    ]
    trials: list[Trial] = [(ADAM, "finished", epochs), (RMSPROP, "finished", epochs)]
    run = make(tmp_path / "hparams", trials)
    for row in rows_of(markdown_of(run), "setting"):
        assert (row["sample_coverage"], row["sharpness"]) == ("0.300", "0.9")
    (group,) = answer_of(run)["groups"]
    for level in group["runs"][0]["levels"]["optimizer"]:
        assert (level["sample_coverage"], level["sharpness"], level["mean"]) == (0.3, 0.9, 5.0)


def test_nets_that_are_given_labels_stand_beside_those_without(tmp_path: Path) -> None:
    """The best one's accuracy at its first and its best epoch, not its last; means of all."""
    plain = [
        (ADAM | {"conditional": "none"}, "finished", fids(20.0, x)) for x in (10.0, 12.0, 14.0)
    ]
    given = []
    for best in (4.0, 5.0, 6.0):
        epochs = [
            {"fid": 9.0, "label_accuracy": 0.3},
            {"fid": best, "label_accuracy": 0.9 - best / 100},
            {"fid": 8.0, "label_accuracy": 0.95},
        ]
        given.append((ADAM | {"conditional": "concat", "epochs": 3}, "finished", epochs))
    runs = [make(tmp_path / "plain", plain), make(tmp_path / "given", given)]
    assert answer_of(runs[0])["groups"][0]["labels"] is None
    (group,) = answer_of(*runs)["groups"]
    labels = group["labels"]
    assert (labels["run"], labels["trial"]) == ("given", "trial_0000")
    shown = [(row["epoch"], row["fid"], row["label_accuracy"]) for row in labels["epochs"]]
    assert shown == [(1, 9.0, 0.3), (2, 4.0, pytest.approx(0.86))]
    assert {row["conditional"]: row["mean"] for row in labels["levels"]} == {
        "none": 12.0,
        "concat": 5.0,
    }
    text = markdown_of(*runs)
    assert "## Labels" in text
    (concat, none) = sorted(rows_of(text, "conditional"), key=lambda row: row["conditional"])
    assert concat["fid, mean"] == "5.0 [2.5, 7.5]"  # 4.303 / 3 ** 0.5 on both sides
    assert concat["fid, difference from the best"] == "best"
    assert none["fid, difference from the best"].startswith("+7.0 [")
    alone = markdown_of(runs[1])
    assert "These runs have none without, to compare with" in alone


@pytest.mark.parametrize(
    ("search", "setting", "column"),
    [
        ("hparams", "optimizer", "sample_coverage"),
        ("hparams", "optimizer", "images_per_second"),
        ("architecture", "generator_depth", "sharpness"),
    ],
)
def test_the_pages_numbers_are_those_of_ten_lines_of_pandas(
    search: str, setting: str, column: str, tmp_path: Path
) -> None:
    """Of docs/study, whose page once said 0.0005 and 0.0066, 2,960 and 2,934, .306 and .434."""
    with zipfile.ZipFile(STUDY) as archive:
        archive.extractall(tmp_path)
    values: dict[str, list[float]] = {}
    for trial in (tmp_path / search).glob("trial_*"):
        level = json.loads((trial / "params.json").read_text())[setting]
        table = pd.read_json(trial / "result.json", lines=True)
        lanes = pd.DataFrame(table["by_replica"].to_list()).apply(pd.Series.explode)
        lanes["lane"] = lanes.groupby(level=0).cumcount()
        speed = table["images_per_second"].repeat(4).to_numpy()
        known = lanes.assign(images_per_second=speed).reset_index(drop=True).astype(float)
        best = known.loc[known.groupby("lane")["fid"].idxmin()]
        values.setdefault(str(level), []).extend(best[column])
    means = {level: sum(own) / len(own) for level, own in values.items()}
    form = {"sample_coverage": ".3f", "images_per_second": ",.0f", "sharpness": ".3g"}[column]
    rows = rows_of(markdown_of(tmp_path / search), "setting")
    shown = {row["level"]: row[column] for row in rows if row["setting"] == setting}
    assert shown == {level: f"{mean:{form}}" for level, mean in means.items()}
    right = {
        "sample_coverage": {"adam": 0.101, "rmsprop": 0.121},
        "images_per_second": {"adam": 3698, "rmsprop": 3786},
        "sharpness": {"2": 0.993, "3": 0.928},
    }
    assert means == pytest.approx(right[column], rel=1e-2)


def test_the_best_is_one_that_finished_wherever_it_is_named(run: Path) -> None:
    said = read([str(run)])
    (group,) = said.answer["groups"]
    expected = {"run": "hparams", "trial": "trial_0000", "value": 5.0, "epoch": 2, "seeds": [0]}
    expected["settings"] = ADAM | {"dataset": "mnist-mini", "epochs": 2}
    expected["confirmed"] = None
    assert group["best"] == group["runs"][0]["best"] == expected
    assert group["runs"][0]["trials"] == {"finished": 2, "stopped": 1, "failed": 1}
    text, _ = to_markdown(said)
    assert (
        "The best trial is trial_0000 of hparams: fid 5.0 after epoch 2, with optimizer adam."
        in text
    )
    assert "the best of 2 finished trials" in text
    assert rows_of(text, "rank")[0]["trial"] == "trial_0000"


def test_before_a_trial_has_finished_there_is_no_best(tmp_path: Path) -> None:
    run = make(tmp_path / "hparams", [(ADAM, "unfinished", fids(9.0))], num_trials=4)
    (group,) = answer_of(run)["groups"]
    assert group["best"] is None
    text = markdown_of(run)
    assert "No trial has finished all its epochs yet." in text
    assert "1 of 4 trials: 1 unfinished. This search still runs, or was interrupted" in text


def test_protocols_are_never_mixed(run: Path, tmp_path: Path) -> None:
    """Not even where the other data set's scores are lower."""
    full = make(tmp_path / "full", [(ADAM | {"dataset": "mnist"}, "finished", fids(2.0, 1.0))])
    test = make(tmp_path / "test", [(ADAM, "finished", [{"fid": 4.0, "eval_split": "test"}] * 2)])
    more = make(tmp_path / "more", [(ADAM, "finished", fids(6.0, 4.5))])
    small = make(tmp_path / "small", [(ADAM | {"image_size": 16}, "finished", fids(3.0, 2.0))])
    said = read([str(one) for one in (run, full, test, more, small)])
    answer = said.answer
    bests = {
        group["best"]["run"]: [one["name"] for one in group["runs"]] for group in answer["groups"]
    }
    alone = {name: [name] for name in ("full", "test", "small")}
    assert bests == {"more": ["hparams", "more"]} | alone
    assert [group["protocol"]["dataset"] for group in answer["groups"]] == [
        "mnist-mini",
        "mnist",
        "mnist-mini",
        "mnist-mini",
    ]
    text, _ = to_markdown(said)
    assert "These runs have 4 protocols or objectives." in text
    assert text.count("The best trial is ") == 4
    assert text.count("claims of the original study these runs find") == 4


def test_trials_of_another_protocol_in_a_run_are_left_out_and_named(tmp_path: Path) -> None:
    odd = [{"fid": 1.0, "extractor": "other"}] * 2
    trials: list[Trial] = [(ADAM, "finished", fids(9.0, 5.0))] * 2 + [(ADAM, "finished", odd)]
    run = make(tmp_path / "hparams", trials)
    answer = answer_of(run)
    assert answer["groups"][0]["best"]["value"] == 5.0
    assert answer["warnings"] == [f"{run}: trials of another protocol are left out: trial_0002"]
    assert f"Warning: {run}: trials of another protocol" in markdown_of(run)


def test_a_search_that_maximises_is_a_group_of_its_own(run: Path, tmp_path: Path) -> None:
    epochs = [{"fid": 9.0, "sample_coverage": 0.2}, {"fid": 5.0, "sample_coverage": 0.1}]
    goals = [{"column": "sample_coverage", "mode": "max"}]
    other = make(tmp_path / "other", [(ADAM, "finished", epochs)], objectives=goals)
    groups = answer_of(run, other)["groups"]
    assert [group["metric"] for group in groups] == ["fid", "sample_coverage"]
    assert (groups[1]["best"]["value"], groups[1]["best"]["epoch"]) == (0.2, 1)


def test_the_answer_is_plain_json_with_the_confirmed_values(run: Path, tmp_path: Path) -> None:
    confirm(run, [(6.0, 6.5), (8.0, 7.5), (20.0, 21.0), (22.0, 23.0)], seeds=[1, 2])
    page = write([str(run)], tmp_path / "out", page_only=True)
    assert {file.name for file in page.parent.iterdir()} == {"report.html", ANSWER_FILE}
    text = (page.parent / ANSWER_FILE).read_text()
    answer = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert answer["schema"] == 1
    assert answer["warnings"] == []
    (group,) = answer["groups"]
    assert group["protocol"] == {
        "dataset": "mnist-mini",
        "image_size": None,
        "channels": None,
        "eval_split": "validation",
        "eval_samples": 2000,
        "extractor": "abc",
    }
    first, baseline = group["runs"][0]["confirmed"]
    assert (first["trial"], first["validation"], first["validation_n"]) == ("trial_0000", 7.0, 2)
    assert first["validation_low"] == pytest.approx(
        7 - 12.706 * 1, rel=1e-3
    )  # t of 1 degree, sem 1
    assert first["difference"] == -15.0
    assert group["best"]["confirmed"] == first
    assert (baseline["baseline"], baseline["estimate"]) == (True, None)
    assert any("confirmed at 7.0" in sentence for sentence in group["runs"][0]["sentences"])
    assert sum(group["verdicts"].values()) == len(group["claims"]) > 20
    assert {"claim", "verdict", "effect", "low", "high", "n"} <= set(group["claims"][0])


def test_confirmed_values_are_told_once_and_shown(run: Path) -> None:
    confirm(run, [(6.0, 6.5), (8.0, 7.5), (20.0, 21.0), (22.0, 23.0)], seeds=[1, 2])
    text, files = to_markdown(read([str(run)]))
    assert text.count("was estimated at 5.0") == 1
    assert text.index("was estimated at 5.0") < text.index("## Hyperparameters")
    assert "no fresh seeds confirm it" not in text
    assert rows_of(text.split("fresh seeds?")[1], "rank")[0]["trial"] == "trial_0000"
    assert {"figures/hparams-confirm.png", "tables/hparams-confirm.csv"} <= set(files)


def test_names_settings_and_errors_are_escaped(tmp_path: Path) -> None:
    name = 'a"<script>throw 1<'
    trials: list[Trial] = [
        ({"optimizer": SCRIPT}, "finished", fids(9.0, 5.0)),
        ({"optimizer": "<!--<script>"}, "finished", fids(9.0, 6.0)),
        (ADAM, "failed", []),
    ]
    run = make(tmp_path / name, trials, platform=SCRIPT, axes={"optimizer": SCRIPT})
    said = read([str(run)])
    page = to_html(said)
    assert "<script>throw" not in page
    assert "<!--<" not in page
    assert page.count("<script") == page.count("</script>") == 6  # 4 charts, Vega, the page's own
    text, files = to_markdown(said)
    assert "<script" not in text.split("### The commands")[0]
    assert "](y" not in text
    assert all(path.isascii() and " " not in path and "<" not in path for path in files)
    assert all(
        len(line.replace("\\|", "").split("|")) > 2 for line in text.splitlines() if line[:1] == "|"
    )


def test_markdown_names_only_files_that_there_are(run: Path, tmp_path: Path) -> None:
    write([str(run)], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    named = [part.split(")")[0] for part in text.split("](")[1:]]
    named += [
        line.split(": ")[-1] for line in text.splitlines() if " rows in full precision: " in line
    ]
    assert len(named) >= 7
    assert all((tmp_path / "out" / path).stat().st_size > 50 for path in named)
    levels = pd.read_csv(tmp_path / "out" / "tables" / "hparams-levels.csv")
    assert levels["mean"].to_list() == [5.0, 7.0]
    assert levels["level"].to_list() == ["adam", "rmsprop"]


def test_a_single_run_has_a_report(run: Path) -> None:
    text = markdown_of(run / "trial_0000")
    assert "The best trial is trial_0000 of trial_0000: fid 5.0 after epoch 2." in text
    assert "1 of 1 trials: 1 finished." in text


def test_the_commands_can_be_pasted(run: Path) -> None:
    options = {"search": "hparams", "set": ["a=1", "b=x y"], "confirm": 0, "width": None}
    made = command(options | {"resume": False, "objectives": [], "data_dir": "/data"})
    assert made == "python -m tune.run --search hparams --set a=1 --set 'b=x y' --confirm 0"
    spaced = run.rename(run.with_name("it's a run"))
    assert f"""    python -m analysis.report '{run.parent}/it'"'"'s a run'\n""" in markdown_of(
        spaced
    )


def test_the_command_prints_the_answer_and_where_the_page_is(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(run)])
    main()
    output = capsys.readouterr().out
    assert "The best trial is trial_0000 of hparams" in output
    assert "## Method" not in output
    assert output.endswith(f"\n{run / 'report.html'}\n")
    monkeypatch.setattr("sys.argv", ["report", str(run), "--json"])
    main()
    assert json.loads(capsys.readouterr().out) == json.loads((run / ANSWER_FILE).read_text())


@pytest.mark.parametrize("form", ["text", "json"])
def test_of_a_folder_that_one_may_only_read_all_but_the_page_is_printed(
    form: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("analysis.report.replace", refuse)
    monkeypatch.setattr("sys.argv", ["report", str(run), *(["--json"] if form == "json" else [])])
    with pytest.raises(SystemExit, match="2"):
        main()
    output, error = capsys.readouterr()
    if form == "json":
        assert json.loads(output)["groups"][0]["best"]["trial"] == "trial_0000"
    else:
        assert "The best trial is trial_0000 of hparams" in output
    expected = f"no report is written to {run} (Permission denied); name another folder by --out"
    assert error == f"python -m analysis.report: error: {expected}\n"


def test_runs_that_cannot_be_read_are_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(run), str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"no results at {tmp_path / 'none'}" in capsys.readouterr().err
