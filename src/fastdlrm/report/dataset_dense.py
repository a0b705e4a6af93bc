"""The section on dense features: their numbers, and how these lie in each split."""

from fastdlrm.data.dataset_statistics import DatasetStatistics, DenseSummary
from fastdlrm.data.distribution import QUANTILES
from fastdlrm.report.charts import Axis, Chart, Series, line_chart
from fastdlrm.report.dataset_rows import SPLIT_COLORS
from fastdlrm.report.page import Block, Cell, Grid, Paragraph, Section, Share, Table

_SHOWN = (0.01, 0.25, 0.5, 0.75, 0.99)


def dense_section(statistics: DatasetStatistics) -> Section:
    """Moments, quantiles and histograms."""
    if not statistics.dense:
        return Section("Dense features", [])
    spread = [f"p{100 * share:.3g}" for share in _SHOWN]
    columns = ("feature", "transform", "mean", "std", "min", *spread, "max", "fill", "at the fill")
    text = (
        "Numbers as the model sees them, after fill and transform; the table is of train. At the "
        "fill: rows that lacked a value, and those whose value is the same; a dataset does not "
        "tell them apart. The outer bars of a histogram hold all that lies beyond."
    )
    blocks: list[Block] = [
        Paragraph(text),
        Table(columns=columns, rows=list(map(_row, statistics.dense)), text_columns=(0, 1)),
        Grid([_histogram(feature) for feature in statistics.dense], least_px=330),
    ]
    return Section("Dense features", blocks)


def _row(feature: DenseSummary) -> list[Cell]:
    train = feature.splits["train"]
    found = train.distribution
    quantiles = dict(zip(QUANTILES, found.quantiles, strict=True))
    numbers = [found.mean, found.std, found.minimum]
    numbers += [*(quantiles[share] for share in _SHOWN), found.maximum, feature.fill]
    cells = [_number(number, found.std) for number in numbers]
    return [feature.name, feature.transform, *cells, Share(train.fill_share)]


def _histogram(feature: DenseSummary) -> Chart:
    edges = feature.edges
    width = edges[1] - edges[0] if len(edges) > 1 else 1.0
    first = edges[0] - width / 2 if edges else feature.splits["train"].distribution.minimum
    series = [
        Series(
            name=split,
            values=[count / found.distribution.num_values for count in found.histogram],
            places=[first + i * width for i in range(len(found.histogram))],
            color=SPLIT_COLORS[split],
            is_step=True,
            is_filled=split == "train",
        )
        for split, found in feature.splits.items()
    ]
    transform = "" if feature.transform == "none" else f", {feature.transform}"
    return line_chart(
        feature.name,
        series,
        Axis(title=f"value{transform}", format=".3~g"),
        Axis(title="share of rows", format=".3~%", starts_at_zero=True),
        height_px=250,
    )


def _number(number: float, std: float) -> str:
    """Four digits; rounding noise about zero is zero."""
    return "0" if abs(number) < 1e-6 * std else f"{number:.4g}"
