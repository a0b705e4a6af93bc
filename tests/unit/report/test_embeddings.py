"""The page of embedding tables: numbers of our choosing."""

from fastdlrm.contracts.embeddings import (
    EmbeddingStatistics,
    NamedRow,
    Neighbour,
    Neighbours,
    NormsByCount,
    Projection,
    TableEmbeddings,
)
from fastdlrm.report.embeddings import embedding_page
from fastdlrm.report.page import Fold, Grid
from fastdlrm.report.page_text import markdown


def row(number, value="v", count=10):
    return NamedRow(row=number, value=value, count=count, norm=1.5)


def table(**changes):
    told = {
        "name": "C1",
        "features": ("C1", "C2"),
        "num_rows": 40,
        "embedding_dim": 4,
        "num_lookups": 1000,
        "num_unseen": 10,
        "num_unmoved": 12,
        "num_seen_unmoved": 2,
        "norm_mean": 1.0,
        "norm_percentiles": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        "norm_edges": (0.0, 1.0, 2.0),
        "norm_seen": (20, 10),
        "norm_unseen": (10, 0),
        "norms_by_count": (
            NormsByCount(least=0, most=0, num_rows=10, p10=0.1, median=0.2, p90=0.3),
            NormsByCount(least=4, most=7, num_rows=30, p10=0.4, median=0.5, p90=0.6),
        ),
        "rows_for_lookups": (2, 10, 30),
        "neighbours": (
            Neighbours(of=row(2, "<b>"), nearest=(Neighbour(row=row(3, ""), cosine=0.875),)),
        ),
        "projection": Projection(
            rows=tuple(row(2 + i, f"v{i}") for i in range(9)),
            x=tuple(map(float, range(9))),
            y=(0.0,) * 9,
            explained=(0.75, 0.125),
        ),
    }
    return TableEmbeddings(**(told | changes))


def page(*tables):
    return embedding_page(
        EmbeddingStatistics(
            created_by="0", commit="aa", run="RUN", step=1200, data="DATA", tables=tables
        )
    )


def charts(section):
    (grid,) = [
        b for b in section.blocks if isinstance(b, Grid) and not isinstance(b.blocks[0], Fold)
    ]
    return grid.blocks


def test_the_overview():
    cells = page(table()).sections[0].blocks[1].rows[0]
    shown = [getattr(cell, "value", cell) for cell in cells]
    # 10 of 40 rows never looked up, 12 of 40 unmoved; 2, 10 and 30 rows of 40
    assert shown == ["C1", "C1, C2", 40, 4, 1000, 0.25, 0.3, 2, 0.2, 0.4, 0.6, 0.05, 0.25, 0.75]


def test_the_charts():
    norms, against, projection = charts(page(table()).sections[1])
    seen, unseen = norms.series
    assert (list(seen.places), list(seen.values)) == ([0.5, 1.5], [0.5, 0.25])
    assert list(unseen.values) == [0.25, 0.0]
    (one,) = against.series  # rows of no lookup are not on a logarithmic scale
    assert (list(one.places), one.values, one.low, one.high) == ([28**0.5], [0.5], [0.4], [0.6])
    rest, labelled = projection.series
    assert list(labelled.labels) == [f"v{i}" for i in range(8)]
    assert list(rest.places) == [8.0]
    assert projection.x == "first principal component, 75% of the variance"


def test_what_is_not_there_has_no_chart():
    (section,) = page(table(projection=None, neighbours=(), norm_unseen=(0, 0))).sections[1:]
    norms, _ = charts(section)
    assert [one.name for one in norms.series] == ["looked up in train"]
    assert not [b for b in section.blocks if isinstance(b, Grid) and isinstance(b.blocks[0], Fold)]


def test_values_stay_text():
    text = markdown(page(table()))
    assert "### &lt;b&gt; (10)" in text
    assert "| (empty text) (10) | 0.875 |" in text
    assert "<b>" not in page(table()).html().partition("<main")[2].partition("<script")[0]


def test_rows_without_values_and_long_values():
    told = Neighbours(of=row(2, None), nearest=(Neighbour(row=row(3, "x" * 30), cosine=0.5),))
    text = markdown(page(table(neighbours=(told,))))
    assert "### row 2 (10)" in text
    assert f"| {'x' * 23}… (10) |" in text
