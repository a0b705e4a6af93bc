"""The section on drift: how far each feature's values in the other splits lie from train's."""

from collections.abc import Mapping

from fastdlrm.data.dataset_statistics import DatasetStatistics
from fastdlrm.data.dense_statistics import DenseSplit
from fastdlrm.data.drift import Drift
from fastdlrm.data.sparse_statistics import SparseSplit
from fastdlrm.report.charts import Axis, Series, dot_chart
from fastdlrm.report.dataset_rows import SPLIT_COLORS
from fastdlrm.report.page import Block, Paragraph, Section

TEXT = (
    "Jensen-Shannon distance between the shares of a feature's values in train and in another "
    "split: 0 where they are the same, 1 where they have nothing in common. Numbers are compared "
    "between train's deciles; ids one by one for the 98 most frequent in train, out of vocabulary "
    "and missing, and together for the rest. The tick is what to expect of two samples of one "
    "distribution: a dot near it says nothing."
)


def drift_section(statistics: DatasetStatistics) -> Section:
    """Features by how far their distance exceeds chance, the farthest first."""
    found = {f.name: _drifts(f.splits) for f in statistics.dense}
    found |= {f.name: _drifts(f.splits) for f in statistics.sparse}
    found = {name: drifts for name, drifts in found.items() if drifts}
    if not found:
        return Section("Drift from train", [])
    names = sorted(found, key=lambda name: -max(map(_excess, found[name].values())))
    series = []
    for split in statistics.splits:
        if split == "train":
            continue
        drifts = [found[name].get(split) for name in names]
        chance = [None if drift is None else drift.chance for drift in drifts]
        distance = [None if drift is None else drift.distance for drift in drifts]
        color = SPLIT_COLORS[split]
        series.append(Series(name=f"{split}, by chance", values=chance, color=color, is_faint=True))
        series.append(Series(name=split, values=distance, color=color))
    x = Axis(title="Jensen-Shannon distance from train", format=".3~f", starts_at_zero=True)
    blocks: list[Block] = [Paragraph(TEXT), dot_chart("Drift by feature", names, series, x)]
    return Section("Drift from train", blocks)


def _drifts(splits: Mapping[str, DenseSplit | SparseSplit]) -> dict[str, Drift]:
    return {name: split.drift for name, split in splits.items() if split.drift is not None}


def _excess(drift: Drift) -> float:
    return drift.distance - drift.chance
