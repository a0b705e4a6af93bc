"""The page of a run's embedding tables."""

from collections.abc import Sequence
from itertools import pairwise

from fastdlrm.contracts.embeddings import (
    LOOKUP_SHARES,
    NORM_LEVELS,
    EmbeddingStatistics,
    NamedRow,
    Neighbours,
    TableEmbeddings,
)
from fastdlrm.report.charts import COLORS, MUTED, Axis, Chart, Series, line_chart
from fastdlrm.report.page import (
    Block,
    Cell,
    Fold,
    Grid,
    Number,
    Page,
    Paragraph,
    Section,
    Share,
    Table,
)
from fastdlrm.report.provenance import commit_text

NUM_LABELS = 8
"""Values of a projection that are written beside their points."""
_MOST_TEXT = 24
_SHOWN_LEVELS = (5.0, 50.0, 95.0)


def embedding_page(statistics: EmbeddingStatistics) -> Page:
    """The page: all tables beside each other, then each by itself."""
    overview: list[Block] = [
        Paragraph(
            "Lookups are those of one pass over train. A row is unmoved where it is, bit for bit, "
            "as it was drawn before training: rows that train never looks up must be, others are "
            "where no step before the checkpoint had them. Norms are Euclidean."
        ),
        _overview(statistics.tables),
    ]
    return Page(
        title=f"Embedding tables of {statistics.run}",
        subtitle=f"Step {statistics.step:,}, dataset {statistics.data}; looked at by fastdlrm "
        f"{statistics.created_by}, {commit_text(statistics.commit)}",
        sections=[Section("Tables", overview), *map(_section, statistics.tables)],
    )


def _overview(tables: Sequence[TableEmbeddings]) -> Table:
    levels = [NORM_LEVELS.index(level) for level in _SHOWN_LEVELS]
    columns = [
        *("table", "features", "rows", "D", "lookups", "never looked up", "unmoved"),
        "looked up, yet unmoved",
        *(f"norm p{level:g}" for level in _SHOWN_LEVELS),
        *(f"rows of {share:.0%} of lookups" for share in LOOKUP_SHARES),
    ]
    rows: list[list[Cell]] = [
        [
            table.name,
            ", ".join(table.features),
            Number(table.num_rows, ",d"),
            Number(table.embedding_dim, "d"),
            Number(table.num_lookups, ",d"),
            Share(table.num_unseen / table.num_rows),
            Share(table.num_unmoved / table.num_rows),
            Number(table.num_seen_unmoved, ",d"),
            *(Number(table.norm_percentiles[level]) for level in levels),
            *(Share(number / table.num_rows) for number in table.rows_for_lookups),
        ]
        for table in tables
    ]
    return Table(columns=columns, rows=rows, text_columns=(0, 1))


def _section(table: TableEmbeddings) -> Section:
    charts = [_norm_chart(table), _count_chart(table), *_projection_chart(table)]
    blocks: list[Block] = [Grid(charts), Fold("Norms by lookups", _count_table(table))]
    if table.neighbours:
        words = "Nearest by cosine, of the values that train looks up; lookups in brackets."
        blocks.append(Paragraph(words))
        blocks.append(Grid([_neighbour_fold(one) for one in table.neighbours]))
    return Section(f"Table {table.name}", blocks)


def _norm_chart(table: TableEmbeddings) -> Chart:
    middles = [(low + high) / 2 for low, high in pairwise(table.norm_edges)]
    named = (
        ("looked up in train", table.norm_seen, COLORS[0]),
        ("never looked up", table.norm_unseen, MUTED),
    )
    series = [
        Series(
            name=name,
            places=middles,
            values=[count / table.num_rows for count in counts],
            color=color,
            is_step=True,
            is_filled=color == COLORS[0],
        )
        for name, counts, color in named
        if sum(counts)
    ]
    return line_chart(
        f"Norms: {table.name}",
        series,
        Axis(title="norm of the row", format=".3~g", starts_at_zero=True),
        Axis(title="share of rows", format=".0%", starts_at_zero=True),
    )


def _count_chart(table: TableEmbeddings) -> Chart:
    groups = [group for group in table.norms_by_count if group.least > 0]
    series = Series(
        name="median, p10 to p90",
        places=[(group.least * group.most) ** 0.5 for group in groups],
        values=[group.median for group in groups],
        low=[group.p10 for group in groups],
        high=[group.p90 for group in groups],
        mark="both",
    )
    return line_chart(
        f"Norm against lookups: {table.name}",
        [series],
        Axis(title="lookups of the row in train", is_log=True),
        Axis(title="norm of the row", format=".3~g", starts_at_zero=True),
        note="Line: median of the rows looked up about so often; band: p10 to p90.",
    )


def _projection_chart(table: TableEmbeddings) -> list[Chart]:
    found = table.projection
    if found is None:
        return []
    first, second = found.explained
    labelled = Series(
        name=f"the {min(NUM_LABELS, len(found.rows))} most frequent",
        places=found.x[:NUM_LABELS],
        values=found.y[:NUM_LABELS],
        color=COLORS[2],
        mark="points",
        labels=[_value(row) for row in found.rows[:NUM_LABELS]],
    )
    rest = Series(
        name="other values",
        places=found.x[NUM_LABELS:],
        values=found.y[NUM_LABELS:],
        mark="points",
    )
    return [
        line_chart(
            f"Projection: {table.name}",
            [*([rest] if rest.values else []), labelled],
            Axis(title=f"first principal component, {first:.0%} of the variance"),
            Axis(title=f"second, {second:.0%}"),
            note=f"The {len(found.rows)} most frequent values; components of all rows that train "
            "looks up.",
            height_px=400,
        )
    ]


def _count_table(table: TableEmbeddings) -> Table:
    rows: list[list[Cell]] = [
        [
            f"{group.least:,}" if group.least == group.most else f"{group.least:,}-{group.most:,}",
            Number(group.num_rows, ",d"),
            Number(group.p10),
            Number(group.median),
            Number(group.p90),
        ]
        for group in table.norms_by_count
    ]
    columns = ("lookups", "rows", "norm p10", "median", "p90")
    return Table(columns=columns, rows=rows)


def _neighbour_fold(found: Neighbours) -> Fold:
    rows: list[list[Cell]] = [
        [
            f"{_value(one.row)} ({one.row.count:,})",
            Number(one.cosine, ".3f"),
            Number(one.row.norm),
            Number(one.row.row, ",d"),
        ]
        for one in found.nearest
    ]
    title = f"{_value(found.of)} ({found.of.count:,})"
    return Fold(title, Table(columns=("near it", "cosine", "norm", "row"), rows=rows), is_open=True)


def _value(row: NamedRow) -> str:
    text = f"row {row.row}" if row.value is None else row.value or "(empty text)"
    return text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"
