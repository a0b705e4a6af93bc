import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.encoding import HASH_VERSION, DenseStatistics, Encoding, TableEncoding
from fastdlrm.contracts.hashing import bucket, text_key
from fastdlrm.contracts.schema import DenseFeature, Schema, SparseFeature, Table
from fastdlrm.data.encode import Encoder, encoded_schema, require_fit
from fastdlrm.data.keytable import KeyTable
from fastdlrm.data.vocabulary import Vocabulary, write_vocabulary
from fastdlrm.errors import ConfigError, DataError
from tests import staging
from tests.staging import dense, sparse, table

U64, I64, TEXT, F64 = pa.uint64(), pa.int64(), pa.string(), pa.float64()


def encoding(**fitted: object) -> Encoding:
    parts = {"dense": {}, "quantiles": {}, "tables": {}, **fitted}
    return Encoding(hash_version=HASH_VERSION, **parts)  # type: ignore[arg-type]


def size(num_embeddings: int, vocabulary: str = "") -> TableEncoding:
    return TableEncoding(num_embeddings=num_embeddings, vocabulary=vocabulary, coverage=1.0)


def with_vocabulary(feature: SparseFeature, keys: list[int], **fitted: object) -> Encoder:
    tables = {feature.table: size(2 + len(keys), "vocab/t.arrow")}
    return Encoder(
        staging.schema(feature),
        encoding(tables=tables, **fitted),
        {feature.table: KeyTable(np.array(keys, np.uint64))},
    )


def dense_encoder(feature: DenseFeature, **fitted: object) -> Encoder:
    return Encoder(staging.schema(feature), encoding(**fitted), {})


def batch(name: str, values: list[object], kind: pa.DataType) -> pa.RecordBatch:
    return pa.record_batch({name: pa.array(values, kind)})


@pytest.mark.parametrize(
    ("feature", "values", "expected"),
    [
        (dense("x"), [1.5, -2.0, None, math.nan], [1.5, -2.0, 0.0, 0.0]),
        (dense("x", fill=7.0), [1.5, None, math.nan], [1.5, 7.0, 7.0]),
        # log(1 + max(x, 0)): e - 1 gives 1, negative values 0, the missing log(1 + 3).
        (
            dense("x", "log1p", fill=3.0),
            [0.0, math.e - 1, -5.0, None],
            [0.0, 1.0, 0.0, math.log(4)],
        ),
        # (x - 10) / 4
        (dense("x", "standardize", fill=12.0), [10.0, 18.0, 4.0, None], [0.0, 2.0, -1.5, 0.5]),
    ],
)
def test_dense_by_hand(feature: DenseFeature, values: list[object], expected: list[float]) -> None:
    statistics = {"x": DenseStatistics(mean=10.0, std=4.0)}
    encoded = dense_encoder(feature, dense=statistics).encode(batch("d.x", values, F64))
    assert encoded.schema == pa.schema([("x", pa.float32())])
    assert encoded.column("x").to_numpy() == pytest.approx(np.float32(expected), rel=1e-7)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e39])
def test_a_number_beyond_float32_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="dense feature 'x': a value is infinite or too large"):
        dense_encoder(dense("x")).encode(batch("d.x", [0.0, value], F64))


@pytest.mark.parametrize(
    ("key", "values", "vocabulary", "expected"),
    [
        ("hex", [0xA, 0xB, None, 0xFFFFFFFFFFFFFFFF], [0xFFFFFFFFFFFFFFFF, 0xA], [3, 0, 1, 2]),
        ("int", [-1, 5, None, 6], [2**64 - 1, 5], [2, 3, 1, 0]),
        ("string", ["é", None, "", "?"], [text_key(""), text_key("é")], [3, 1, 2, 0]),
    ],
)
def test_ids_by_hand(
    key: str, values: list[object], vocabulary: list[int], expected: list[int]
) -> None:
    encoder = with_vocabulary(sparse("a", key), vocabulary)
    encoded = encoder.encode(batch("s.a", values, staging.STAGED_TYPES[key]))
    assert encoded.schema == pa.schema([("a", pa.uint8())])
    assert encoded.column("a").to_pylist() == expected
    assert encoded.column("a").null_count == 0


def test_buckets_by_hand() -> None:
    # Bucket 0 is x < 2, bucket 1 is 2 <= x < 5, bucket 2 is x >= 5; bucket 1 is not known.
    encoder = with_vocabulary(
        sparse("a", "quantile", num_quantiles=3), [2, 0], quantiles={"a": (2.0, 5.0)}
    )
    values = [1.9, 2.0, 4.9, 5.0, math.inf, -math.inf, None, math.nan]
    ids = encoder.encode(batch("s.a", values, F64)).column("a").to_pylist()
    assert ids == [3, 0, 0, 2, 2, 3, 1, 1]


def test_no_edges_make_one_bucket() -> None:
    encoder = with_vocabulary(sparse("a", "quantile"), [0], quantiles={"a": ()})
    assert encoder.encode(batch("s.a", [7.0, None], F64)).column("a").to_pylist() == [2, 1]


@pytest.mark.parametrize("key", ["hex", "string"])
def test_hash_ids_are_the_definitions(key: str) -> None:
    feature, hashed = sparse("a", key), table("a", "hash", max_rows=1000)
    encoder = Encoder(staging.schema(feature, hashed), encoding(tables={"a": size(1000)}), {})
    values = ["a", "b", None, ""] if key == "string" else [1, 2**63, None, 0]
    keys = [text_key(v) if isinstance(v, str) else v for v in values]
    ids = encoder.encode(batch("s.a", values, staging.STAGED_TYPES[key])).column("a")
    assert ids.to_pylist() == [1 if k is None else 2 + bucket(k, 998) for k in keys]


def numbered(keys: list[int], max_rows: int = 0) -> Encoder:
    """Encoding "reference" of a feature whose keys came in this order."""
    fitted = TableEncoding(
        num_embeddings=len(keys), vocabulary="vocab/a.arrow", coverage=1.0, first_id=0
    )
    return Encoder(
        staging.schema(sparse("a"), table("a", "reference", max_rows=max_rows)),
        encoding(tables={"a": fitted}),
        {"a": KeyTable(np.array(keys, np.uint64))},
    )


def test_ids_of_the_reference_by_hand() -> None:
    """Nothing is reserved: the first value seen is row 0, and a missing one is the value 0."""
    encoded = numbered([0xFF, 0, 0xA]).encode(batch("s.a", [0xA, None, 0xFF, 0], U64))
    assert encoded.schema == pa.schema([("a", pa.uint8())])
    assert encoded.column("a").to_pylist() == [2, 1, 0, 1]
    # Modulo 10: 0xff = 255 is 5, 0xa is 0 and so is the missing one.
    encoded = numbered([5, 0], max_rows=10).encode(batch("s.a", [0xA, None, 0xFF, 45], U64))
    assert encoded.column("a").to_pylist() == [1, 1, 0, 0]


def test_a_value_that_the_reference_never_saw_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"sparse feature 'a': no row for 2 of 3 values, the first b; encoding 're"
    ):
        numbered([0xA]).encode(batch("s.a", [0xA, 0xB, None], U64))


def identical(num_embeddings: int, **settings: object) -> Encoder:
    fitted = TableEncoding(num_embeddings=num_embeddings, vocabulary="", coverage=1.0, first_id=0)
    feature = sparse("a", "int", **settings)
    return Encoder(
        staging.schema(feature, table("a", "identity")), encoding(tables={"a": fitted}), {}
    )


def test_a_row_encodes_as_itself() -> None:
    encoded = identical(257).encode(batch("s.a", [256, 0, 7], I64))
    assert encoded.schema == pa.schema([("a", pa.uint16())])
    assert encoded.column("a").to_pylist() == [256, 0, 7]
    encoded = identical(9, bag=True).encode(batch("s.a", [[8, 0], []], pa.list_(I64)))
    assert encoded.column("a").to_pylist() == [[8, 0], []]


@pytest.mark.parametrize(
    ("value", "shown"), [(9, "9"), (-1, "-1"), (2**40, str(2**40)), (None, "a missing one")]
)
def test_what_is_no_row_of_the_table_is_refused(value: int | None, shown: str) -> None:
    with pytest.raises(
        DataError, match=rf"'a': no row for 1 of 2 values, the first {shown}; .* takes 0 to 8: c"
    ):
        identical(9).encode(batch("s.a", [8, value], I64))


def bags(values: list[list[object]], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.list_(kind))


def test_bags_and_weights() -> None:
    feature = sparse("a", "int", bag=True, separator=" ", weight_column="w")
    rows = pa.record_batch(
        {
            "__label": pa.array([1, 0, 1, 0], pa.uint8()),
            "s.a": bags([[5, 6, 5], [], [99], [6]], I64),
            "w.a": bags([[1.0, 0.5, 2.0], [], [3.0], [0.0]], pa.float32()),
            "__time": pa.array([1, 2, 3, 4]),
        }
    )
    encoder = with_vocabulary(feature, [5, 6])
    expected = {
        "label": [1, 0, 1, 0],
        "a": [[2, 3, 2], [], [0], [3]],
        "a.weights": [[1.0, 0.5, 2.0], [], [3.0], [0.0]],
    }
    encoded = encoder.encode(rows)
    assert encoded.to_pydict() == expected
    assert encoded.schema.types == [
        pa.uint8(),
        pa.list_(pa.uint8()),
        pa.list_(pa.float32()),
    ]
    # A slice of a batch gives the same rows, in lists that begin at offset 0.
    part = encoder.encode(rows.slice(1, 2))
    assert part.to_pydict() == {name: column[1:3] for name, column in expected.items()}
    assert part.column("a").offsets.to_pylist() == [0, 0, 1]
    assert len(part.column("a").values) == 1


@pytest.mark.parametrize("start", [0, 1, 7, 64])
def test_a_slice_encodes_as_its_rows_do(start: int) -> None:
    keys = ["x", None, "long text", "", "y"] * 20
    rows = batch("s.a", keys, TEXT)
    encoder = with_vocabulary(sparse("a", "string"), [text_key("y"), text_key("x")])
    whole = encoder.encode(rows).column("a").to_pylist()
    assert encoder.encode(rows.slice(start, 30)).column("a").to_pylist() == whole[start:][:30]


@pytest.mark.parametrize(
    ("kind", "bag"),
    [
        *((kind, False) for kind in ("hex", "int", "string", "quantile")),
        *((kind, True) for kind in ("hex", "int", "string")),
    ],
)
def test_no_rows(kind: str, bag: bool) -> None:
    feature = sparse("a", kind, bag=bag, separator=" " if bag else "")
    staged = staging.STAGED_TYPES[kind]
    rows = batch("s.a", [], pa.list_(staged) if bag else staged)
    encoded = with_vocabulary(feature, [1], quantiles={"a": ()}).encode(rows)
    assert encoded.num_rows == 0
    assert encoded.schema.types == [pa.list_(pa.uint8()) if bag else pa.uint8()]


@pytest.mark.parametrize(
    ("num_embeddings", "id_type"),
    [
        (2, pa.uint8()),
        (256, pa.uint8()),
        (257, pa.uint16()),
        (65536, pa.uint16()),
        (65537, pa.uint32()),
        (2**32, pa.uint32()),
    ],
)
def test_the_smallest_type_that_holds_the_table(num_embeddings: int, id_type: pa.DataType) -> None:
    schema = staging.schema(sparse("a"), table("a", "hash", max_rows=num_embeddings + 9))
    fitted = encoding(tables={"a": size(num_embeddings)})
    assert encoded_schema(schema, fitted, labelled=False).types == [id_type]


def test_too_many_rows_are_refused() -> None:
    schema = staging.schema(sparse("a"), table("a", "hash", max_rows=2**32 + 1))
    with pytest.raises(ConfigError, match=r"table 'a': 4294967297 rows; 4294967296 is the most"):
        encoded_schema(schema, encoding(tables={"a": size(2**32 + 1)}))


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (staging.schema(dense("label")), "label"),
        (
            staging.schema(
                sparse("a", bag=True, separator=" ", weight_column="w"), dense("a.weights")
            ),
            r"a\.weights",
        ),
    ],
)
def test_two_columns_of_one_name_are_refused(schema: Schema, name: str) -> None:
    with pytest.raises(ConfigError, match=f"two columns '{name}'"):
        Encoder(schema, encoding(tables={"a": size(5)}), {})


def test_load_reads_the_vocabularies(tmp_path: Path) -> None:
    known = Table(name="k", encoding="vocabulary", min_count=1, max_rows=0)
    vocabulary = Vocabulary(
        np.array([9, 4], np.uint64), np.array([3, 1], np.uint64), None, num_counted=5
    )
    tables = {
        "k": write_vocabulary(tmp_path, known, vocabulary, "int", ()),
        "h": size(10),
    }
    assert tables["k"] == TableEncoding(
        num_embeddings=4, vocabulary="vocab/k.arrow", coverage=4 / 5
    )
    schema = staging.schema(
        sparse("a", "int", "k"), sparse("b", "int", "h"), known, table("h", "hash", max_rows=10)
    )
    encoder = Encoder.load(tmp_path, schema, encoding(tables=tables))
    rows = pa.record_batch({"s.a": pa.array([4, 5], I64), "s.b": pa.array([0, None], I64)})
    assert encoder.encode(rows).to_pydict() == {"a": [3, 0], "b": [2 + bucket(0, 8), 1]}


def test_threads_share_an_encoder() -> None:
    keys = np.random.default_rng(0).permutation(50_000).astype(np.uint64)
    encoder = with_vocabulary(sparse("a"), keys.tolist())
    drawn = np.random.default_rng(1).integers(0, 60_000, (8, 20_000)).astype(np.uint64)
    place = np.zeros(60_000, np.int64)
    place[keys] = np.arange(2, 50_002)
    with ThreadPoolExecutor(4) as pool:
        rows = [pa.record_batch({"s.a": pa.array(part)}) for part in drawn]
        for part, encoded in zip(drawn, pool.map(encoder.encode, rows), strict=True):
            assert (encoded.column("a").to_numpy() == place[part]).all()


def test_vocabularies_beyond_memory_are_refused() -> None:
    # 1,000,000 keys of 8 bytes and 2 ** 21 slots of 4, and the two reserved rows: 16.4 MB.
    fitted = encoding(tables={"a": size(1_000_000, "vocab/a.arrow"), "b": size(10**9)})
    require_fit(fitted, 17_000_000)
    with pytest.raises(DataError, match=r"the vocabularies need 15 MiB, 14 MiB .* table 'a'"):
        require_fit(fitted, 15_000_000)
