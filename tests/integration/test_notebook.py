"""The tour of trial results: runs as it is kept, and holds no logic of its own."""

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"


@pytest.fixture(scope="module")
def kept() -> Any:
    return nbformat.read(TOUR, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_kept_as_executed(kept: Any) -> None:
    assert [cell.execution_count for cell in code(kept)] == list(range(1, len(code(kept)) + 1))


# the kernel's own sockets and processes
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning"
)
def test_it_runs_again_and_says_the_same(kept: Any) -> None:
    again = nbformat.reads(TOUR.read_text(), as_version=4)
    NotebookClient(again, timeout=200, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    for before, after in zip(code(kept), code(again), strict=True):
        assert texts(before) == texts(after), before.source


def texts(cell: Any) -> list[str]:
    """A cell's outputs as plain text; pictures depend on fonts."""
    return [
        json.dumps(output.get("data", {}).get("text/plain") or output.get("text"))
        for output in cell.outputs
    ]


def test_it_imports_analysis_and_holds_no_logic(kept: Any) -> None:
    trees = [ast.parse(cell.source) for cell in code(kept)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {
        node.module.split(".")[0]
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
    }
    imported |= {
        alias.name.split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported == {"analysis", "tempfile", "warnings", "zipfile", "pathlib", "IPython"}
    assert not [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If | ast.For | ast.While)
    ]
