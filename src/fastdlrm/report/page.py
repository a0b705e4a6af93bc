"""One self-contained HTML page: sections of text, tables and charts, light or dark, no requests.

Whatever comes from data is escaped; the page's own policy forbids it to load anything.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from fastdlrm import __version__
from fastdlrm.contracts.manifest import write_atomic
from fastdlrm.errors import ConfigError
from fastdlrm.report.charts import Chart


@dataclass(frozen=True, slots=True)
class Share:
    """A cell that shows a share as text and as a bar.

    Attributes:
        value: 0 to 1; None shows an empty cell.
    """

    value: float | None


@dataclass(frozen=True, slots=True)
class Number:
    """A cell that shows a number.

    Attributes:
        value: None shows an empty cell.
        format: Python's, of what is shown.
    """

    value: float | None
    format: str = ".4g"

    @property
    def text(self) -> str:
        """As it is shown."""
        return "" if self.value is None else format(self.value, self.format)


Cell = str | Share | Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        columns: Headers.
        rows: As many cells each.
        text_columns: Those of text, to the left; the others are numbers, to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: Sequence[int] = (0,)


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True, slots=True)
class Notes:
    """Remarks, one a line."""

    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Key figures: name, value."""

    figures: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks beside each other where the window is wide.

    Attributes:
        blocks: In order.
        least_px: Width below which they stand one under the other.
    """

    blocks: Sequence["Chart | Fold"]
    least_px: int = 440


@dataclass(frozen=True, slots=True)
class Fold:
    """A table under a title that opens and closes it."""

    title: str
    table: Table
    is_open: bool = False


Block = Paragraph | Notes | Tiles | Table | Chart | Grid | Fold


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page.

    Attributes:
        title: Of the window and on top.
        subtitle: What made what it shows.
        sections: In order, listed on top.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]

    def write(self, path: Path) -> None:
        """Write the page, atomically, over what was there.

        Raises:
            ConfigError: As `check_output`.
        """
        check_output(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.html().encode())

    def html(self) -> str:
        """The page as text."""
        from plotly.offline import get_plotlyjs

        body = _Body()
        sections = "".join(body.section(i, section) for i, section in enumerate(self.sections))
        links = "".join(
            f'<a href="#section-{i}">{escape(section.title)}</a>'
            for i, section in enumerate(self.sections)
        )
        resources = files("fastdlrm.report")
        text = (resources / "page.html").read_text(encoding="utf-8")
        parts = {
            "title": escape(self.title),
            "subtitle": escape(self.subtitle),
            "style": (resources / "page.css").read_text(encoding="utf-8"),
            "links": links,
            "sections": sections,
            "version": escape(__version__),
            "charts": _json(body.charts),
            "plotly": get_plotlyjs() if body.charts else "",
            "script": (resources / "page.js").read_text(encoding="utf-8"),
        }
        pieces = text.split("@@")  # text, name, text, name, ..., text: what is put in is not read
        return "".join(parts[p] if i % 2 else p for i, p in enumerate(pieces))


def check_output(path: Path) -> None:
    """Refuse, before the work, what would fail after it.

    Raises:
        ConfigError: Plotly is not installed, or the path is a folder.
    """
    if find_spec("plotly") is None:
        raise ConfigError("a page's charts need plotly; pip install 'fastdlrm[report]'")
    if path.is_dir():
        raise ConfigError(f"{path}: a folder; name the HTML file to write")


class _Body:
    """Turns blocks into HTML and collects their charts."""

    def __init__(self) -> None:
        self.charts: list[Chart] = []

    def section(self, number: int, section: Section) -> str:
        blocks = "".join(map(self._block, section.blocks))
        title = escape(section.title)
        return f'<section id="section-{number}"><h2>{title}</h2>{blocks}</section>\n'

    def _block(self, block: Block) -> str:
        match block:
            case Paragraph():
                return f"<p>{escape(block.text)}</p>"
            case Notes():
                items = "".join(f"<li>{escape(text)}</li>" for text in block.texts)
                return f'<ul class="notes">{items}</ul>'
            case Tiles():
                return f'<dl class="tiles">{"".join(map(_tile, block.figures))}</dl>'
            case Table():
                return _table(block)
            case Fold():
                is_open = " open" if block.is_open else ""
                title = escape(block.title)
                return (
                    f"<details{is_open}><summary>{title}</summary>{_table(block.table)}</details>"
                )
            case Grid():
                cells = "".join(map(self._block, block.blocks))
                return f'<div class="grid" style="--least: {block.least_px}px">{cells}</div>'
            case Chart():
                return self._chart(block)

    def _chart(self, chart: Chart) -> str:
        self.charts.append(chart)
        title = escape(chart.title)
        note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
        return (
            f'<figure><figcaption>{title}</figcaption><div class="chart" role="img" '
            f'aria-label="{title}" style="height: {chart.height_px}px"></div>{note}</figure>'
        )


def _tile(figure: tuple[str, str]) -> str:
    name, value = map(escape, figure)
    return f"<div><dt>{name}</dt><dd>{value}</dd></div>"


def _table(table: Table) -> str:
    kinds = ["text" if i in table.text_columns else "number" for i in range(len(table.columns))]
    head = "".join(
        f'<th class="{kind}">{escape(name)}</th>'
        for kind, name in zip(kinds, table.columns, strict=True)
    )
    rows = "".join(
        f"<tr>{''.join(_cell(*cell) for cell in zip(kinds, row, strict=True))}</tr>"
        for row in table.rows
    )
    return (
        f'<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(kind: str, cell: Cell) -> str:
    style = ""
    if isinstance(cell, Share) and cell.value is not None:
        kind, style = f"{kind} share", f' style="--share: {cell.value:.2%}"'
    return f'<td class="{kind}"{style}>{escape(cell_text(cell))}</td>'


def cell_text(cell: Cell) -> str:
    """What a cell shows.

    Of a share, one digit after the point; what is not nothing is not shown as nothing.
    """
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Number):
        return cell.text
    if not cell.value:
        return "" if cell.value is None else "0"
    return "< 0.1%" if cell.value < 0.0005 else f"{cell.value:.1%}"


def _json(charts: Sequence[Chart]) -> str:
    """The figures as JSON that cannot end the script element it stands in."""
    text = json.dumps([chart.figure for chart in charts], allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
