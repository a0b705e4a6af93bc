"""The section on embedding tables: their sizes, and how unevenly their rows are looked up."""

from fastdlrm.data.dataset_statistics import DatasetStatistics
from fastdlrm.data.lookups import CACHE_SHARES, Popularity
from fastdlrm.report.charts import COLORS, INK, Axis, Chart, Series, line_chart
from fastdlrm.report.page import Block, Grid, Paragraph, Section, Share, Table

Named = tuple[str, Popularity]

FAINT = "--background"


def table_section(statistics: DatasetStatistics) -> Section:
    """Table, rank-frequency curves and what a cache would hit."""
    together = statistics.popularity
    if together is None:
        return Section("Embedding tables", [])
    tables = [(table.name, table.popularity) for table in statistics.tables]
    grey = " Grey lines: the smaller tables." if len(tables) > len(COLORS) else ""
    rows = [
        (
            table.name,
            ", ".join(table.features),
            table.encoding,
            f"{table.popularity.num_rows:,}",
            Share(table.popularity.num_used_rows / table.popularity.num_rows),
            Share(table.coverage) if table.encoding == "vocabulary" else "",
            f"{table.popularity.num_lookups:,}",
            *(Share(hit) for hit in table.popularity.cache_hits),
        )
        for table in statistics.tables
    ]
    if len(tables) > 1:
        total = ("all tables", "", "", f"{together.num_rows:,}")
        used = Share(together.num_used_rows / together.num_rows)
        hits = map(Share, together.cache_hits)
        rows.append((*total, used, "", f"{together.num_lookups:,}", *hits))
    sizes = [f"hits with {100 * share:.4g} % of rows" for share in CACHE_SHARES]
    columns = ("table", "features", "ids by", "rows", "rows used", "coverage", "lookups", *sizes)
    blocks: list[Block] = [
        Paragraph(
            "Lookups are those of one pass over train. Coverage is the share of ids that the "
            "vocabulary holds. Hits are the lookups that the most frequent rows take: no cache of "
            "that many rows can serve more."
        ),
        Table(columns=columns, rows=rows, text_columns=(0, 1, 2)),
        Grid(
            [_cache_chart(tables, together, grey), _rank_chart(tables, together, grey)],
            least_px=480,
        ),
    ]
    return Section("Embedding tables", blocks)


def _cache_chart(tables: list[Named], together: Popularity, grey: str) -> Chart:
    series = [
        Series(
            name=name,
            places=[rank / found.num_rows for rank in found.ranks],
            values=found.hits,
            color=color,
            is_faint=is_faint,
        )
        for name, found, color, is_faint in _told_apart(tables, together)
    ]
    return line_chart(
        "What a cache would hit",
        series,
        Axis(
            title="share of rows in the cache, the most frequent first", format=".3~%", is_log=True
        ),
        Axis(title="share of lookups that hit", format=".0%", bounds=(0, 1.02)),
        note=f"Each table with a cache of its own; all tables: the rows of all share one.{grey}",
        height_px=400,
    )


def _rank_chart(tables: list[Named], together: Popularity, grey: str) -> Chart:
    series = [
        Series(
            name=name,
            places=found.ranks,
            values=found.counts,
            color=color,
            is_faint=is_faint,
        )
        for name, found, color, is_faint in _told_apart(tables, together)
    ]
    return line_chart(
        "How often rows are looked up, by rank",
        series,
        Axis(title="rank of the row, 1 the most frequent", format=",d", is_log=True),
        Axis(title="lookups of the row in train", format=",d", is_log=True),
        note=f"A straight line is a power law.{grey}",
        height_px=400,
    )


def _told_apart(
    tables: list[Named], together: Popularity
) -> list[tuple[str, Popularity, str, bool]]:
    """Each line with its color and whether it is background: the largest tables have colors."""
    largest = sorted(tables, key=lambda named: -named[1].num_rows)[: len(COLORS)]
    names = [name for name, _ in largest]
    lines = [(name, found, FAINT, True) for name, found in tables if name not in names]
    lines += [(name, found, COLORS[i], False) for i, (name, found) in enumerate(largest)]
    return [*lines, ("all tables", together, INK, False)] if len(tables) > 1 else lines
