"""README.md and docs/*.md: their commands and code run as pasted, with a small budget; their links,
names and tables are true.

`PYTHONPATH=tests/numerical python tests/integration/test_docs.py` makes the tables anew that are
made from the code.
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import few_digits  # noqa: F401 - registers a data set
import pytest

from dcgan.cli import METAVARS
from dcgan.schema import COLUMNS, CONFIRM_FOLDER, LABEL_COLUMNS, OBJECTIVES
from dcgan.settings import field_docs, flag_name, plain_type

ROOT = Path(__file__).parents[2]
LOG = ROOT / "docs" / "log.md"
"""It is of its days: its commands are those of the commits that it names."""
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {LOG})]
ROOMS = ("dcgan", "tune", "analysis")
OUTSIDE = {
    "python3": "makes an environment and installs by pip, as .ci/run does",
    ".": "for the reader's shell",
    ".venv/bin/pytest": "these tests",
    "pip": "installs from the network",
    ".venv/bin/pip": "installs from the network",
    "wandb": "needs an account on W&B's server",
    "tensorboard": "a server, which is not installed",
    "optuna-dashboard": "a server, which is not installed",
    "nvidia-cuda-mps-control": "needs an NVIDIA GPU",
    "echo": "for nvidia-cuda-mps-control",
    "ray": "needs AWS, or machines of one's own; test_ray_up.py runs these commands on some",
    "chmod": "for a file that `ray get-auth-token` makes",
}
"""Programs that are not run, and why."""
ELSEWHERE = {
    "s3://": "needs AWS; test_s3.py runs the same on a server of its own",
    "--address": "needs a cluster; test_cluster.py runs searches on some",
}
"""What our own commands hold of which only the flags are checked, and why."""
OTHER_FLAGS = {"--help", "--generate"}
"""Of argparse, and of other programs, in a page's text."""
SMALL_SEARCH = [
    *("--preset", "demo", "--dataset", "few-digits", "--width", "2", "--set", "image_size=16"),
    *("--num-trials", "2", "--epochs", "1", "--no-estimate"),
]
SMALL_RUN = [
    *("--dataset", "few-digits", "--image-size", "16", "--samples-every", "0"),
    *("--generator-width", "2", "--discriminator-width", "2"),
]
SMALL = {
    "tune.simulate": ["--seeds", "1", "--num-trials", "9"],
    "dcgan.bench": [
        *("--widths", "2", "--precisions", "float32", "--replicas", "1"),
        *("--repeats", "1", "--seconds", "0.01", "--minutes", "0.001"),
    ],
}
"""Flags that make a command quick; of a flag given twice the last one counts."""


# What stands in the pages


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(name, text[: found.start()].count("\n") + 2, found[1], found[2])


def words_of(line: str) -> Iterator[list[str]]:
    """The words of each program that a command line starts, also within another's quotes."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("&|;"):
            parts.append([])
        elif parts[-1] or not re.match(r"\w+=", word):  # a variable's value
            parts[-1].append(word)
    for words in filter(None, parts):
        yield words[1:] if words[0] == "exec" else words
        for word in words[1:]:
            if " && " in word:
                yield from words_of(word)


def commands_of(block: Block) -> Iterator[list[str]]:
    """The commands of a block; a line that ends in a backslash goes on."""
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        yield from words_of(line)


def of_this_project(words: list[str]) -> bool:
    """Whether a command is one of ours: `python -m tune.run …`."""
    return words[:2] == ["python", "-m"] or words[:2] == [".venv/bin/python", "-m"]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [
    (block, words) for block in BLOCKS if block.language == "sh" for words in commands_of(block)
]
BY_WORDS = {tuple(words[2:]): block for block, words in COMMANDS if of_this_project(words)}
OURS = [(block, list(words)) for words, block in BY_WORDS.items()]
"""Each once, without `python -m`."""


def is_elsewhere(words: list[str]) -> bool:
    """Whether a command needs what a test cannot have at this price."""
    return any(part in word for word in words for part in ELSEWHERE)


def is_slow(words: list[str]) -> bool:
    """Whether a command takes many seconds even with a small budget."""
    return trains_on_ray(words) or words[0] == "tune.track"


def trains_on_ray(words: list[str]) -> bool:
    """Whether a command trains trials."""
    more = {"--confirm", "--num-trials"} & set(words)
    quick = "--dry-run" in words or ("--resume" in words and not more)
    return words[0] == "tune.run" and not quick


def cases(commands: list[tuple[Block, list[str]]], slow: Any = lambda words: False) -> list[Any]:
    """Parameters of a test: the words of each command, named by the place of its block."""
    return [
        pytest.param(
            words,
            id=f"{block.page}:{block.line} {shlex.join(words)}",
            marks=[pytest.mark.slow] if slow(words) else [],
        )
        for block, words in commands
    ]


HERE = [(block, words) for block, words in OURS if not is_elsewhere(words)]
AWAY = [(block, words) for block, words in OURS if is_elsewhere(words)]


# Commands


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> Path:
    """A folder with what the pages' commands look at, under the names that they use."""
    import dcgan.train
    from tune.options import Options
    from tune.run import run

    folder = tmp_path_factory.mktemp("docs")
    runs = folder / "runs"
    options = Options(
        **{"search": "hparams", "preset": "demo", "dataset": "few-digits"},
        **{"width": 2, "set": ("image_size=16",)},
        **{"num_trials": 2, "epochs": 1, "confirm": 1, "confirm_seeds": 1},
        **{"estimate": False, "report": False, "wandb": "disabled"},
        **{"storage": str(runs), "name": "first"},
    )
    assert run(options) == 0
    for other in ("second", "quick"):
        shutil.copytree(runs / "first", runs / other)
    mine = [*SMALL_RUN, "--epochs", "1", "--generator-lr", "1e-3", "--out", str(runs / "mine")]
    mine += ["--snapshots-every", "1"]
    dcgan.train.run(dcgan.train.make_parser().parse_args(mine))
    for file in ("cluster.yaml", "tune/curves.csv.xz"):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, in which this process works."""
    copy = shutil.copytree(prepared, tmp_path / "docs")
    monkeypatch.chdir(copy)
    return copy


def small(module: str, words: list[str]) -> list[str]:
    """A command's arguments with a small budget."""
    if module == "dcgan.train":
        return [*words, *SMALL_RUN, "--epochs", "2" if "--resume" in words else "1"]
    if module != "tune.run":
        return [*words, *SMALL.get(module, [])]
    if "full" in words:  # for a GPU
        return [*words, "--dataset", "mnist-mini", "--no-estimate", "--dry-run"]
    more = ["--no-report", "--wandb", "disabled"]
    if "--resume" not in words:
        more += SMALL_SEARCH
    elif "--num-trials" in words:
        more += ["--num-trials", "3"]
    if "--confirm" in words and "0" not in words:
        more += ["--confirm-seeds", "1"]
    elif "--resume" not in words:
        more += ["--confirm", "0"]
    return [*words, *more]


def make_room(folder: Path, words: list[str]) -> None:
    """Removes what a command is about to make."""
    named = {
        flag: words[i + 1]
        for i, flag in enumerate(words)
        if flag.startswith("--") and words[i + 1 :]
    }
    if words[0] == "tune.run" and "--name" in named:
        shutil.rmtree(folder / "runs" / named["--name"], ignore_errors=True)
    if words[0] == "tune.run" and "--resume" in named and "--confirm" in named:
        shutil.rmtree(folder / "runs" / named["--resume"] / CONFIRM_FOLDER)
    if words[0] == "dcgan.train" and "--resume" not in words:
        shutil.rmtree(folder / named["--out"], ignore_errors=True)


def different(commands: list[tuple[Block, list[str]]]) -> Iterator[tuple[Block, list[str]]]:
    """The commands without searches that are another one's but for the name, with a small budget:
    their words are tried by the test of plans."""
    from tune.options import from_flags, make_parser

    known = []
    for block, words in commands:
        if trains_on_ray(words) and "--resume" not in words:
            options = from_flags(make_parser(), small(words[0], words[1:]))
            search = dataclasses.replace(options, name=None)
            if search in known:
                continue
            known.append(search)
        yield block, words


@pytest.mark.parametrize("words", cases(list(different(HERE)), slow=is_slow))
def test_a_command_runs_as_pasted(words: list[str], folder: Path, command: Any) -> None:
    module, arguments = words[0], small(words[0], words[1:])
    make_room(folder, words)
    if module == "tune.track":  # W&B leaves threads and sockets in its process
        call = [sys.executable, "-m", module, *arguments, "--wandb", "offline"]
        done = subprocess.run(call, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    code, output, error = command(importlib.import_module(module).main, *arguments)
    assert code == 0, error
    assert output.strip()


@pytest.mark.parametrize("words", cases([own for own in HERE if trains_on_ray(own[1])]))
def test_a_search_can_be_planned_as_pasted(words: list[str], folder: Path, command: Any) -> None:
    """Of those that the test above leaves to the slow ones."""
    make_room(folder, words)
    arguments = [*small(words[0], words[1:]), "--dry-run"]
    code, output, error = command(importlib.import_module(words[0]).main, *arguments)
    assert code == 0, error
    assert "trials   " in output


@pytest.mark.parametrize("words", cases(AWAY))
def test_a_command_that_runs_elsewhere_has_flags_that_there_are(
    words: list[str], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, arguments = words[0], words[1:]
    if module == "tune.run":
        from tune.options import from_flags, make_parser

        from_flags(make_parser(), arguments)
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_exit(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        parser.exit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_exit)
    code, _, error = command(importlib.import_module(module).main, *arguments)
    assert code == 0, error


def test_programs_that_are_not_run_are_known() -> None:
    others = [words[0] for _, words in COMMANDS if not of_this_project(words)]
    assert set(others) - {"cd", "sed"} == set(OUTSIDE)


def test_machines_of_ones_own_take_one_command(folder: Path) -> None:
    import yaml

    (line,) = [
        line
        for block in BLOCKS
        if block.language == "sh"
        for line in block.text.splitlines()
        if line.startswith("sed ")
    ]
    subprocess.run(line, shell=True, check=True)
    assert yaml.safe_load(Path("local.yaml").read_text())["provider"]["type"] == "local"


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"{block.page}:{block.line}")
        for block in BLOCKS
        if block.language == "python"
    ],
)
def test_python_runs_as_pasted(block: Block, folder: Path) -> None:
    code = re.sub(r'(width"?[=:] ?)\d+', r"\g<1>2", block.text)
    code = re.sub(r'(epochs"?[=:] ?)\d+', r"\g<1>1", code).replace("mnist-mini", "few-digits")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, f"{block.page}:{block.line}", "exec"), {})


def test_ci_runs_the_commands_that_the_readme_gives() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    given = [
        line.partition("#")[0].split("&& ")[-1].strip()
        for block in BLOCKS
        if block.page == "README.md"
        for line in block.text.splitlines()
        if ".venv/bin/pytest" in line
    ]
    assert given == [".venv/bin/pytest -n 3 -m 'not slow'", ".venv/bin/pytest -n 3 -m slow"]
    assert set(given) <= set(script)


# Text


def prose_of(page: Path) -> str:
    """A page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, LOG], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_text_exist(page: Path) -> None:
    spans = re.findall(r"`([^`]+)`", prose_of(page))
    assert not [span for span in spans if "\n" in span]
    for name in spans:
        if re.fullmatch(rf"({'|'.join(ROOMS)})(\.\w+)+", name):
            module, _, attribute = name.rpartition(".")
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                assert hasattr(importlib.import_module(module), attribute), name
        if re.fullmatch(rf"({'|'.join(ROOMS)}|docs|tests)/[\w./]+", name):
            assert (ROOT / name).exists(), name
    flags = {flag for span in spans for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    assert flags <= all_flags() | OTHER_FLAGS


def all_flags() -> set[str]:
    """Every flag of every command line of this project, as its help names it."""
    found: set[str] = set()
    for room in ROOMS:
        for path in (ROOT / room).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r'add\w*\(\s*"(--[a-z][a-z-]+)"', text))
    for module, name in (
        ("tune.options", "Options"),
        ("dcgan.config", "TrainConfig"),
        ("dcgan.bench", "BenchOptions"),
    ):
        found |= set(flags_of(module, name))
    return found


def flags_of(module: str, name: str) -> Iterator[str]:
    """The flag of each field of a dataclass."""
    for field in dataclasses.fields(getattr(importlib.import_module(module), name)):
        yes = plain_type(field.type)[0] is bool and field.default
        yield flag_name(f"no_{field.name}" if yes else field.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_words_that_say_little_are_not_used(page: Path) -> None:
    found = re.findall(r"\b(told|tells|judged?|so many|the old report)\b", prose_of(page))
    assert not found


def test_the_readme_begins_with_the_command_that_another_test_runs() -> None:
    """From the built wheel: see `readme_search`."""
    first = next(block for block in BLOCKS if block.page == "README.md").text.splitlines()[0]
    assert first.endswith("-e . && .venv/bin/python -m tune.run --search hparams")


def test_the_readme_names_the_whole_core() -> None:
    core = runpy.run_path(str(ROOT / "tests" / "unit" / "test_imports.py"))["CORE"]
    text = prose_of(ROOT / "README.md").partition("## Python, and reading the code")[2]
    for room, names in core.items():
        (listed,) = re.findall(rf"`{room}/`: ([^.]*)\.", text)
        assert set(re.findall(r"`(\w+)`", listed)) == names | ({"run"} if room == "tune" else set())


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 140


# Tables that are made from the code


def columns_table() -> str:
    """The columns of a row, and which of them a search can optimise."""
    lines = ["| column | what it is | as an objective |", "|---|---|---|"]
    for name, text in (COLUMNS | LABEL_COLUMNS).items():
        lines.append(f"| `{name}` | {text} | {OBJECTIVES.get(name, '')} |".replace("|  |", "| |"))
    return "\n".join(lines)


def options_table() -> str:
    """The flags of a search."""
    from tune.options import Options

    docs, lines = field_docs(Options), ["| option | what it does |", "|---|---|"]
    for field, flag in zip(
        dataclasses.fields(Options), flags_of("tune.options", "Options"), strict=True
    ):
        kind, choices = plain_type(field.type)[0], field.metadata.get("choices")
        value = field.metadata.get("metavar") or METAVARS.get(kind, "")
        if choices:
            value = "{" + ",".join(name for name in choices if name != "few-digits") + "}"
        text = docs[field.name].replace("; see below", "").replace("|", r"\|")
        lines.append(f"| `{f'{flag} {value}'.strip()}` | {text} |")
    return "\n".join(lines)


TABLES = {"docs/metrics.md": columns_table, "docs/search.md": options_table}


def with_table(page: str, table: str) -> str:
    """A page's text with a table between its marks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    pattern = r"(<!-- generated: \w+ -->\n).*?(<!-- end -->)"
    made, count = re.subn(
        pattern, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL
    )
    assert count == 1, page
    return made


@pytest.mark.parametrize("page", TABLES)
def test_tables_are_as_the_code_makes_them(page: str) -> None:
    made = with_table(page, TABLES[page]())
    assert made == (ROOT / page).read_text(encoding="utf-8"), "see the head of this file"


if __name__ == "__main__":
    for name, make in TABLES.items():
        (ROOT / name).write_text(with_table(name, make()), encoding="utf-8")
