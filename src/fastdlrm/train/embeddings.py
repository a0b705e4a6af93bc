"""What training has made of a run's embedding tables: norms, dead rows, neighbours, a projection.

Tables are read from the checkpoint run of rows by run of rows, twice at most; what is kept of a row
is its norm, its lookups and whether it moved: some 50 bytes while they are sorted. Of a compressed
table, whose parts are held in memory, a row is the vector that an id gets.

Shapes: R rows of a table, D embedding dim, n rows of a run, Q rows whose neighbours are sought.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdlrm import __version__
from fastdlrm.checkpoint.rows import stored_rows
from fastdlrm.contracts.embeddings import (
    LOOKUP_SHARES,
    NORM_LEVELS,
    EmbeddingStatistics,
    NamedRow,
    Neighbour,
    Neighbours,
    NormsByCount,
    Projection,
    TableEmbeddings,
)
from fastdlrm.contracts.encoding import TableEncoding
from fastdlrm.contracts.manifest import CheckpointManifest, read_manifest, source_commit
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.lookups import Counts, Spectrum, most_frequent
from fastdlrm.data.sparse_statistics import feature_counts
from fastdlrm.data.vocabulary import find_value, read_values
from fastdlrm.errors import ConfigError
from fastdlrm.model.embedding import drawn_rows
from fastdlrm.model.layout import composition_of, table_sizes
from fastdlrm.stats import percentiles
from fastdlrm.train.run import Run
from fastdlrm.train.table_rows import Drawn, Rows, rows_of

NUM_SHOWN = 500
"""Values of a table that are projected, the most frequent ones."""
NUM_QUERIES = 5
"""Values of a table whose neighbours are sought where none is asked for."""
NUM_BINS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is looked at.

    Attributes:
        tables: Their names; empty for all.
        near: Raw values by table whose neighbours are sought, in place of the most frequent.
        num_neighbours: Of each.
    """

    tables: Sequence[str] = ()
    near: Mapping[str, Sequence[str]]
    num_neighbours: int = 8


def embedding_statistics(
    run: Path,
    data: Path,
    wanted: Wanted,
    checkpoint: str = "best",
    progress: Callable[[str, float], None] = lambda stage, share: None,
) -> EmbeddingStatistics:
    """Look at the tables of a run's model.

    Args:
        run: Its folder.
        data: Dataset folder that the run was trained on; train says how often rows are looked up.
        wanted: Tables and values.
        checkpoint: best, last, or a step's number.
        progress: Called with a stage's name and the share of it that is done.

    Raises:
        CheckpointError: No run there, no such checkpoint, or it is damaged.
        ConfigError: There is no such table, or no such value in it.
        DataError: No dataset there, or it is encoded differently.
    """
    opened, dataset = Run.open(run), Dataset.open(data)
    opened.require_same_encoding(dataset)
    sizes = table_sizes(opened.manifest.schema, opened.manifest.encoding)
    model = opened.recipe.model
    held = {name: composition_of(model.compression, name, n) for name, n in sizes.items()}
    if unknown := [name for name in (*wanted.tables, *wanted.near) if name not in sizes]:
        raise ConfigError(f"no table {unknown[0]!r}; the run has {', '.join(sizes)}")
    folder = opened.checkpoint_folder(checkpoint)
    in_memory = [part for one in held.values() for part in one.num_embeddings]
    weights = in_memory if model.weighted_pooling == "learned" else []
    stored = stored_rows(
        folder,
        "model",
        [f"tables.{part}" for part in in_memory],
        {f"tables.{part}": f"pooling_weights.{part}" for part in weights},
    )
    drawn = Drawn(opened)
    found = []
    for done, (name, composition) in enumerate(held.items(), start=1):
        parts = {part: stored[f"tables.{part}"] for part in composition.num_embeddings}
        runs = drawn.runs(composition, sizes[name], parts)
        if not wanted.tables or name in wanted.tables:
            rows = rows_of(composition, sizes[name], parts)
            found.append(_Table(name, opened, dataset, rows).look(runs, wanted))
        else:
            for _ in runs:  # drawn one after the other: each table's numbers come after another's
                pass
        progress("tables", done / len(sizes))
    return EmbeddingStatistics(
        created_by=__version__,
        commit=source_commit(),
        run=str(run),
        step=read_manifest(folder, CheckpointManifest).step,
        data=str(data),
        tables=tuple(found),
    )


class _Table:
    """One table, its rows' lookups in train, and what names its rows."""

    def __init__(self, name: str, run: Run, dataset: Dataset, rows: Rows) -> None:
        self._name = name
        self._folder = run.folder
        self._encoding: TableEncoding = run.manifest.encoding.tables[name]
        self._rows = rows
        features = [f for f in run.manifest.schema.sparse if f.table == name]
        self._features = tuple(feature.name for feature in features)
        parts = dataset.record_batches("train")
        self._counts: Counts = np.zeros(rows.shape[0], dtype=np.uint64)
        for feature in features:
            self._counts += feature_counts(feature, parts, rows.shape[0])
        self._norms: NDArray[np.float32] = np.zeros(rows.shape[0], dtype=np.float32)

    def look(self, drawn: Iterator[tuple[int, Tensor]], wanted: Wanted) -> TableEmbeddings:
        """All that is told of the table."""
        num_rows, dim = self._rows.shape
        is_unmoved = np.zeros(num_rows, dtype=bool)
        moments = _Moments(dim)
        for start, first in drawn:
            run = slice(start, start + len(first))
            rows = self._rows.read(run.start, run.stop)
            is_unmoved[run] = (rows == first).all(dim=1).numpy()
            numbers = rows.double()
            self._norms[run] = torch.linalg.vector_norm(numbers, dim=1).numpy()
            moments.add(numbers[torch.from_numpy(self._counts[run] > 0)])
        is_seen, norms = self._counts > 0, self._norms.astype(np.float64)
        edges = np.linspace(0, float(norms.max()) or 1.0, NUM_BINS + 1)
        spectrum = Spectrum.of(self._counts)
        return TableEmbeddings(
            name=self._name,
            features=self._features,
            num_rows=num_rows,
            embedding_dim=dim,
            num_lookups=int(self._counts.sum()),
            num_unseen=int((~is_seen).sum()),
            num_unmoved=int(is_unmoved.sum()),
            num_seen_unmoved=int((is_seen & is_unmoved).sum()),
            norm_mean=float(norms.mean()),
            norm_percentiles=tuple(percentiles(norms, NORM_LEVELS)),
            norm_edges=tuple(edges.tolist()),
            norm_seen=tuple(np.histogram(norms[is_seen], edges)[0].tolist()),
            norm_unseen=tuple(np.histogram(norms[~is_seen], edges)[0].tolist()),
            norms_by_count=tuple(_norms_by_count(self._counts, norms)),
            rows_for_lookups=tuple(map(spectrum.rows_for, LOOKUP_SHARES)),
            neighbours=self._neighbours(wanted),
            projection=self._projection(moments),
        )

    def _projection(self, moments: "_Moments") -> Projection | None:
        shown = most_frequent(self._counts, NUM_SHOWN, self._encoding.first_id)
        if len(shown) < 2:
            return None
        axes_D2, explained = moments.components()
        places = (self._rows.gather(shown.tolist()).double() - moments.mean) @ axes_D2
        x, y = places.T.tolist()
        return Projection(
            rows=tuple(self._named(shown)), x=tuple(x), y=tuple(y), explained=explained
        )

    def _neighbours(self, wanted: Wanted) -> tuple[Neighbours, ...]:
        """Of each value asked for the nearest by cosine; rows of no lookup are noise, and left out.

        Values are compared run by run, so that no more than a run's cosines are held.
        """
        values = wanted.near.get(self._name)
        if values is None:
            asked = most_frequent(self._counts, NUM_QUERIES, self._encoding.first_id)
        else:
            asked = np.array([self._row(value) for value in values], dtype=np.int64)
        if not len(asked):
            return ()
        is_candidate = (self._counts > 0) & (self._norms > 0)
        is_candidate[: self._encoding.first_id] = False
        queries_QD = torch.nn.functional.normalize(self._rows.gather(asked.tolist()).double())
        best = [(np.empty(0, dtype=np.int64), np.empty(0)) for _ in asked]
        for start, stop in drawn_rows(*self._rows.shape):
            places = np.flatnonzero(is_candidate[start:stop])
            rows = torch.nn.functional.normalize(self._rows.read(start, stop)[places].double())
            for number, cosines in enumerate((queries_QD @ rows.T).numpy()):
                is_other = start + places != asked[number]
                ids = np.concatenate([best[number][0], start + places[is_other]])
                found = np.concatenate([best[number][1], cosines[is_other]])
                order = np.lexsort((ids, -found))[: wanted.num_neighbours]
                best[number] = ids[order], found[order]
        return tuple(
            Neighbours(
                of=query,
                nearest=tuple(
                    Neighbour(row=row, cosine=cosine)
                    for row, cosine in zip(self._named(ids), found.tolist(), strict=True)
                ),
            )
            for query, (ids, found) in zip(self._named(asked), best, strict=True)
        )

    def _row(self, value: str) -> int:
        """The row of a raw value."""
        first_id, num_rows = self._encoding.first_id, len(self._counts)
        if self._encoding.vocabulary:
            place = find_value(self._folder, self._encoding, value)
            if place is not None:
                return first_id + place
            raise ConfigError(
                f"table {self._name!r}: no value {value!r} in its vocabulary; name one as the raw "
                "file writes it, and frequent enough to be kept"
            )
        if value.isdecimal() and int(value) < num_rows:
            return int(value)
        raise ConfigError(
            f"table {self._name!r}: {value!r}; its encoding keeps no values: a row of 0 .. "
            f"{num_rows - 1} is allowed"
        )

    def _named(self, rows: NDArray[np.int64]) -> list[NamedRow]:
        first_id = self._encoding.first_id
        values: list[str | None] = [None] * len(rows)
        if self._encoding.vocabulary:
            values = list(read_values(self._folder, self._encoding, rows - first_id))
        return [
            NamedRow(
                row=row, value=value, count=int(self._counts[row]), norm=float(self._norms[row])
            )
            for row, value in zip(rows.tolist(), values, strict=True)
        ]


class _Moments:
    """Sums over rows from which their principal components come, in float64.

    Source: Pearson 1901, On lines and planes of closest fit to systems of points in space.
    """

    def __init__(self, dim: int) -> None:
        self._num_rows = 0
        self._sum_D = torch.zeros(dim, dtype=torch.float64)
        self._products_DD = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, rows_ND: Tensor) -> None:
        """Count rows in, float64."""
        self._num_rows += len(rows_ND)
        self._sum_D += rows_ND.sum(dim=0)
        self._products_DD += rows_ND.T @ rows_ND

    @property
    def mean(self) -> Tensor:
        """Of the rows, shape (D,)."""
        return self._sum_D / max(1, self._num_rows)

    def components(self) -> tuple[Tensor, tuple[float, float]]:
        """The first two principal components, shape (D, 2), and the variance's shares along them.

        Of either sign the one whose largest number is positive; of one dimension the second is 0.
        """
        covariance_DD = self._products_DD / max(1, self._num_rows) - torch.outer(
            self.mean, self.mean
        )
        variances, vectors = torch.linalg.eigh(covariance_DD)
        axes = torch.zeros(len(variances), 2, dtype=torch.float64)
        shares, total = [0.0, 0.0], float(variances.clamp(min=0).sum())
        for place in range(min(2, len(variances))):
            axis = vectors[:, -1 - place]
            axes[:, place] = axis * axis[axis.abs().argmax()].sign()
            shares[place] = float(variances[-1 - place].clamp(min=0)) / total if total else 0.0
        return axes, (shares[0], shares[1])


def _norms_by_count(counts: Counts, norms: NDArray[np.float64]) -> Iterator[NormsByCount]:
    """Of rows of 0 lookups, of 1, of 2 to 3, of 4 to 7, and so on."""
    group = np.frexp(counts.astype(np.float64))[1]
    for number in range(int(group.max()) + 1):
        chosen = norms[group == number]
        if len(chosen):
            p10, middle, p90 = percentiles(chosen, (10.0, 50.0, 90.0))
            yield NormsByCount(
                least=1 << number >> 1,
                most=max(0, (1 << number) - 1),
                num_rows=len(chosen),
                p10=p10,
                median=middle,
                p90=p90,
            )
