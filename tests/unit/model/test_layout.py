"""Which tables are compressed: thresholds, names, sizes, refusals."""

import tomllib

import msgspec
import pytest

from fastdlrm.config import from_tree
from fastdlrm.errors import ConfigError
from fastdlrm.model.build import require_fit
from fastdlrm.model.compression_config import (
    CompressionConfig,
    HashCompression,
    NoCompression,
    QuotientRemainder,
)
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.layout import Layout, layout_of
from tests.builders import ROOT
from tests.unit.model.test_build import make_encoding, make_schema

QUARTERS = QuotientRemainder(num_collisions=4)


def model(embedding_dim: int = 4, **compression: object) -> ModelConfig:
    return ModelConfig(
        embedding_dim=embedding_dim,
        bottom_mlp=(embedding_dim,),
        top_mlp=(),
        compression=CompressionConfig(**compression),
    )


def layout(**compression: object) -> Layout:
    """Of tables t0, t1 and t2 of 10, 11 and 12 rows, a feature each."""
    schema = make_schema(1, 3)
    return layout_of(model(**compression), schema, make_encoding(schema))


def test_by_default_nothing_is_compressed() -> None:
    found = layout()
    assert found.num_embeddings == {"t0": 10, "t1": 11, "t2": 12}
    assert found.feature_tables == ["t0", "t1", "t2"]
    assert found.compression is None
    assert not found.draws


def test_the_rule_is_for_tables_above_the_threshold() -> None:
    found = layout(default=QUARTERS, threshold_rows=10)
    assert found.num_embeddings == {
        "t0": 10,
        "t1.quotient": 3,  # 0-3, 4-7, 8-10
        "t1.remainder": 4,
        "t2.quotient": 3,
        "t2.remainder": 4,
    }
    assert found.feature_tables == list(found.num_embeddings)
    assert found.compression is not None


def test_the_rule_leaves_what_it_would_not_shrink() -> None:
    found = layout(default=HashCompression(num_rows=11), threshold_rows=0)
    assert found.num_embeddings == {"t0": 10, "t1": 11, "t2.hash": 11}
    assert found.feature_tables == ["t0", "t1", "t2.hash", "t2.hash"]


def test_tables_have_their_own() -> None:
    tables = {"t0": HashCompression(num_rows=5, num_hashes=1), "t1": NoCompression()}
    found = layout(default=QUARTERS, threshold_rows=0, tables=tables)
    held = ["t0.hash", "t1", "t2.quotient", "t2.remainder"]
    assert list(found.num_embeddings) == held
    assert found.feature_tables == held


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"tables.t0: 10 rows for a table of 10; lower num_rows"):
        layout(tables={"t0": HashCompression(num_rows=10)})
    with pytest.raises(ConfigError, match=r"tables.t9: no such table; the dataset has t0, t1, t2"):
        require_fit(model(tables={"t9": QUARTERS}), make_schema(1, 3))
    with pytest.raises(ConfigError, match=r"num_rows is 0; 1 to 2147483647 are allowed"):
        HashCompression(num_rows=0)
    with pytest.raises(ConfigError, match=r"num_hashes is 4; 1 to num_rows, 3, are allowed"):
        HashCompression(num_rows=3, num_hashes=4)
    with pytest.raises(ConfigError, match=r"num_collisions is 1; 2 or more are allowed"):
        QuotientRemainder(num_collisions=1)
    with pytest.raises(ConfigError, match=r"threshold_rows is -1; 0 or more is allowed"):
        CompressionConfig(threshold_rows=-1)


def test_a_table_is_narrow_or_compressed() -> None:
    schema = make_schema(1, 3)
    config = msgspec.structs.replace(model(tables={"t2": QUARTERS}), table_dims={"t0": 3, "t1": 1})
    found = layout_of(config, schema, make_encoding(schema))
    assert found.dims == {"t0": 3, "t1": 1, "t2.quotient": 4, "t2.remainder": 4}
    assert found.num_numbers == 10 * 3 + 11 * 1 + 3 * 4 + 4 * 4
    config = msgspec.structs.replace(config, table_dims={"t2": 2})
    with pytest.raises(ConfigError, match=r"table_dims.t2: that table is compressed by .* set one"):
        layout_of(config, schema, make_encoding(schema))


def test_halves_are_half_as_wide() -> None:
    """Beside tables below the threshold, as plain ones."""
    found = layout(default=QuotientRemainder(operation="concat"), threshold_rows=11)
    assert found.dims == {"t0": 4, "t1": 4, "t2.quotient": 2, "t2.remainder": 2}
    assert found.num_numbers == (10 + 11) * 4 + (3 + 4) * 2
    schema = make_schema(1, 3)
    odd = model(tables={"t1": QuotientRemainder(operation="concat")}, embedding_dim=3)
    with pytest.raises(ConfigError, match=r"'t1' is 'concat' of 2 pieces with embedding_dim 3"):
        layout_of(odd, schema, make_encoding(schema))


def test_names_must_not_meet() -> None:
    schema = make_schema(1, 2, names=("t", "t.hash"))
    config = model(tables={"t": HashCompression(num_rows=5)})
    with pytest.raises(ConfigError, match=r"'t' would lie in 't.hash', which is another table's"):
        layout_of(config, schema, make_encoding(schema))


def test_the_guide_shows_what_is_allowed() -> None:
    text = (ROOT / "docs" / "guides" / "compression.md").read_text()
    tree = tomllib.loads(text.split("```toml\n")[1].split("```")[0])
    found = from_tree(tree["model"]["compression"], CompressionConfig, "guide")
    assert found.default == QuotientRemainder(operation="mult", num_collisions=4)
    assert found.tables["C3"] == HashCompression(num_rows=100_000, num_hashes=2)
    assert found.tables["C7"] == NoCompression()
