"""The sections on sparse features: ids, bags of them, and the most frequent ids by name."""

from collections.abc import Callable, Sequence

from fastdlrm.data.dataset_statistics import DatasetStatistics, SparseSummary
from fastdlrm.data.distribution import Distribution
from fastdlrm.data.sparse_statistics import LENGTH_QUANTILES, SparseSplit, TopId
from fastdlrm.report.charts import Axis, Chart, Series, dot_chart, line_chart
from fastdlrm.report.dataset_rows import SPLIT_COLORS
from fastdlrm.report.page import Block, Cell, Fold, Grid, Paragraph, Section, Share, Table

_MOST_TEXT = 200
"""Characters of a raw value that are shown."""


def sparse_section(statistics: DatasetStatistics) -> Section:
    """Ids of each sparse feature, and which of them are unknown or missing."""
    sparse = statistics.sparse
    if not sparse:
        return Section("Sparse features", [])
    splits = list(statistics.splits)
    held_out = [name for name in splits if name != "train"]
    columns = ["feature", "table", "key", "different ids", "ids a row", "missing"]
    columns += [f"out of vocabulary in {name}" for name in splits]
    columns += [f"unseen in {name}" for name in held_out]
    rows = [_row(feature, statistics.splits["train"].num_rows) for feature in sparse]
    charts = [
        _shares("Missing", "share of rows", sparse, splits, lambda one: one.missing_share),
        _shares(
            "Out of vocabulary",
            "share of the ids present",
            sparse,
            splits,
            lambda one: one.out_of_vocabulary_share,
        ),
        _shares(
            "Unseen in train",
            "share of the ids present",
            sparse,
            held_out,
            lambda one: one.unseen_share or 0.0,
        ),
    ]
    text = (
        "Different ids, ids a row and missing are those of train. Missing: rows without an id. "
        "Out of vocabulary: ids that have no row of their own, too rare in train or not there. "
        "Unseen: ids whose row the feature never looks up in train, so nothing is learned there; "
        "row 0 is such a row where train has no id out of vocabulary."
    )
    blocks: list[Block] = [
        Paragraph(text),
        Table(columns=columns, rows=rows, text_columns=(0, 1, 2)),
        Grid([chart for chart in charts if chart is not None]),
    ]
    return Section("Sparse features", blocks)


def _row(feature: SparseSummary, num_train_rows: int) -> list[Cell]:
    train, *held_out = feature.splits.values()
    return [
        feature.name,
        feature.table,
        f"{feature.key}, bag" if feature.is_bag else feature.key,
        f"{train.num_distinct:,}",
        f"{train.num_ids / num_train_rows:.2f}",
        Share(train.missing_share),
        *(Share(split.out_of_vocabulary_share) for split in feature.splits.values()),
        *(Share(split.unseen_share) for split in held_out),
    ]


def _shares(
    title: str,
    unit: str,
    sparse: Sequence[SparseSummary],
    splits: Sequence[str],
    share: Callable[[SparseSplit], float],
) -> Chart | None:
    """Dots for a share by feature and split; None where all are 0."""
    shown = [f for f in sparse if any(share(f.splits[split]) for split in splits)]
    if not shown:
        return None
    series = [
        Series(
            name=split,
            values=[share(feature.splits[split]) for feature in shown],
            color=SPLIT_COLORS[split],
        )
        for split in splits
    ]
    names = [feature.name for feature in shown]
    note = "" if len(shown) == len(sparse) else "The other features have none."
    x = Axis(title=unit, format=".3~%", starts_at_zero=True)
    return dot_chart(title, names, series, x, note=note)


def bag_section(statistics: DatasetStatistics) -> Section:
    """How many ids the bags hold, and the weights of weighted ones."""
    bags = [feature for feature in statistics.sparse if feature.is_bag]
    if not bags:
        return Section("Bags", [])
    lines: list[list[Cell]] = []
    for feature in bags:
        for split, found in feature.splits.items():
            if found.lengths is None:
                continue
            lines.append(
                [
                    feature.name,
                    split,
                    Share(found.missing_share),
                    f"{found.lengths.mean:.2f}",
                    *(f"{length:,}" for length in found.lengths.quantiles),
                    f"{found.lengths.maximum:,}",
                    _weights(found.weights) if feature.is_weighted else "1",
                ]
            )
    spread = [f"p{100 * share:.3g}" for share in LENGTH_QUANTILES]
    columns = ("feature", "split", "empty bags", "mean ids", *spread, "max", "weight, mean ± std")
    blocks: list[Block] = [
        Table(columns=columns, rows=lines, text_columns=(0, 1)),
        Grid([_length_chart(feature) for feature in bags]),
    ]
    return Section("Bags", blocks)


def _weights(weights: Distribution | None) -> str:
    return "" if weights is None else f"{weights.mean:.4g} ± {weights.std:.3g}"


def _length_chart(feature: SparseSummary) -> Chart:
    series = []
    for split, found in feature.splits.items():
        if found.lengths is not None:
            series.append(
                Series(
                    name=split,
                    values=[count / found.lengths.num_bags for count in found.lengths.counts],
                    places=range(len(found.lengths.counts)),
                    color=SPLIT_COLORS[split],
                    is_step=True,
                    is_filled=split == "train",
                )
            )
    return line_chart(
        f"Ids a bag: {feature.name}",
        series,
        Axis(title="ids in the bag, up to the 99th percentile", format=",d"),
        Axis(title="share of bags", format=".0%", starts_at_zero=True),
        height_px=300,
    )


def top_section(statistics: DatasetStatistics) -> Section:
    """The ids most frequent in train, with their raw values."""
    features = [feature for feature in statistics.sparse if feature.top]
    if not features:
        return Section("Most frequent ids", [])
    splits = list(statistics.splits)
    folds = [
        Fold(
            title=feature.name,
            table=Table(
                columns=("value", "row", *splits),
                rows=[_top_row(one, splits) for one in feature.top],
            ),
            is_open=True,
        )
        for feature in features
    ]
    text = "Shares of the feature's ids. Encodings “hash” and “identity” keep no values."
    return Section("Most frequent ids", [Paragraph(text), Grid(folds)])


def _top_row(one: TopId, splits: Sequence[str]) -> list[Cell]:
    value = "not kept" if one.value is None else one.value or "(empty text)"
    if len(value) > _MOST_TEXT:
        value = value[: _MOST_TEXT - 1] + "…"
    return [value, f"{one.id:,}", *(Share(one.shares[split]) for split in splits)]
