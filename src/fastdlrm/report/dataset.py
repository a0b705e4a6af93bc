"""The page of a dataset: what of its statistics is shown, in which order."""

from fastdlrm.data.dataset_statistics import DatasetStatistics
from fastdlrm.report.dataset_dense import dense_section
from fastdlrm.report.dataset_drift import drift_section
from fastdlrm.report.dataset_rows import rows_section
from fastdlrm.report.dataset_sparse import bag_section, sparse_section, top_section
from fastdlrm.report.dataset_tables import table_section
from fastdlrm.report.page import Page, Section, Tiles

_UNITS = ((10**9, "billion"), (10**6, "M"))


def dataset_page(statistics: DatasetStatistics) -> Page:
    """The page of a dataset."""
    commit = f", commit {statistics.commit[:12]}" if statistics.commit else ""
    sections = [
        Section("Overview", [_tiles(statistics)]),
        rows_section(statistics),
        sparse_section(statistics),
        table_section(statistics),
        bag_section(statistics),
        dense_section(statistics),
        drift_section(statistics),
        top_section(statistics),
    ]
    return Page(
        title=f"Dataset {statistics.name}",
        subtitle=f"Prepared by fastdlrm {statistics.created_by}{commit}",
        sections=[section for section in sections if section.blocks],
    )


def _tiles(statistics: DatasetStatistics) -> Tiles:
    num_rows = sum(split.num_rows for split in statistics.splits.values())
    num_positives = sum(split.num_positives for split in statistics.splits.values())
    figures = [
        ("rows", _compact(num_rows)),
        ("label rate", f"{num_positives / num_rows:.2%}"),
        ("dense features", f"{len(statistics.dense)}"),
        ("sparse features", f"{len(statistics.sparse)}"),
    ]
    if statistics.popularity is not None:
        num_train = statistics.splits["train"].num_rows
        figures += [
            ("embedding tables", f"{len(statistics.tables)}"),
            ("rows of all tables", _compact(statistics.popularity.num_rows)),
            ("ids a train row", f"{statistics.popularity.num_lookups / num_train:.1f}"),
        ]
    return Tiles(figures)


def _compact(number: int) -> str:
    """Three digits of millions."""
    for unit, name in _UNITS:
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,}"
