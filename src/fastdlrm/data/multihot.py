"""Bags made of single ids, as MLPerf makes its multi-hot data of Criteo Terabyte.

Each id of a feature stands for a bag of its own: the id itself, then further ids of the table. They
are a hash of (seed, feature, id, place in the bag), so that no map is kept: MLPerf's, of 204 M ids,
takes tens of GiB. Its distributions are kept, its very ids are not.

Invariants: equal ids give equal bags; a shorter bag is the beginning of a longer one; the bags do
not depend on the device.

Shapes: B samples, F sparse features.

Source: MLPerf Training DLRM-DCNv2, its synthesis of multi-hot features.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from fastdlrm import __version__
from fastdlrm.batch import Batch, SparseBatch
from fastdlrm.config import from_tree, to_tree
from fastdlrm.contracts.manifest import (
    DatasetManifest,
    FileEntry,
    SplitInfo,
    sha256_of,
    source_commit,
    write_manifest,
)
from fastdlrm.data import keys, tensor_keys
from fastdlrm.data.config import DataConfig, SparseGroup
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.encode import encoded_schema
from fastdlrm.data.threads import map_in_order
from fastdlrm.data.write import new_folder, seal, write_parts
from fastdlrm.errors import ConfigError, DataError

MLPERF_SIZES = (
    3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1,
)  # fmt: skip
"""Ids a bag of C1 .. C26; 214 in all."""

BagDistribution = Literal["uniform", "pareto"]
"""Of the further ids: uniform over the table's rows; or floor(x) modulo the rows, where x has the
Pareto (Lomax) distribution of shape 0.25."""

_PIECE_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiHot:
    """The bag of every id.

    Attributes:
        features: Names, F of them.
        tables: Rows of each one's table, F of them.
        sizes: Ids a bag, F of them, 1 or more.
        distribution: Of the further ids.
        seed: 0 .. 2**64 - 1.
    """

    features: Sequence[str]
    tables: Sequence[int]
    sizes: Sequence[int]
    distribution: BagDistribution = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.features) or min(self.sizes, default=1) < 1:
            raise ConfigError(
                f"multi-hot sizes {list(self.sizes)} for {len(self.features)} sparse features; one "
                "each, 1 or more, is allowed"
            )

    def bags(self, feature: int, ids: Tensor) -> Tensor:
        """The bags of some ids of a feature.

        Args:
            feature: Its place, 0 .. F - 1.
            ids: Rows of its table, shape (n,), any type of whole numbers.

        Returns:
            The id itself in front, shape (n, size), int32.
        """
        size, rows = self.sizes[feature], self.tables[feature]
        stream = keys.stream(self.seed, f"bag {self.features[feature]}")
        is_pareto = self.distribution == "pareto"
        if ids.device.type == "cpu":  # one pass where tensors take a dozen
            out = np.empty((len(ids), size), dtype=np.int32)
            _write_bags(ids.numpy(), stream, rows, is_pareto, out)
            return torch.from_numpy(out)
        return bags_of(ids, stream, size, rows, is_pareto)

    def __call__(self, batch: Batch) -> Batch:
        """A batch of single ids as one of bags, on its device."""
        F, B = batch.sparse.num_features, batch.num_samples
        bags = [self.bags(f, ids) for f, ids in enumerate(batch.sparse.ids.view(F, B))]
        lengths = torch.tensor(self.sizes, dtype=torch.int32, device=batch.dense.device)
        sparse = SparseBatch(
            ids=torch.cat([bag.view(-1) for bag in bags]),
            lengths=lengths.repeat_interleave(B),
            weights=None,
            num_features=F,
        )
        return Batch(dense=batch.dense, sparse=sparse, labels=batch.labels)


def bags_of(ids: Tensor, stream: np.uint64, size: int, rows: int, is_pareto: bool) -> Tensor:
    """The bags of some ids on any device: what `MultiHot.bags` means.

    Args:
        ids: Shape (n,), any type of whole numbers.
        stream: Of the feature.
        size: Ids a bag.
        rows: Of the table.
        is_pareto: Distribution of the further ids; else uniform.

    Returns:
        The id itself in front, shape (n, size), int32.
    """
    places = torch.arange(1, size, device=ids.device) << 32
    own = tensor_keys.mix(ids.long()[:, None] | places)
    unit = tensor_keys.unit_of(tensor_keys.mix(tensor_keys.signed(stream) ^ own))
    if is_pareto:
        inverse = 1 / (1 - unit)  # products, not a power: they are rounded alike everywhere
        square = inverse * inverse
        further = torch.fmod((square * square - 1).floor_(), rows)
    else:
        further = unit * rows
    return torch.cat([ids.int()[:, None], further.int().clamp_(max=rows - 1)], 1)


@njit(cache=True, nogil=True)
def _write_bags(
    ids: NDArray[Any], stream: np.uint64, rows: int, is_pareto: bool, out: NDArray[np.int32]
) -> None:
    """`bags_of`, compiled; `out` has the shape (n, size)."""
    for i in range(len(ids)):
        out[i, 0] = ids[i]
        for place in range(1, out.shape[1]):
            own = keys.mix(np.uint64(ids[i]) | (np.uint64(place) << np.uint64(32)))
            unit = np.float64(keys.mix(stream ^ own) >> np.uint64(11)) * 2.0**-53
            if is_pareto:
                inverse = 1.0 / (1.0 - unit)
                square = inverse * inverse
                out[i, place] = np.fmod(np.floor(square * square - 1.0), rows)
            else:
                out[i, place] = min(int(unit * rows), rows - 1)


def write_multi_hot(
    dataset: Dataset,
    out: Path,
    sizes: Sequence[int],
    *,
    distribution: BagDistribution = "uniform",
    seed: int = 0,
    num_workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> DatasetManifest:
    """Write a dataset whose single ids have become bags; rows, their order and splits stay.

    Args:
        dataset: Single ids only.
        out: Folder to make; absent or empty.
        sizes: Ids a bag by sparse feature; a feature of size 1 stays as it is.
        distribution: Of the further ids.
        seed: 0 .. 2**64 - 1.
        num_workers: Threads; the bytes do not depend on it.
        progress: Takes the number of rows written since it was last called.

    Raises:
        ConfigError: There is not one size a feature, or a number is out of range.
        DataError: A feature is a bag already, `out` is not empty, or the disk is full.
    """
    maker = _maker_of(dataset, sizes, distribution, seed)
    source = dataset.manifest
    data = _with_bags(from_tree(source.config["data"], DataConfig, str(dataset.folder)), maker)
    schema = data.schema()
    columns = encoded_schema(schema, source.encoding)
    splits: dict[str, SplitInfo] = {}

    def expand(rows: pa.RecordBatch) -> pa.RecordBatch:
        return _expanded(rows, maker, columns)

    with new_folder(out) as folder:
        files = _copied_vocabularies(dataset, folder)
        for split in source.splits:
            pieces = map_in_order(expand, _pieces(dataset, split), num_workers)
            written = write_parts(folder, split, _observed(pieces, progress))
            files |= written.files
            splits[split] = written.info
        made_of = {
            "sizes": list(sizes),
            "distribution": distribution,
            "seed": seed,
            "dataset_sha256": sha256_of(dataset.manifest_path),
        }
        manifest = msgspec.structs.replace(
            source,
            created_by=__version__,
            commit=source_commit(),
            config={**source.config, "data": to_tree(data), "multihot": made_of},
            files=files,
            schema=schema,
            splits=splits,
        )
        write_manifest(folder, manifest)
    return manifest


def _maker_of(
    dataset: Dataset, sizes: Sequence[int], distribution: BagDistribution, seed: int
) -> MultiHot:
    source = dataset.manifest
    for feature in source.schema.sparse:
        if feature.bag:
            raise DataError(
                f"{dataset.folder}: feature {feature.name!r} is a bag already; name a dataset of "
                "single ids"
            )
    if not 0 <= seed < 2**64:
        raise ConfigError(f"multi-hot seed is {seed}; 0 .. 2**64 - 1 is allowed")
    return MultiHot(
        features=[f.name for f in source.schema.sparse],
        tables=[source.encoding.tables[f.table].num_embeddings for f in source.schema.sparse],
        sizes=sizes,
        distribution=distribution,
        seed=seed,
    )


def _copied_vocabularies(dataset: Dataset, folder: Path) -> dict[str, FileEntry]:
    files = {}
    for table in dataset.manifest.encoding.tables.values():
        if table.vocabulary:
            target = folder / table.vocabulary
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(dataset.folder / table.vocabulary, target)
            files[table.vocabulary] = seal(target)
    return files


def _pieces(dataset: Dataset, split: str) -> Iterator[pa.RecordBatch]:
    for rows in dataset.record_batches(split):
        for start in range(0, rows.num_rows, _PIECE_ROWS):
            yield rows.slice(start, _PIECE_ROWS)


def _expanded(rows: pa.RecordBatch, maker: MultiHot, columns: pa.Schema) -> pa.RecordBatch:
    """Rows whose single ids have become bags."""
    places = {name: f for f, name in enumerate(maker.features) if maker.sizes[f] > 1}
    arrays = []
    for field in columns:
        values = rows.column(field.name)
        if field.name in places:
            feature = places[field.name]
            size = maker.sizes[feature]
            ids = torch.from_numpy(values.to_numpy().astype(np.int64))  # torch lacks some types
            bags = maker.bags(feature, ids).view(-1).numpy()
            offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * size)
            id_type = field.type.value_type.to_pandas_dtype()
            values = pa.ListArray.from_arrays(offsets, pa.array(bags.astype(id_type)))
        arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _observed(
    pieces: Iterator[pa.RecordBatch], progress: Callable[[int], None] | None
) -> Iterator[pa.RecordBatch]:
    for piece in pieces:
        yield piece
        if progress is not None:
            progress(piece.num_rows)


def _with_bags(data: DataConfig, maker: MultiHot) -> DataConfig:
    """The config of the bags: a group a feature, which asks raw files for a column of bags.

    Its name is not that of the single ids, so that scoring a raw log of single ids is refused.
    """
    sizes = dict(zip(maker.features, maker.sizes, strict=True))
    groups: list[SparseGroup] = []
    for group in data.sparse:
        for column in group.columns:
            name = group.name.replace("{column}", column)
            changes: dict[str, Any] = {"name": name, "table": group.table or name}
            is_single = sizes[name] == 1
            changes["columns"] = (column if is_single else f"{column} x {sizes[name]}",)
            changes |= {} if is_single else {"bag": True, "separator": " "}
            groups.append(msgspec.structs.replace(group, **changes))
    return msgspec.structs.replace(data, sparse=tuple(groups))
