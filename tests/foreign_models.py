"""Our models beside another program's: of given sizes, or with the weights of a file."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.checkpoint.foreign import ForeignWeights
from fastdlrm.checkpoint.parts import columns_of, parts_of
from fastdlrm.contracts.encoding import Encoding, TableEncoding
from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.model.build import build_dlrm
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM


def make_schema(features: Iterable[str], num_dense: int) -> Schema:
    """Bags of ids; each feature is given by its table, which other features may have too."""
    tables = list(features)
    return Schema(
        label=Label(column="y", positive=("1",), negative=("0",)),
        dense=tuple(
            DenseFeature(name=f"x{k}", column=f"x{k}", transform="none", fill=0.0)
            for k in range(num_dense)
        ),
        sparse=tuple(
            SparseFeature(name=f"s{k}", column=f"s{k}", table=table, key="int", bag=True)
            for k, table in enumerate(tables)
        ),
        tables=tuple(
            Table(name=name, encoding="identity", min_count=1, max_rows=0)
            for name in dict.fromkeys(tables)
        ),
    )


def make_model(
    config: ModelConfig,
    schema: Schema,
    rows: Mapping[str, int],
    table_dtype: torch.dtype = torch.float32,
) -> DLRM:
    """A drawn model, in evaluation mode."""
    tables = {
        name: TableEncoding(num_embeddings=count, vocabulary="", coverage=1.0, first_id=0)
        for name, count in rows.items()
    }
    encoding = Encoding(hash_version=1, dense={}, quantiles={}, tables=tables)
    return build_dlrm(config, schema, encoding, seed=3, table_dtype=table_dtype).eval()


def filled(
    path: Path, schema: Schema, rows: Mapping[str, int], wanted: ModelConfig
) -> tuple[DLRM, ModelConfig]:
    """Our model with the weights of a file."""
    weights = ForeignWeights.open(path)
    config = weights.model_config(wanted, schema)
    model = make_model(config, schema, rows)
    naming = weights.naming.name
    parts = parts_of(model, schema, naming)
    weights.require_shapes(parts)
    weights.copy_into(parts, columns_of(config, schema, naming))
    return model, config


def draw_bags(
    rows: Sequence[int], num_dense: int, num_samples: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Dense numbers, and by feature the ids and lengths of bags of 0 to 3 ids."""
    generator = torch.Generator().manual_seed(5)
    lengths = [torch.randint(0, 4, (num_samples,), generator=generator) for _ in rows]
    ids = [
        torch.randint(0, n, (int(of_feature.sum()),), generator=generator)
        for n, of_feature in zip(rows, lengths, strict=True)
    ]
    return torch.rand(num_samples, num_dense, generator=generator), ids, lengths


def logits_of(model: DLRM, dense: Tensor, ids: list[Tensor], lengths: list[Tensor]) -> Tensor:
    """What a model makes of such inputs, shape (B,)."""
    sparse = SparseBatch(
        ids=torch.cat(ids).int(),
        lengths=torch.cat(lengths).int(),
        weights=None,
        num_features=len(ids),
    )
    with torch.no_grad():
        return model(dense, sparse)
