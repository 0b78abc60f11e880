"""`dcgan.qualify`: the order of its questions, answers that are kept, and the verdict on them."""

import json
from pathlib import Path
from typing import Any

import few_digits  # noqa: F401 - registers a data set
import pytest
import torch

from dcgan import qualify
from dcgan.bench import BenchOptions

CPU = torch.device("cpu")


def options(folder: Path, **more: Any) -> BenchOptions:
    small: dict[str, Any] = {
        **{"dataset": "few-digits", "widths": (2,), "precisions": ("float32",)},
        **{"repeats": 1, "seconds": 0.01, "qualify": True, "out": folder},
    }
    return BenchOptions(**small | more)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two epochs, and no tests but these."""
    monkeypatch.setattr(qualify, "WHOLE", 2)
    monkeypatch.setattr(qualify, "EPOCHS", 2)
    monkeypatch.setattr(qualify, "TESTS", tmp_path / "none.py")


def test_short_loans_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name, _ in qualify.questions(options(tmp_path), CPU)]
    assert names[:4] == ["updates float32", "epochs float32 1", "epochs float32 8", "whole float32"]
    qualify.qualify(options(tmp_path, minutes=1e-6))
    first = json.loads((tmp_path / "qualify.json").read_text())
    assert list(first["cells"]) == ["updates float32"]
    assert f"left: {', '.join(names[1:])}; the same command goes on" in capsys.readouterr().out
    qualify.qualify(options(tmp_path))
    both = json.loads((tmp_path / "qualify.json").read_text())
    assert list(both["cells"]) == names
    assert both["cells"]["updates float32"] == first["cells"]["updates float32"]
    assert "left" not in capsys.readouterr().out
    ways = [(row["replicas"], row["way"]) for row in both["cells"]["updates float32"]["rows"]]
    one = ["grouped", "grouped-nchw", "patches"]
    assert ways == [(1, way) for way in one] + [(8, way) for way in [*one, "branches"]]
    epochs = both["cells"]["epochs float32 8"]
    assert len(epochs["rows"]) == 2 * 8
    assert sum(row["seconds_train"] for row in epochs["rows"]) < epochs["seconds"]
    assert both["cells"]["kernels float32 1 grouped"]["launched"] > 50


def test_answers_of_different_machines_do_not_mix(tmp_path: Path) -> None:
    qualify.qualify(options(tmp_path, minutes=1e-6))
    kept = json.loads((tmp_path / "qualify.json").read_text())
    kept["about"]["device"] = "another GPU"
    (tmp_path / "qualify.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"is of device another GPU, not .*; choose another"):
        qualify.qualify(options(tmp_path))
    (tmp_path / "qualify.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no answers; remove it, or choose another --out"):
        qualify.qualify(options(tmp_path))


def row(lanes: int, way: str, speed: float, ratio: float) -> dict[str, Any]:
    return {
        **{"replicas": lanes, "way": way, "images_per_second": speed, "ratio": ratio},
        **{"width": 64, "ratio_spread": [ratio - 1, ratio + 1]},
    }


def test_the_verdict_says_what_was_wanted_and_what_is_not_known() -> None:
    cells = {
        "updates bfloat16": {
            "rows": [
                row(1, "grouped", 100_000, 5.5),
                row(1, "patches", 80_000, 4.4),
                row(8, "grouped", 90_000, 5.0),
                row(8, "branches", 400_000, 22.0),
            ]
        },
        "whole bfloat16": {"seconds": 12.5},
        "kernels float32 1 grouped": {"launched": 90},
    }
    lines = qualify.verdict(cells, BenchOptions(dataset="mnist"))
    assert [line.partition("  ")[0].strip() for line in lines] == [
        *("not measured", "not measured", "met", "met", "NOT MET", "not measured", "NOT MET"),
        *("met", "fastest way, bfloat16, 1 lane: grouped (1.00 times grouped)"),
        "fastest way, bfloat16, 8 lanes: branches (4.44 times grouped)",
    ]
    # 8 times the images take 8 * 100,000 / 400,000 times as long
    assert "in so many times the time of one, bfloat16: 2 times; wanted at most 1.8" in lines[4]
    line = qualify.record(cells, {"device": "H", "dataset": "mnist"})
    assert line.startswith(
        "| training at width 64 in bfloat16, grouped, against a plain loop "
        "| 100,000 images/s, 5.50 [4.50, 6.50] times | 12 s for 2 epochs of mnist | H | "
    )
    assert qualify.record({}, {}) == ""
