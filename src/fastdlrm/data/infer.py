"""A raw file -> its layout, statistics of its columns, a proposed [data] section, and warnings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from fastdlrm.config import toml_value
from fastdlrm.contracts.schema import Label
from fastdlrm.data.config import DataConfig, Holdout, SourceConfig, SplitConfig
from fastdlrm.data.parquet import ParquetReader
from fastdlrm.data.profile import ColumnStatistics, profile
from fastdlrm.data.propose import Proposal, propose_features, propose_label
from fastdlrm.data.sniff import is_parquet, missing_texts, text_layout
from fastdlrm.data.source import require_file
from fastdlrm.data.text import TextReader
from fastdlrm.data.values import without_missing
from fastdlrm.errors import DataError

HELD_OUT = 0.1
"""Share of rows proposed for validation, and for test."""


@dataclass(frozen=True, slots=True)
class Inference:
    """What a raw file seems to be.

    Attributes:
        config: The proposed [data] section.
        columns: Statistics of every raw column, in file order.
        warnings: What a person should look at before training.
        num_rows: Rows of the sample, malformed ones left out.
    """

    config: DataConfig
    columns: tuple[ColumnStatistics, ...]
    warnings: tuple[str, ...]
    num_rows: int


def infer(path: Path, sample_rows: int = 100_000) -> Inference:
    """Look into a raw file and propose how to prepare it, by the rules of `fastdlrm.data.propose`.

    Args:
        path: CSV or TSV, plain or gzipped, with or without a header; or Parquet.
        sample_rows: First rows to look at.

    Raises:
        DataError: The file cannot be read, is no table, or holds no good row.
    """
    require_file(path)
    proposal = Proposal()
    source = SourceConfig(format="parquet") if is_parquet(path) else text_layout(path)
    sample = _sample(path, source, sample_rows, proposal)
    if source.format == "csv":
        source = msgspec.structs.replace(source, missing=missing_texts(sample))
    profiles = [
        profile(name, without_missing(column, source.missing), source.delimiter)
        for name, column in zip(sample.schema.names, sample.columns, strict=True)
    ]
    label, labels = propose_label(profiles, proposal), None
    if label is None:
        label = Label(column="", positive=("1",), negative=("0",))
        proposal.warnings.append("no column can be the label; set data.label by hand")
    else:
        proposal.made_of[label.column] = "label"
        text = next(p for p in profiles if p.name == label.column).text
        labels = pc.is_in(text, pa.array(label.positive)).to_numpy(zero_copy_only=False)
    features = [p for p in profiles if p.name != label.column]
    propose_features(features, labels, proposal)
    config = DataConfig(
        source=source,
        label=label,
        dense=proposal.dense_groups(),
        sparse=proposal.sparse_groups(),
        split=_split(proposal),
        shuffle=True,
        seed=1,
    )
    return Inference(
        config=config,
        columns=tuple(p.statistics(proposal.made_of[p.name]) for p in profiles),
        warnings=tuple(proposal.warnings),
        num_rows=sample.num_rows,
    )


def to_toml(config: DataConfig) -> str:
    """The [data] section as TOML, without what is by default; read back, it is the same config."""
    lines = ["[data]", *_fields(config, skip=("source", "label", "dense", "sparse", "split"))]
    lines += ["", "[data.source]", *_fields(config.source)]
    lines += ["", "[data.label]", *_fields(config.label)]
    for name, groups in (("dense", config.dense), ("sparse", config.sparse)):
        for group in groups:
            lines += ["", f"[[data.{name}]]", *_fields(group)]
        if not groups:
            lines.insert(1, f"{name} = []")
    for name in ("validation", "test"):
        lines += ["", f"[data.split.{name}]", *_fields(getattr(config.split, name))]
    return "\n".join(lines) + "\n"


def _fields(struct: msgspec.Struct, skip: tuple[str, ...] = ()) -> list[str]:
    given = [
        (field.name, getattr(struct, field.name))
        for field in msgspec.structs.fields(struct)
        if field.name not in skip and getattr(struct, field.name) != field.default
    ]
    return [f"{name} = {toml_value(value)}" for name, value in given]


def _sample(path: Path, source: SourceConfig, num_rows: int, proposal: Proposal) -> pa.RecordBatch:
    batches: list[pa.RecordBatch] = []
    num_found, bad = 0, []
    reader = ParquetReader(path) if source.format == "parquet" else TextReader(path, source)
    for batch in reader.batches():
        batches.append(batch.columns)
        bad += batch.bad
        num_found += batch.columns.num_rows
        if num_found >= num_rows:
            break
    if num_found == 0 and bad:
        line, reason = bad[0]
        raise DataError(
            f"{path.name}: none of its rows can be read; the first, line {line}: {reason}; convert "
            "it to delimited UTF-8 text or Parquet"
        )
    if num_found == 0:
        raise DataError(f"{path.name}: no rows; name a file that has some")
    if bad:
        line, reason = bad[0]
        proposal.warnings.append(f"{len(bad)} malformed rows, the first in line {line}: {reason}")
    table = pa.Table.from_batches(batches)[:num_rows].combine_chunks()
    return table.to_batches()[0]


def _split(proposal: Proposal) -> SplitConfig:
    by: Literal["time", "hash"] = "time" if proposal.time else "hash"
    held_out = Holdout(by=by, amount=HELD_OUT, column=proposal.time)
    return SplitConfig(validation=held_out, test=held_out)
