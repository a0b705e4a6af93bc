from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.encoding import TableEncoding
from fastdlrm.contracts.hashing import text_key
from fastdlrm.contracts.schema import Schema, Table
from fastdlrm.data.config import Holdout, SplitConfig
from fastdlrm.data.split import resolve_splits
from fastdlrm.data.staged import StagedRows
from fastdlrm.data.vocabulary import check_tables, read_keys, read_values, vocabulary_path
from fastdlrm.errors import ConfigError, DataError
from tests import staging
from tests.staging import EVERYTHING_TRAIN, NONE, sparse, staged, table

U64, I64, TEXT, F64 = pa.uint64(), pa.int64(), pa.string(), pa.float64()


def fit(
    folder: Path,
    rows: StagedRows,
    schema: Schema,
    split: SplitConfig = EVERYTHING_TRAIN,
    memory_bytes: int = 1 << 26,
) -> dict[str, TableEncoding]:
    """Fit all tables; vocabularies go to `folder`."""
    return staging.fit(folder, rows, schema, split, memory_bytes=memory_bytes).tables


def written(folder: Path, name: str) -> list[tuple[int, str, int]]:
    """(key, value, count) of each id from 2 on."""
    with pa.memory_map(str(folder / f"vocab/{name}.arrow")) as source:
        rows = pa.ipc.open_file(source).read_all().to_pydict()
    return list(zip(rows["key"], rows["value"], rows["count"], strict=True))


#                4 x 0x0a, 2 x 0xff, 2 x 0x01, 1 x 0x2b, 2 missing
HEX = [0xFF, 0x0A, None, 0x01, 0x0A, 0x2B, 0x0A, 0x01, 0xFF, None, 0x0A]


@pytest.mark.parametrize(
    ("min_count", "max_rows", "kept", "coverage"),
    [
        # The tie of 0x01 and 0xff is broken by the key. Missing values are not counted: 9 ids.
        (1, 0, [(10, "a", 4), (1, "1", 2), (255, "ff", 2), (43, "2b", 1)], 9 / 9),
        (2, 0, [(10, "a", 4), (1, "1", 2), (255, "ff", 2)], 8 / 9),
        (3, 0, [(10, "a", 4)], 4 / 9),
        (5, 0, [], 0.0),
        (1, 4, [(10, "a", 4), (1, "1", 2)], 6 / 9),
        (2, 100, [(10, "a", 4), (1, "1", 2), (255, "ff", 2)], 8 / 9),
    ],
)
def test_by_hand(
    tmp_path: Path,
    min_count: int,
    max_rows: int,
    kept: list[tuple[int, str, int]],
    coverage: float,
) -> None:
    rows = staged(tmp_path, {"s.a": pa.array(HEX[:5], U64)}, {"s.a": pa.array(HEX[5:], U64)})
    schema = staging.schema(sparse("a"), table("a", min_count=min_count, max_rows=max_rows))
    encoding = fit(tmp_path, rows, schema)["a"]
    assert written(tmp_path, "a") == kept
    assert encoding.num_embeddings == 2 + len(kept)
    assert encoding.coverage == pytest.approx(coverage)
    assert read_keys(tmp_path, encoding).tolist() == [key for key, _, _ in kept]
    last_first = np.arange(len(kept))[::-1]
    assert read_values(tmp_path, encoding, last_first) == [text for _, text, _ in kept[::-1]]


@pytest.mark.parametrize(
    ("key", "values", "kept"),
    [
        ("hex", [0, 2**64 - 1, 0], [(0, "0", 2), (2**64 - 1, "f" * 16, 1)]),
        ("int", [-1, 7, -1], [(2**64 - 1, "-1", 2), (7, "7", 1)]),
        ("string", ["", "é", "é"], [(text_key("é"), "é", 2), (text_key(""), "", 1)]),
        # Edges at the sorted places 0, 1, 2 of 1, 2, 5: 2 and 5, the least being no edge.
        (
            "quantile",
            [5.0, 1.0, 2.0],
            [(0, "[-inf, 2.0)", 1), (1, "[2.0, 5.0)", 1), (2, "[5.0, inf)", 1)],
        ),
    ],
)
def test_the_values_can_be_read(
    tmp_path: Path, key: str, values: list[object], kept: list[tuple[int, str, int]]
) -> None:
    rows = staged(tmp_path, {"s.a": pa.array(values, staging.STAGED_TYPES[key])})
    fit(tmp_path, rows, staging.schema(sparse("a", key)))
    assert written(tmp_path, "a") == kept


def test_features_of_a_table_are_counted_together_and_bags_id_by_id(tmp_path: Path) -> None:
    seen = {
        "s.last": pa.array(["x", "y", None], TEXT),
        "s.history": pa.array([["y", "z"], [], ["y", "y"]], pa.list_(TEXT)),
    }
    schema = staging.schema(
        sparse("last", "string", "item"),
        sparse("history", "string", "item", bag=True, separator="|"),
    )
    fit(tmp_path, staged(tmp_path, seen), schema)
    single = sorted([(text_key("x"), "x", 1), (text_key("z"), "z", 1)])
    assert written(tmp_path, "item") == [(text_key("y"), "y", 4), *single]


@pytest.mark.parametrize("key", ["hex", "string"])
@pytest.mark.parametrize("by", ["file", "position", "hash"])
def test_values_of_the_test_rows_do_not_leak(tmp_path: Path, key: str, by: str) -> None:
    """The reference counts the values of test rows too."""
    # Every row has a value of its own, so the vocabulary tells which rows were counted.
    values = [format(row, "03x") for row in range(200)]
    column = pa.array(values if key == "string" else [int(v, 16) for v in values],
                      staging.STAGED_TYPES[key])  # fmt: skip
    rows = staged(tmp_path, {"s.a": column[:150]}, {"s.a": column[150:]}, row_group_rows=40)
    amount = 1.0 if by == "file" else 0.25
    split = SplitConfig(validation=NONE, test=Holdout(by=by, amount=amount))  # type: ignore[arg-type]
    fit(tmp_path, rows, staging.schema(sparse("a", key)), split)
    counted = {int(value, 16) for _, value, _ in written(tmp_path, "a")}
    if by == "hash":
        with duckdb.connect() as connection:
            splits = resolve_splits(rows, split, 0, connection)
        block = [splits.assign(block) for block in rows.blocks(["__label"])]
        assert counted == set(np.flatnonzero(np.concatenate(block) == 0).tolist())
        assert 100 < len(counted) < 200
    else:
        assert counted == set(range(150))


@pytest.mark.parametrize("key", ["hex", "string"])
def test_memory_does_not_change_the_vocabulary(tmp_path: Path, key: str) -> None:
    # About 3,800 values, of which 128 KiB hold 2,340 to be ranked; 498 are kept.
    drawn = np.random.default_rng(3).zipf(1.3, 30_000).astype(np.uint64).tolist()
    values = [str(value) for value in drawn] if key == "string" else drawn
    column = pa.array(values, staging.STAGED_TYPES[key])
    rows = staged(tmp_path, {"s.a": column}, row_group_rows=4096)
    schema = staging.schema(sparse("a", key), table("a", max_rows=500))
    fit(tmp_path / "roomy", rows, schema)
    fit(tmp_path / "tight", rows, schema, memory_bytes=1 << 17)
    assert written(tmp_path / "tight", "a") == written(tmp_path / "roomy", "a")
    counts = Counter(values)
    assert len(counts) > 3_500
    keys = {value: text_key(value) if key == "string" else value for value in counts}
    ranked = sorted((-number, keys[value]) for value, number in counts.items())[:498]
    assert [(-c, k) for k, _, c in written(tmp_path / "tight", "a")] == ranked


@pytest.mark.parametrize("key", ["hex", "string"])
def test_a_vocabulary_beyond_memory_is_refused(tmp_path: Path, key: str) -> None:
    values = [row if key == "hex" else str(row) for row in range(20_000)]
    rows = staged(tmp_path, {"s.a": pa.array(values, staging.STAGED_TYPES[key])})
    with pytest.raises(DataError, match=r"table 'a': a vocabulary of .* raise --memory"):
        fit(tmp_path, rows, staging.schema(sparse("a", key)), memory_bytes=1 << 18)


def test_two_texts_of_one_key_are_refused(tmp_path: Path) -> None:
    # A published collision of 64-bit FNV-1a.
    pair = ["8yn0iYCKYHlIj4-BwPqk", "GReLUrM4wMqfg9yzV3KQ"]
    assert text_key(pair[0]) == text_key(pair[1])
    rows = staged(tmp_path, {"s.a": pa.array([*pair, "other"])})
    with pytest.raises(DataError, match=f"'{pair[0]}' and '{pair[1]}' have the same 64-bit key"):
        fit(tmp_path, rows, staging.schema(sparse("a", "string")))


def test_features_that_cannot_share_a_table_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'t': its features have the keys \['hex', 'int'\]"):
        check_tables(staging.schema(sparse("a", "hex", "t"), sparse("b", "int", "t")))
    with pytest.raises(ConfigError, match=r"table 't': 2 features of key 'quantile' share it"):
        check_tables(staging.schema(sparse("a", "quantile", "t"), sparse("b", "quantile", "t")))
    check_tables(staging.schema(sparse("a", "int", "t"), sparse("b", "int", "t")))


def test_features_that_an_encoding_is_not_for_are_refused() -> None:
    numbered, same = table("t", "reference"), table("t", "identity")
    with pytest.raises(ConfigError, match=r"'t': encoding 'reference' with keys \['int'\] of 1 "):
        check_tables(staging.schema(sparse("a", "int", "t"), numbered))
    with pytest.raises(ConfigError, match=r"'t': .* of 2 features; it is for one feature of key"):
        check_tables(staging.schema(sparse("a", "hex", "t"), sparse("b", "hex", "t"), numbered))
    with pytest.raises(ConfigError, match=r"'t': encoding 'reference' is not for bags"):
        check_tables(staging.schema(sparse("a", "hex", "t", bag=True), numbered))
    with pytest.raises(ConfigError, match=r"'t': encoding 'identity' with keys \['hex'\]; it is"):
        check_tables(staging.schema(sparse("a", "hex", "t"), same))
    check_tables(staging.schema(sparse("a", "hex", "t"), numbered))
    check_tables(staging.schema(sparse("a", "int", "t"), sparse("b", "int", "t"), same))


def test_any_table_name_is_a_file_name(tmp_path: Path) -> None:
    assert vocabulary_path("C1") == "vocab/C1.arrow"
    assert vocabulary_path("native-country") == "vocab/native-country.arrow"
    assert vocabulary_path("../a/b") == "vocab/..%2Fa%2Fb.arrow"
    rows = staged(tmp_path, {"s.../a": pa.array([5], U64)})
    encoding = fit(tmp_path, rows, staging.schema(sparse("../a")))["../a"]
    assert read_keys(tmp_path, encoding).tolist() == [5]


def test_a_hash_table_needs_no_vocabulary(tmp_path: Path) -> None:
    rows = staged(tmp_path, {"s.a": pa.array([5], U64)})
    hashed = Table(name="a", encoding="hash", min_count=1, max_rows=77)
    encoding = fit(tmp_path, rows, staging.schema(sparse("a"), hashed))["a"]
    assert encoding == TableEncoding(num_embeddings=77, vocabulary="", coverage=1.0)
    assert not (tmp_path / "vocab").exists()


@pytest.mark.parametrize(("max_rows", "num_embeddings"), [(0, 8), (100, 100)])
def test_a_table_of_rows_needs_no_vocabulary(
    tmp_path: Path, max_rows: int, num_embeddings: int
) -> None:
    """The largest row, 7, stands in the last file, which is test."""
    seen = [{"s.a": pa.array([[5, 2], []], pa.list_(I64)), "s.b": pa.array([1, 3], I64)},
            {"s.a": pa.array([[7]], pa.list_(I64)), "s.b": pa.array([0], I64)}]  # fmt: skip
    schema = staging.schema(
        sparse("a", "int", "t", bag=True),
        sparse("b", "int", "t"),
        table("t", "identity", max_rows=max_rows),
    )
    split = SplitConfig(validation=NONE, test=Holdout(by="file", amount=1))
    encoding = fit(tmp_path, staged(tmp_path, *seen), schema, split)["t"]
    assert encoding == TableEncoding(
        num_embeddings=num_embeddings, vocabulary="", coverage=1.0, first_id=0
    )


def test_a_damaged_vocabulary_is_refused(tmp_path: Path) -> None:
    rows = staged(tmp_path, {"s.a": pa.array([5, 6], U64)})
    encoding = fit(tmp_path, rows, staging.schema(sparse("a")))["a"]
    longer = TableEncoding(num_embeddings=5, vocabulary=encoding.vocabulary, coverage=1.0)
    with pytest.raises(DataError, match="2 values, the manifest says 3"):
        read_keys(tmp_path, longer)
    (tmp_path / encoding.vocabulary).write_bytes(b"not Arrow, but long enough")
    with pytest.raises(DataError, match=r"a\.arrow: no vocabulary"):
        read_keys(tmp_path, encoding)
    (tmp_path / encoding.vocabulary).unlink()
    with pytest.raises(DataError, match=r"a\.arrow: no vocabulary"):
        read_keys(tmp_path, encoding)
