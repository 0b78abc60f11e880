"""Who may import whom (docs: the README's section on the rooms)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "dcgan": {"ray", "optuna", "wandb", "pandas", "matplotlib", "tune", "analysis"},
    "tune": {"pandas", "matplotlib"},
    "analysis": {"ray", "torch", "torchvision", "tune"},
}


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at any level."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = sorted((ROOT / room).glob("**/*.py"))
    assert files
    for file in files:
        used = {name.split(".")[0] for name in imports(file)}
        assert not used & FORBIDDEN[room], file


def test_wandb_is_imported_by_the_tracker_alone() -> None:
    users = [f.name for f in (ROOT / "tune").glob("*.py") if any(n.split(".")[0] == "wandb" for n in imports(f))]
    assert users == ["track.py"]


def test_tune_uses_analysis_in_the_command_line_alone() -> None:
    users = [f.name for f in (ROOT / "tune").glob("*.py") if any(n.split(".")[0] == "analysis" for n in imports(f))]
    assert users == ["run.py"]


def test_analysis_uses_only_the_schema_of_dcgan() -> None:
    for file in (ROOT / "analysis").glob("*.py"):
        used = {name for name in imports(file) if name.startswith("dcgan")}
        assert all(name.startswith("dcgan.schema") for name in used), file


def test_inside_tune_rays_library_is_called_ray_tune() -> None:
    for file in (ROOT / "tune").glob("*.py"):
        assert "from ray import tune\n" not in file.read_text(), file


def test_analysis_starts_without_torch_and_ray() -> None:
    """In a new process, since this one has them already."""
    check = "import sys, analysis.report, analysis.rungs; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
