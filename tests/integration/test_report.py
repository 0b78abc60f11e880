"""The report page in a real browser, and the whole report of searches of every size and state."""

import base64
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState, create_trial
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from analysis.load import INTEGERS, RESULTS
from analysis.report import write

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "generator_lr": FloatDistribution(5e-5, 5e-3, log=True),
    "batch_size": CategoricalDistribution([64, 128, 256]),
    "optimizer": CategoricalDistribution(["adam", "rmsprop"]),
}
AXES = {name: json.loads(distribution_to_json(axis)) for name, axis in DISTRIBUTIONS.items()}
STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (120, 120), shade).save(buffer, "PNG")
    return buffer.getvalue()


def make_search(folder: Path, statuses: Sequence[str], epochs: int = 25, lanes: int = 1) -> Path:
    """A search's folder as tune.run leaves it: study, settings, rows, samples and errors, with
    plausible curves."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    search = {
        "search": "hparams",
        "axes": AXES,
        "num_trials": len(statuses),
        "sampler": "tpe",
        "scheduler": "asha",
    }
    search |= {
        "objectives": [{"column": "fid", "mode": "min"}],
        "options": {"search": "hparams", "width": None, "set": ["a=1"], "confirm": 0},
    }
    (folder / "search.json").write_text(json.dumps(search))
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}")
    trials = []
    for number, status in enumerate(statuses):
        values = {
            "generator_lr": float(np.exp(rng.uniform(np.log(5e-5), np.log(5e-3)))),
            "batch_size": int(rng.choice([64, 128, 256])),
            "optimizer": str(rng.choice(["adam", "rmsprop"])),
        }
        done = {
            "finished": epochs,
            "stopped": max(1, epochs // 6),
            "failed": number % 2,
            "running": epochs // 2,
        }[status]
        trial = folder / f"trial_{number:04d}"
        (trial / "samples").mkdir(parents=True)
        settings = values | {"epochs": epochs, "dataset": "mnist-mini", "precision": "float32"}
        params = [settings | {"seed": seed} for seed in range(lanes)]
        (trial / "params.json").write_text(json.dumps(params if lanes > 1 else params[0]))
        floor = 8 + 4 * abs(np.log(values["generator_lr"] / 1e-3)) + rng.normal(0, 0.5)
        rows = [
            row(epoch, lane, floor, rng) for epoch in range(1, done + 1) for lane in range(lanes)
        ]
        (trial / "result.json").write_text("".join(json.dumps(one) + "\n" for one in rows))
        for epoch in (1, 3, done):
            if epoch <= done:
                (trial / "samples" / f"epoch_{epoch:03d}.png").write_bytes(png(8 * epoch))
        if done:
            (trial / "samples" / "best.png").write_bytes(png(250))
        if status == "failed":
            (trial / "error.txt").write_text(
                "FloatingPointError: training diverged <in> epoch 2 & so on\n"
            )
        best = min((one["fid"] for one in rows), default=None) if status == "finished" else None
        trials.append(
            create_trial(
                state=STATES[status], value=best, params=values, distributions=DISTRIBUTIONS
            )
        )
    study.add_trials(trials)
    return folder


def row(epoch: int, lane: int, floor: float, rng: np.random.Generator) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(RESULTS, 0.5) | dict.fromkeys(INTEGERS, 1)
    values |= {"eval_split": "validation", "extractor": "abc", "device": "cpu"}
    values |= {"lane": lane, "epoch": epoch, "images_seen": 8000 * epoch, "eval_samples": 2000}
    return values | {
        "fid": floor + 100 / epoch**1.2 + float(rng.normal(0, 0.3)),
        "fid_real": 0.26,
        "seconds_train": float(rng.uniform(2, 3)),
        "generator_loss": float(rng.normal(2, 0.1)),
        "collapsed": epoch == 1,
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI must have a Chromium"
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


class Opened:
    """A page as a person opens it, with what went wrong on the way."""

    def __init__(self, browser: Browser, path: Path) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.wrong: list[str] = []
        self.page.on("console", lambda said: self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "request",
            lambda r: r.url.startswith(("file:", "data:", "blob:")) or self.wrong.append(r.url),
        )
        begin = time.perf_counter()
        self.page.goto(path.absolute().as_uri(), wait_until="load")
        self.seconds = time.perf_counter() - begin

    def draw_all(self) -> int:
        """Scrolls through the page; returns how many charts it has."""
        charts = self.page.locator(".chart")
        for number in range(charts.count()):
            charts.nth(number).scroll_into_view_if_needed()
            self.page.wait_for_function(
                "n => document.querySelectorAll('.chart')[n].classList.contains('drawn')",
                arg=number,
            )
        return charts.count()

    def point(self, trial: str) -> float:
        """Points at a trial, and returns the milliseconds until all charts have drawn it."""
        script = """async (trial) => {
            const section = [...document.querySelectorAll("section")].find((s) => s.views.length);
            const begin = performance.now();
            point(section, trial);
            await Promise.all(section.views.map((view) => view.runAsync()));
            return performance.now() - begin;
        }"""
        return float(self.page.evaluate(script, trial))

    def pointed(self) -> set[str]:
        """The trials that are drawn black in the charts, and whose rows are marked."""
        script = """() => [...document.querySelectorAll("section")].flatMap((section) => [
            ...section.views.map((view) => view.signal("pointed")),
            ...[...section.querySelectorAll("tr.pointed")].map((row) => row.dataset.trial)])"""
        return set(self.page.evaluate(script))

    def column(self, table: str, name: str) -> list[str]:
        heads = self.page.locator(f"#{table} th").all_text_contents()
        cells = self.page.locator(f"#{table} tbody td:nth-child({heads.index(name) + 1})")
        return cells.all_text_contents()


STATUSES = ["finished", "stopped", "stopped", "finished", "failed"] * 100


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The page of 500 trials of 25 epochs, and how long it took to write."""
    folder = make_search(tmp_path_factory.mktemp("large") / "hparams", STATUSES)
    begin = time.perf_counter()
    page = write([str(folder)], folder, page_only=True)
    return page, time.perf_counter() - begin


def test_a_page_of_500_trials_is_small_opens_at_once_and_follows_the_pointer(
    browser: Browser, large: tuple[Path, float]
) -> None:
    path, seconds = large
    megabytes = path.stat().st_size / 1e6
    opened = Opened(browser, path)
    begin = time.perf_counter()
    charts = opened.draw_all()
    drawn = time.perf_counter() - begin
    hover = sorted(opened.point(f"trial_{number:04d}") for number in range(10))[5]
    height = opened.page.evaluate("document.documentElement.scrollHeight")
    print(
        f"report of 500 trials: {megabytes:.2f} MB, written in {seconds:.1f} s, opened in "
        f"{opened.seconds:.2f} s, {charts} charts drawn in {drawn:.1f} s, pointed at a trial in "
        f"{hover:.0f} ms, {height} pixels high"
    )
    assert charts == 4
    assert opened.wrong == []
    assert megabytes < 3
    assert seconds < 60  # aimed at: 20; 2 for opening, 0.1 for pointing; machines are shared
    assert opened.seconds < 10
    assert hover < 1000
    assert height < 6 * 900
    images = "nodes => nodes.map(n => n.complete && n.naturalWidth)"
    assert all(opened.page.locator("img").evaluate_all(images))


def test_a_trial_that_is_pointed_at_lights_up_in_all_charts_and_its_row(
    browser: Browser, tmp_path: Path
) -> None:
    folder = make_search(tmp_path / "hparams", ["finished"] * 6, epochs=4)
    opened = Opened(browser, write([str(folder)], tmp_path / "out", page_only=True))
    assert opened.draw_all() == 4
    row = opened.page.locator("#hparams-trials tr[data-trial=trial_0003]")
    row.hover()
    assert opened.pointed() == {"trial_0003"}
    opened.page.mouse.move(1, 1)
    assert opened.pointed() == {""}
    curves = opened.page.locator(".chart canvas").nth(1)
    curves.scroll_into_view_if_needed()
    box = curves.bounding_box()
    assert box
    for height in range(40, int(box["height"]), 6):  # down until a curve is met
        opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + height)
        if opened.pointed() != {""}:
            break
    (trial,) = opened.pointed()
    assert trial.startswith("trial_")


def test_tables_are_sorted_by_a_click(browser: Browser, large: tuple[Path, float]) -> None:
    opened = Opened(browser, large[0])
    assert len(opened.column("hparams-trials", "fid")) == 500
    heads = opened.page.locator("#hparams-trials th button")
    rate = heads.filter(has_text=re.compile(r"^generator_lr"))
    rate.click()
    rates = [float(cell) for cell in opened.column("hparams-trials", "generator_lr")]
    assert rates == sorted(rates)
    rate.click()
    back = [float(cell) for cell in opened.column("hparams-trials", "generator_lr")]
    assert back == sorted(rates, reverse=True)
    heads.filter(has_text=re.compile(r"^fid")).click()
    cells = opened.column("hparams-trials", "fid")
    known = [float(cell) for cell in cells if cell]
    assert known == sorted(known)
    assert all(cells[: len(known)])  # trials without a value come last
    heads.filter(has_text=re.compile(r"^status")).click()
    statuses = opened.column("hparams-trials", "status")
    assert statuses == sorted(statuses)


@pytest.mark.parametrize(
    "statuses",
    [
        ["finished"],
        ["running"],
        ["failed"],
        ["finished", "failed", "stopped", "running", "finished"],
    ],
    ids=["one", "running", "failed", "mixed"],
)
def test_a_search_in_any_state_makes_a_whole_page(
    browser: Browser, tmp_path: Path, statuses: list[str]
) -> None:
    folder = make_search(tmp_path / "hparams", statuses, epochs=4, lanes=2)
    opened = Opened(browser, write([str(folder)], tmp_path / "out"))
    opened.draw_all()
    assert opened.wrong == []
    text = opened.page.inner_text("body")
    assert len(opened.column("hparams-trials", "trial")) == len(statuses)
    assert ("still runs, or was interrupted" in text) == ("running" in statuses)
    assert ("No trial has finished all its epochs" in text) == ("finished" not in statuses)
    if "failed" in statuses:
        assert "training diverged <in> epoch" in text  # escaped


def test_a_settings_text_cannot_end_or_hide_the_page(browser: Browser, tmp_path: Path) -> None:
    folder = make_search(tmp_path / "hparams", ["finished"] * 3, epochs=2)
    for number, text in enumerate(("adam", "</script><script>throw 1</script>", "<!--<script>")):
        file = folder / f"trial_000{number}" / "params.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"optimizer": text}))
    opened = Opened(browser, write([str(folder)], tmp_path / "out", page_only=True))
    assert opened.draw_all() == 4
    assert opened.wrong == []
    assert "<!--<script>" in opened.column("hparams-trials", "optimizer")


def test_what_is_damaged_is_named_and_the_rest_shown(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "hparams", ["finished"] * 3, epochs=3)
    (folder / "trial_0000" / "params.json").unlink()
    with (folder / "trial_0001" / "result.json").open("a") as file:
        file.write('{"epoch": 4, "fi')
    rows = folder / "trial_0002" / "result.json"
    rows.write_text(rows.read_text().replace('"kid"', '"qid"'))
    for number in range(3):
        (folder / f"trial_000{number}" / "samples" / "epoch_003.png").write_bytes(png(3)[:40])
    write([str(folder)], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert re.search(r"^- an image of .*/trial_000\d/samples is damaged", text, re.MULTILINE)
    for name, what in (
        ("trial_0000/params.json", "missing"),
        ("trial_0001/result.json", "line 4"),
        ("trial_0002", "qid"),
    ):
        assert re.search(rf"^- .*{name}.*{what}", text, re.MULTILINE), name
    assert all(f"trial_000{n}" in text for n in range(3))


def test_several_searches_make_one_report_in_markdown_too(tmp_path: Path) -> None:
    first = make_search(tmp_path / "hparams", ["finished"] * 12, epochs=3, lanes=2)
    second = make_search(tmp_path / "again", ["finished", "stopped"], epochs=3)
    page = write([str(first), str(second)], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads == ["Answer", "Hyperparameters", "Hyperparameters: again", "Claims", "Method"]
    assert "Varies generator_lr (5e-05 to 0.005, log-uniform); batch_size (64, 128, 256);" in text
    assert "Mean of 2 seeds a setting" in text
    pictures = re.findall(r"!\[.*\]\(([^)]+)\)", text)
    assert len(pictures) == 4 + 4 + 4
    for file in pictures:
        with Image.open(tmp_path / "out" / file) as image:
            image.load()
            assert min(image.size) >= 120, file
    assert "python -m tune.run --search hparams --set a=1 --confirm 0\n" in text
    gifs = re.findall(rb"data:image/gif;base64,([^\"]+)", page.read_bytes())
    frames = [Image.open(io.BytesIO(base64.b64decode(gif))).n_frames for gif in gifs]
    assert frames == [2, 2]  # epochs 1 and 3 of each best trial


def test_a_report_can_be_made_of_an_object_store(tmp_path: Path) -> None:
    import fsspec

    folder = make_search(tmp_path / "hparams", ["finished"] * 3, epochs=3)
    storage = fsspec.filesystem("memory")
    storage.put(str(folder), "/bucket/hparams", recursive=True)
    write(["memory://bucket/hparams"], tmp_path / "remote")
    write([str(folder)], tmp_path / "here")
    texts = [(tmp_path / out / "report.md").read_text() for out in ("remote", "here")]
    assert texts[0].replace("memory://bucket/hparams", str(folder)) == texts[1]
