"""A report's blocks, and the two forms they are written in: one HTML page that needs nothing else,
and Markdown."""

import base64
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis import draw
from analysis.figures import Chart

MOST_ROWS = 20
"""Of a table in Markdown; the page and the CSV files hold all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of short texts, and the file's name for its CSV."""

    name: str
    caption: str
    rows: pd.DataFrame


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image file's content."""

    name: str
    caption: str
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Commands or source to copy."""

    text: str


Block = str | Table | Picture | Code | Chart


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


def to_html(sections: Sequence[Section], title: str) -> str:
    """One page, which opens without a network: styles, code, charts and pictures are all in it."""
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["plotly"] = lambda chart: Markup(
        draw.to_plotly(chart).to_json()
    )  # which escapes <
    environment.filters["uri"] = lambda p: (
        f"data:image/{Path(p.name).suffix[1:]};base64,{base64.b64encode(p.content).decode()}"
    )
    made = f"{datetime.datetime.now():%Y-%m-%d %H:%M}"
    page = environment.get_template("report.html.jinja")
    return page.render(title=title, sections=sections, made=made, plotlyjs=Markup(get_plotlyjs()))


def to_markdown(sections: Sequence[Section], title: str, out: Path) -> str:
    """The same as Markdown, with its charts and pictures as files in `out/figures`, and its tables
    in `out/tables`."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    (out / "tables").mkdir(exist_ok=True)
    lines = [f"# {title}"]
    for section in sections:
        lines.append(f"## {section.title}")
        for block in section.blocks:
            match block:
                case str():
                    lines.append(block)
                case Code():
                    lines.append(f"```\n{block.text}\n```")
                case Table():
                    block.rows.to_csv(out / "tables" / f"{block.name}.csv", index=False)
                    more = len(block.rows) - MOST_ROWS
                    rest = f"\n\n… and {more} more in tables/{block.name}.csv." if more > 0 else ""
                    table = block.rows.head(MOST_ROWS).map(
                        lambda cell: str(cell).replace("|", "\\|")
                    )
                    lines.append(
                        f"{block.caption}\n\n{table.to_markdown(index=False, disable_numparse=True)}{rest}"
                    )
                case Picture():
                    (out / "figures" / block.name).write_bytes(block.content)
                    lines.append(f"![{block.caption}](figures/{block.name})\n\n{block.caption}")
                case Chart():
                    file = draw.to_png(block, out / "figures" / f"{block.name}.png")
                    lines.append(
                        f"![{block.title}](figures/{file.name})\n\n{block.title}. {block.caption}"
                    )
    return "\n\n".join(lines) + "\n"
