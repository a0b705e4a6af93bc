"""The page of a dataset says what the statistics say."""

import html
import re

import msgspec
import pytest
from scipy.stats import binomtest

from fastdlrm.data.dataset_statistics import dataset_statistics
from fastdlrm.report.charts import Chart
from fastdlrm.report.dataset import dataset_page
from fastdlrm.report.dataset_rows import interval
from fastdlrm.report.page import Fold, Grid, Table
from tests.every_kind import HOSTILE, NOTHING_HELD_OUT, SPARSE, every_kind


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    every_kind(folder)
    return dataset_statistics(folder / "data")


@pytest.fixture(scope="module")
def sections(statistics):
    return {section.title: section for section in dataset_page(statistics).sections}


def blocks_of(section, kind):
    flat = [
        b
        for block in section.blocks
        for b in (block.blocks if isinstance(block, Grid) else [block])
    ]
    return [block for block in flat if isinstance(block, kind)]


def test_order_of_sections(sections):
    assert list(sections) == [
        "Overview",
        "Rows and label",
        "Sparse features",
        "Embedding tables",
        "Bags",
        "Dense features",
        "Drift from train",
        "Most frequent ids",
    ]


def test_rows(sections, statistics):
    splits, files = blocks_of(sections["Rows and label"], Table)
    train = statistics.splits["train"]
    assert splits.rows[0][0] == "train"
    assert splits.rows[0][1] == f"{train.num_rows}"
    assert splits.rows[0][4] == f"{train.num_positives / train.num_rows:.3%}"
    assert [row[0] for row in files.rows] == ["day_0.parquet", "day_1.parquet", "day_2.parquet"]
    (chart,) = blocks_of(sections["Rows and label"], Chart)  # splits here are single runs
    rates = [f.num_positives / f.num_rows for f in statistics.inputs]
    assert chart.figure["data"][0]["x"] == rates


def test_every_feature_has_its_place(sections, statistics):
    names = [feature.name for feature in statistics.sparse]
    (table,) = blocks_of(sections["Sparse features"], Table)
    assert [row[0] for row in table.rows] == names
    assert [fold.title for fold in blocks_of(sections["Most frequent ids"], Fold)] == names
    assert [c.title for c in blocks_of(sections["Dense features"], Chart)] == [
        feature.name for feature in statistics.dense
    ]
    assert [c.title for c in blocks_of(sections["Bags"], Chart)] == ["Ids a bag: seen"]


def test_weights_of_bags(sections, statistics):
    (table,) = blocks_of(sections["Bags"], Table)
    seen = next(f for f in statistics.sparse if f.name == "seen")
    shown = [row[-1] for row in table.rows]
    means = [f"{split.weights.mean:.4g} ± " for split in seen.splits.values()]
    assert [text.startswith(mean) for text, mean in zip(shown, means, strict=True)] == [True] * 3


def test_the_cache_chart_ends_where_all_rows_are_cached(sections, statistics):
    cache, _ = blocks_of(sections["Embedding tables"], Chart)
    traces = {trace["name"]: trace for trace in cache.figure["data"]}
    found = traces["all tables"]
    assert found["x"][-1] == statistics.popularity.num_used_rows / statistics.popularity.num_rows
    assert found["y"][-1] == pytest.approx(1)


def test_drift_is_sorted_by_what_chance_does_not_explain(sections, statistics):
    (chart,) = blocks_of(sections["Drift from train"], Chart)
    shown = [html.unescape(text) for text in chart.figure["layout"]["yaxis"]["ticktext"]]
    excess = {}
    for feature in (*statistics.dense, *statistics.sparse):
        drifts = [s.drift for s in feature.splits.values() if s.drift]
        excess[feature.name] = max(d.distance - d.chance for d in drifts)
    assert shown == sorted(excess, key=lambda name: -excess[name])


def test_hostile_values_are_shown_as_text(statistics):
    text = dataset_page(statistics).html()
    assert HOSTILE not in text
    assert html.escape(HOSTILE) in text
    assert "price &lt;bucket&gt;" in text


def test_many_files_and_tables_are_shown_without_a_legend_for_each(statistics):
    files = tuple(msgspec.structs.replace(statistics.inputs[0], name=f"day_{i}") for i in range(60))
    tables = tuple(
        msgspec.structs.replace(statistics.tables[0], name=f"table {i}") for i in range(9)
    )
    page = dataset_page(msgspec.structs.replace(statistics, inputs=files, tables=tables))
    sections = {section.title: section for section in page.sections}
    (by_file,) = blocks_of(sections["Rows and label"], Chart)
    assert by_file.figure["layout"]["xaxis"]["title"]["text"] == "input file, in order"
    cache, _ = blocks_of(sections["Embedding tables"], Chart)
    in_legend = [trace["name"] for trace in cache.figure["data"] if trace["showlegend"]]
    assert len(in_legend) == 7
    assert "Grey lines" in cache.note


def test_files_that_were_not_counted(statistics):
    files = tuple(msgspec.structs.replace(f, num_positives=None) for f in statistics.inputs)
    page = dataset_page(msgspec.structs.replace(statistics, inputs=files))
    section = next(s for s in page.sections if s.title == "Rows and label")
    assert blocks_of(section, Chart) == []
    assert [row[3] for row in blocks_of(section, Table)[1].rows] == ["not kept"] * 3


@pytest.mark.parametrize("part", ["dense", "sparse"])
def test_sections_without_content_are_left_out(tmp_path, part):
    every_kind(tmp_path, split=NOTHING_HELD_OUT, **{part: ()})
    page = dataset_page(dataset_statistics(tmp_path / "data"))
    titles = [section.title for section in page.sections]
    assert "Drift from train" not in titles
    assert ("Dense features" in titles) == (part == "sparse")
    assert ("Bags" in titles) == (part == "dense")
    assert re.search(r"<h1>Dataset data</h1>", page.html())


def test_a_single_table_stands_for_all(tmp_path):
    every_kind(tmp_path, sparse=SPARSE[2:3])
    page = dataset_page(dataset_statistics(tmp_path / "data"))
    section = next(s for s in page.sections if s.title == "Embedding tables")
    assert [row[0] for row in blocks_of(section, Table)[0].rows] == ["word"]


@pytest.mark.parametrize(("num_positives", "num_rows"), [(0, 20), (3, 50), (500, 1000), (7, 7)])
def test_intervals_equal_scipy(num_positives, num_rows):
    found = binomtest(num_positives, num_rows).proportion_ci(0.95, method="wilson")
    assert interval(num_positives, num_rows) == pytest.approx((found.low, found.high), abs=1e-7)
