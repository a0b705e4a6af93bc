"""Which schemas are refused, and why."""

import msgspec
import pytest

from fastdlrm.contracts.schema import DenseFeature, Label, Schema, SparseFeature, Table
from fastdlrm.errors import ConfigError

LABEL = Label(column="click", positive=("1",), negative=("0",))


def dense(name: str = "age") -> DenseFeature:
    return DenseFeature(name=name, column=name, transform="none", fill=0.0)


def sparse(name: str = "city", **settings: object) -> SparseFeature:
    values = {"column": name, "table": "city", "key": "string", **settings}
    return msgspec.convert({"name": name, **values}, SparseFeature)


def table(name: str = "city", **settings: object) -> Table:
    values = {"encoding": "vocabulary", "min_count": 1, "max_rows": 0, **settings}
    return msgspec.convert({"name": name, **values}, Table)


def schema(
    dense: tuple[DenseFeature, ...] = (),
    sparse: tuple[SparseFeature, ...] = (),
    tables: tuple[Table, ...] = (),
    label: Label = LABEL,
) -> Schema:
    return Schema(label=label, dense=dense, sparse=sparse, tables=tables)


def test_features_may_share_a_table() -> None:
    home, work = sparse("home"), sparse("work", bag=True, weight_column="share")
    found = schema((dense(),), (home, work), (table("town"), table("city")))
    assert found.table_of(home) is found.table_of(work) is found.tables[1]
    assert work.is_weighted
    assert not home.is_weighted


def test_one_kind_of_feature_is_enough() -> None:
    assert schema(dense=(dense(),)).sparse == ()
    assert schema(sparse=(sparse(),), tables=(table(),)).dense == ()


@pytest.mark.parametrize("max_rows", [0, 3])
@pytest.mark.parametrize("num_quantiles", [2, 100])
def test_the_least_that_is_allowed(max_rows: int, num_quantiles: int) -> None:
    feature = sparse(key="quantile", num_quantiles=num_quantiles)
    assert schema(sparse=(feature,), tables=(table(max_rows=max_rows),))


def test_survives_json() -> None:
    found = schema((dense(),), (sparse(),), (table(),))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Schema) == found


def test_names_stand_once() -> None:
    with pytest.raises(ConfigError, match="schema: dense feature 'age' stands 2 times; rename"):
        schema(dense=(dense(), dense()))
    with pytest.raises(ConfigError, match="schema: sparse feature 'city' stands 3 times; rename"):
        schema(sparse=(sparse(),) * 3, tables=(table(),))
    with pytest.raises(ConfigError, match="schema: table 'city' stands 2 times; rename"):
        schema(sparse=(sparse(),), tables=(table(), table()))
    with pytest.raises(ConfigError, match="schema: 'city' names a dense and a sparse feature"):
        schema((dense("city"),), (sparse(),), (table(),))


def test_names_are_not_empty() -> None:
    with pytest.raises(ConfigError, match="schema: a dense feature has an empty name"):
        schema(dense=(dense(""),))
    with pytest.raises(ConfigError, match="schema: a sparse feature has an empty name"):
        schema(sparse=(sparse(""),), tables=(table(),))
    with pytest.raises(ConfigError, match="schema: a table has an empty name"):
        schema(dense=(dense(),), tables=(table(""),))


def test_there_is_a_feature() -> None:
    with pytest.raises(ConfigError, match="schema: no feature; declare at least one dense or"):
        schema()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": "town"}, r"table 'town' is not one of \['city'\]"),
        ({"key": "quantile"}, "key 'quantile' with num_quantiles 0; 'quantile' takes 2 or more"),
        ({"key": "quantile", "num_quantiles": 1}, "key 'quantile' with num_quantiles 1"),
        ({"key": "hex", "num_quantiles": 8}, "key 'hex' with num_quantiles 8; .* takes 0"),
        ({"key": "int", "num_quantiles": 1}, "key 'int' with num_quantiles 1; .* takes 0"),
        ({"key": "string", "num_quantiles": -1}, "key 'string' with num_quantiles -1"),
        (
            {"key": "quantile", "num_quantiles": 8, "bag": True},
            "a bag cannot be bucketised; use key string, hex or int",
        ),
        ({"weight_column": "share"}, "weight_column needs bag = true"),
        ({"key": "hour_of_day"}, "key 'hour_of_day' with time_format '' and bag false; "),
        ({"key": "int", "time_format": "iso"}, "key 'int' with time_format 'iso'"),
        (
            {"key": "day_of_week", "time_format": "seconds", "bag": True},
            "key 'day_of_week' with time_format 'seconds' and bag true; .* no bag, the other keys",
        ),
    ],
)
def test_a_sparse_feature_that_contradicts_itself(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"schema: sparse feature 'city': {message}"):
        schema(sparse=(sparse(**settings),), tables=(table(),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_count": 0}, "min_count 0; 1 or more is allowed"),
        ({"max_rows": -1}, r"max_rows -1; 0 \(no limit\) or 3 and more"),
        ({"max_rows": 2}, r"max_rows 2; 0 \(no limit\) or 3 and more"),
        (
            {"encoding": "reference", "min_count": 2},
            "min_count 2 with encoding 'reference', which keeps every value; set min_count = 1",
        ),
        ({"encoding": "identity", "min_count": 3}, "min_count 3 with encoding 'identity'"),
        ({"encoding": "hash"}, "encoding 'hash' needs max_rows, its number of rows"),
    ],
)
def test_a_table_that_contradicts_itself(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"schema: table 'city': {message}"):
        schema(sparse=(sparse(),), tables=(table(**settings),))


def test_a_label_has_both_classes_apart() -> None:
    for positive, negative in (((), ("0",)), (("1",), ())):
        label = Label(column="click", positive=positive, negative=negative)
        with pytest.raises(
            ConfigError, match="schema: label 'click': positive and negative each need at least one"
        ):
            schema(dense=(dense(),), label=label)
    label = Label(column="click", positive=("1", "yes"), negative=("no", "1"))
    with pytest.raises(ConfigError, match="label 'click': '1' is both positive and negative"):
        schema(dense=(dense(),), label=label)
