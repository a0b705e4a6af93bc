"""The section on rows: splits, input files, and the label rate over them."""

from collections.abc import Sequence
from math import sqrt

from fastdlrm.contracts.manifest import InputFile
from fastdlrm.data.dataset_statistics import DatasetStatistics, SplitSummary
from fastdlrm.report.charts import COLORS, Axis, Chart, Series, dot_chart, line_chart
from fastdlrm.report.page import Block, Grid, Paragraph, Section, Share, Table

SPLIT_COLORS = dict(zip(("train", "validation", "test"), COLORS, strict=False))
"""The same in every chart."""

_MOST_FILES = 40
"""Files that a chart can name; of more it shows the numbers."""


def rows_section(statistics: DatasetStatistics) -> Section:
    """Sizes and label rates of the splits and of the input files."""
    total = sum(split.num_rows for split in statistics.splits.values())
    rows = [
        (
            name,
            f"{split.num_rows:,}",
            Share(split.num_rows / total),
            f"{split.num_positives:,}",
            f"{split.num_positives / split.num_rows:.3%}",
            "shuffled" if split.is_shuffled else "that of the input",
        )
        for name, split in statistics.splits.items()
    ]
    columns = ("split", "rows", "share of rows", "positives", "label rate", "order of rows")
    blocks: list[Block] = [Table(columns=columns, rows=rows, text_columns=(0, 5))]
    charts = [*_file_chart(statistics.inputs), *_run_chart(statistics.splits)]
    if charts:
        blocks.append(Grid(charts))
    blocks.append(_order_text(statistics))
    blocks.append(_files_table(statistics.inputs))
    return Section("Rows and label", blocks)


def _order_text(statistics: DatasetStatistics) -> Paragraph:
    shuffled = [name for name, split in statistics.splits.items() if split.is_shuffled]
    text = "A dataset keeps no times: the input files, and the order of the rows, stand for them."
    if shuffled:
        text += f" The rows of {', '.join(shuffled)} are shuffled, so their order says nothing."
    return Paragraph(text)


def _file_chart(inputs: Sequence[InputFile]) -> list[Chart]:
    counted = [(f.name, f.num_rows, f.num_positives) for f in inputs if f.num_positives is not None]
    if len(counted) < 2:
        return []
    title, note = "Label rate by input file", "With 95 % intervals; rows of all splits."
    bounds = [interval(positives, num_rows) for _, num_rows, positives in counted]
    series = Series(
        name="label rate",
        values=[positives / num_rows for _, num_rows, positives in counted],
        places=range(1, len(counted) + 1),
        low=[low for low, _ in bounds],
        high=[high for _, high in bounds],
    )
    rate = Axis(title="label rate", format=".1%", starts_at_zero=True)
    if len(counted) <= _MOST_FILES:
        return [dot_chart(title, [name for name, _, _ in counted], [series], rate, note=note)]
    number = Axis(title="input file, in order", format=",d")
    return [line_chart(title, [series], number, rate, note=note)]


def _run_chart(splits: dict[str, SplitSummary]) -> list[Chart]:
    series = []
    for name, split in splits.items():
        if len(split.runs) < 2:
            continue
        bounds = [interval(run.num_positives, run.num_rows) for run in split.runs]
        series.append(
            Series(
                name=name,
                values=[run.num_positives / run.num_rows for run in split.runs],
                places=[(i + 0.5) / len(split.runs) for i in range(len(split.runs))],
                low=[low for low, _ in bounds],
                high=[high for _, high in bounds],
                color=SPLIT_COLORS[name],
            )
        )
    if not series:
        return []
    return [
        line_chart(
            "Label rate along a split, in input order",
            series,
            Axis(title="share of the split's rows before", format=".0%", bounds=(0, 1)),
            Axis(title="label rate", format=".1%", starts_at_zero=True),
            note="Runs of equal numbers of rows, with 95 % intervals.",
        )
    ]


def _files_table(inputs: Sequence[InputFile]) -> Table:
    rows = []
    for file in inputs:
        positives = file.num_positives
        counts = (
            (f"{positives:,}", f"{positives / file.num_rows:.3%}")
            if positives is not None
            else ("not kept", "")
        )
        rows.append((file.name, f"{file.num_rows:,}", f"{file.num_bad_rows:,}", *counts))
    columns = ("input file", "rows", "bad rows left out", "positives", "label rate")
    return Table(columns=columns, rows=rows)


def interval(num_positives: int, num_rows: int) -> tuple[float, float]:
    """95 % interval of a rate.

    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    z, rate = 1.959964, num_positives / num_rows
    scale = 1 + z * z / num_rows
    center = (rate + z * z / (2 * num_rows)) / scale
    half = z * sqrt(rate * (1 - rate) / num_rows + z * z / (4 * num_rows**2)) / scale
    return center - half, center + half
