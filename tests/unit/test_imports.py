"""Who may import whom: the rooms, and the core that leaves surround."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "dcgan": {"ray", "optuna", "wandb", "pandas", "altair", "tqdm", "tune", "analysis"},
    "tune": {"pandas", "altair"},
    "analysis": {"ray", "torch", "torchvision", "tune"},
}
COMMAND_LINES = {"tune.run", "tune.track"}
"""Those of `tune`: they hand the leaves to the core, and ask `analysis` for the answer."""

CORE = {
    "dcgan": {
        *("config", "schema", "settings", "data", "losses", "lanes", "models", "state", "loop"),
        *("augment", "checkpoint", "metrics", "yardstick", "evaluate", "downloads", "pictures"),
    },
    "tune": {
        *("searches", "options", "plan", "schedulers", "asha", "ledger", "study"),
        *("freeze_thaw", "choice", "forecast"),
        *("runner", "stop", "trainable", "resuming"),
    },
    "analysis": {"load", "stats", "tables", "confirm"},
}
"""The way from a question to an optimizer and back to an answer: what a newcomer reads."""
TOOLS = {
    *(
        f"dcgan.{name}"
        for name in (
            *("files", "store", "graph", "precision", "memory", "images", "streams", "ways"),
            *("feed", "weights", "recipe"),
        )
    ),
    *("dcgan.cli", "dcgan.power", "analysis.cli"),
}
"""Small tools that anyone may use."""


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at any level."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def modules(room: str) -> dict[str, Path]:
    """The files of a room by the name of their module."""
    return {f"{room}.{path.stem}": path for path in sorted((ROOT / room).glob("*.py"))}


MODULES = {name: path for room in CORE for name, path in modules(room).items()}
CORE_MODULES = {f"{room}.{name}" for room, names in CORE.items() for name in names}
MAY_BE_USED = CORE_MODULES | TOOLS
LEAVES = MODULES.keys() - MAY_BE_USED - {f"{room}.__init__" for room in CORE}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_what_they_may(room: str) -> None:
    for name, path in modules(room).items():
        used = {imported.split(".")[0] for imported in imports(path)}
        assert not used & FORBIDDEN[room], name


def test_every_core_file_and_tool_exists() -> None:
    assert MODULES.keys() >= MAY_BE_USED


@pytest.mark.parametrize("name", sorted(MAY_BE_USED))
def test_the_core_imports_no_leaf(name: str) -> None:
    assert not imports(MODULES[name]) & LEAVES


def test_wandb_is_imported_by_the_tracker_alone() -> None:
    users = [name for name, path in MODULES.items() if "wandb" in imports(path)]
    assert users == ["analysis.tracker"]


def test_tune_uses_analysis_in_command_lines_alone() -> None:
    users = {
        name
        for name, path in modules("tune").items()
        if any(imported.split(".")[0] == "analysis" for imported in imports(path))
    }
    assert users <= COMMAND_LINES | {"tune.answer"}


def test_analysis_uses_of_dcgan_only_what_needs_no_torch() -> None:
    for name, path in modules("analysis").items():
        used = {imported for imported in imports(path) if imported.startswith("dcgan.")}
        rooms = {".".join(imported.split(".")[:2]) for imported in used}
        assert rooms <= {"dcgan.schema", "dcgan.store", "dcgan.files", "dcgan.cli"}, name


def test_inside_tune_rays_library_is_called_ray_tune() -> None:
    for name, path in modules("tune").items():
        assert "from ray import tune\n" not in path.read_text(encoding="utf-8"), name


def test_no_file_is_above_350_lines() -> None:
    for name, path in MODULES.items():
        if not name.startswith("analysis."):  # rebuilt next
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, name


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("analysis.report, analysis.rungs", {"ray", "torch"}),
        ("tune.options", {"ray"}),  # for which `--help` need not wait
        ("tune.answer, tune.confirm, tune.track", {"altair", "tensorboardX", "wandb"}),
    ],
)
def test_what_is_not_needed_is_not_imported(modules: str, unwanted: set[str]) -> None:
    """In a new process, since this one may have it already."""
    check = f"import sys, {modules}; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_training_starts_without_what_takes_seconds_to_import(
    optimizer: str, tmp_path: Path
) -> None:
    """Compilers, and their algebra: each worker would import them to train, resume and draw."""
    check = f"""
import sys
sys.path.append("tests/numerical")
import pathlib
import few_digits
from dcgan import checkpoint
from dcgan.config import TrainConfig
from dcgan.images import sample_grid, save_grid
from dcgan.loop import train

small = {{"image_size": 16, "generator_width": 2, "discriminator_width": 2}}
folder = pathlib.Path({str(tmp_path)!r})
for epochs in (1, 2):
    config = TrainConfig(dataset="few-digits", optimizer={optimizer!r}, epochs=epochs, **small)
    before = folder if epochs > 1 else None
    train([config], report=print, checkpoint_dir=folder, resume_from=before)
generator, config, _ = checkpoint.load_generator(folder)
images, columns = sample_grid(generator, config.latent_size, 4)
save_grid(images, folder / "grid.png", columns)
unwanted = {{"torch._dynamo", "torch._inductor", "sympy", "torchvision"}}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_importing_changes_neither_ray_nor_the_environment() -> None:
    check = """
import os
import optuna, ray  # which sets a variable of its own
before = dict(os.environ)
level = optuna.logging.get_verbosity()
from ray.tune.execution import class_cache
propagated = set(class_cache.ENV_VARS_TO_PROPAGATE)
import tune.run, tune.runner, tune.site, tune.simulate, tune.track, analysis.report
assert optuna.logging.get_verbosity() == level
assert set(class_cache.ENV_VARS_TO_PROPAGATE) == propagated
changed = {name for name in os.environ if os.environ[name] != before.get(name)}
assert not {name for name in changed if name.startswith(("RAY_", "TUNE_"))}, changed
"""
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
