"""A page as Markdown, and as plain data: the same sections, tables and numbers.

In Markdown a chart is its numbers: they stand in a table of the section already, so that only its
title and note are left.
"""

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from fastdlrm.report.charts import Chart
from fastdlrm.report.page import (
    Block,
    Cell,
    Fold,
    Grid,
    Notes,
    Page,
    Paragraph,
    Table,
    Tiles,
    cell_text,
)

_SIGNS = re.compile(r"[\\|*`\[\]]|(?<!\w)_|_(?!\w)")
"""What Markdown reads as markup; a "_" within a word is none."""


def markdown(page: Page) -> str:
    """A page as Markdown; what comes from data stays text."""
    lines = [f"# {_plain(page.title)}", "", _plain(page.subtitle), ""]
    for section in page.sections:
        lines += [f"## {_plain(section.title)}", ""]
        for block in section.blocks:
            lines += [*_lines(block), ""]
    return "\n".join(lines)


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Paragraph():
            yield _plain(block.text)
        case Notes():
            yield from (f"- {_plain(text)}" for text in block.texts)
        case Tiles():
            yield from (f"- {_plain(name)}: {_plain(value)}" for name, value in block.figures)
        case Table():
            yield from _table(block)
        case Fold():
            yield from (f"### {_plain(block.title)}", "")
            yield from _table(block.table)
        case Grid():
            for inner in block.blocks:
                yield from _lines(inner)
                yield ""
        case Chart():
            words = f"**{_plain(block.title)}** ({_plain(_axes(block))}). {_plain(block.note)}"
            yield words.strip()


def _axes(chart: Chart) -> str:
    return f"{chart.y} against {chart.x}" if chart.y else chart.x


def _table(table: Table) -> Iterator[str]:
    yield _row([_plain(name) for name in table.columns])
    yield _row([":---" if i in table.text_columns else "---:" for i in range(len(table.columns))])
    for row in table.rows:
        yield _row([_plain(cell_text(cell)) for cell in row])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that is no markup, on one line."""
    words = " ".join(escape(text, quote=False).split())
    return _SIGNS.sub(r"\\\g<0>", words)


def tree(page: Page) -> dict[str, Any]:
    """A page as plain data, numbers as numbers."""
    sections = [
        {"title": section.title, "blocks": [_tree(block) for block in section.blocks]}
        for section in page.sections
    ]
    return {"title": page.title, "subtitle": page.subtitle, "sections": sections}


def _tree(block: Block) -> dict[str, Any]:
    match block:
        case Paragraph():
            return {"kind": "text", "text": block.text}
        case Notes():
            return {"kind": "notes", "notes": list(block.texts)}
        case Tiles():
            return {"kind": "figures", "figures": dict(block.figures)}
        case Table():
            rows = [[_number(cell) for cell in row] for row in block.rows]
            return {"kind": "table", "columns": list(block.columns), "rows": rows}
        case Fold():
            return {**_tree(block.table), "title": block.title}
        case Grid():
            return {"kind": "group", "blocks": [_tree(inner) for inner in block.blocks]}
        case Chart():
            return _chart(block)


def _number(cell: Cell) -> str | float | None:
    return cell if isinstance(cell, str) else cell.value


def _chart(chart: Chart) -> dict[str, Any]:
    series = []
    for one in chart.series:
        found: dict[str, Any] = {"name": one.name}
        found |= {"x": list(one.places)} if one.places else {}
        found["y"] = list(one.values)
        found |= {"low": list(one.low), "high": list(one.high)} if one.low else {}
        found |= {"labels": list(one.labels)} if one.labels else {}
        series.append(found)
    rows = {"rows": list(chart.rows)} if chart.rows else {}
    titles = {"kind": "chart", "title": chart.title, "x": chart.x, "y": chart.y}
    return {**titles, "note": chart.note, **rows, "series": series}
