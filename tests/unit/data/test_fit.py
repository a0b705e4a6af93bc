from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.encoding import HASH_VERSION, DenseStatistics, Encoding
from fastdlrm.data.config import Holdout, SplitConfig
from fastdlrm.errors import DataError
from tests import staging
from tests.staging import NONE, dense, fit, sparse, staged, table

F64 = pa.float64()
LAST_FILE_IS_TEST = SplitConfig(validation=NONE, test=Holdout(by="file", amount=1))


def test_statistics_by_hand(tmp_path: Path) -> None:
    # 2 4 4 4 5 5 7 9: mean 40 / 8 = 5; squares 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32, 32 / 8 = 4.
    # The missing and the NaN are filled with 4; the test file's 1000 is not seen.
    train = pa.array([2, 4, None, float("nan"), 5, 5, 7, 9], F64)
    rows = staged(tmp_path, {"d.x": train}, {"d.x": pa.array([1000.0])}, row_group_rows=3)
    schema = staging.schema(dense("x", "standardize", fill=4.0))
    encoding = fit(tmp_path, rows, schema, LAST_FILE_IS_TEST)
    assert encoding == Encoding(
        hash_version=HASH_VERSION,
        dense={"x": DenseStatistics(mean=5.0, std=2.0)},
        quantiles={},
        tables={},
    )


def test_statistics_do_not_depend_on_row_groups(tmp_path: Path) -> None:
    numbers = {"d.x": pa.array(np.random.default_rng(0).normal(1e6, 1.0, 5000))}
    schema = staging.schema(dense("x", "standardize"))
    fitted = [
        fit(tmp_path, staged(tmp_path / str(n), numbers, row_group_rows=n), schema)
        for n in (7, 1000, 5000)
    ]
    assert fitted[0] == fitted[1] == fitted[2]
    assert fitted[0].dense["x"].std == pytest.approx(numbers["d.x"].to_numpy().std(), rel=1e-9)


def test_a_constant_column_has_std_0(tmp_path: Path) -> None:
    rows = staged(tmp_path, {"d.x": pa.array([3.5, 3.5, 3.5])})
    encoding = fit(tmp_path, rows, staging.schema(dense("x", "standardize")))
    assert encoding.dense["x"] == DenseStatistics(mean=3.5, std=0.0)


def test_an_infinite_number_is_refused(tmp_path: Path) -> None:
    rows = staged(tmp_path, {"d.x": pa.array([1.0, float("inf")])})
    with pytest.raises(DataError, match="dense feature 'x': a value is infinite"):
        fit(tmp_path, rows, staging.schema(dense("x", "standardize")))


@pytest.mark.parametrize(
    ("values", "num_quantiles", "edges"),
    [
        # Edge j is the value at sorted place floor(8 j / 4) = 2, 4, 6 of 1 .. 8.
        ([8, 3, 5, 1, 7, 2, 6, 4], 4, (3.0, 5.0, 7.0)),
        # Places floor(5 j / 3) = 1, 3 of 1 .. 5.
        ([5, 4, 3, 2, 1], 3, (2.0, 4.0)),
        # Places 2, 4, 6 hold 0, 0, 9: an edge at the least value would leave bucket 0 empty.
        ([0, 0, 0, 0, 0, 4, 9, 9], 4, (9.0,)),
        # Places 1, 2, 3 hold 1, 1, 1 of 0, 1, 1, 1.
        ([0, 1, 1, 1], 4, (1.0,)),
        # More buckets than values: places 0, 0, 1, 1.
        ([1, 2], 5, (2.0,)),
        ([7, 7, 7], 4, ()),
        # Missing, NaN and infinite values have no say.
        ([None, 1, float("nan"), 2, float("inf"), float("-inf"), 3, 4], 2, (3.0,)),
        ([float("inf"), float("inf")], 2, ()),
    ],
)
def test_quantile_edges_by_hand(
    tmp_path: Path, values: list[float | None], num_quantiles: int, edges: tuple[float, ...]
) -> None:
    rows = staged(
        tmp_path,
        {"s.x": pa.array(values, F64)},
        {"s.x": pa.array([100.0, 200.0])},
        row_group_rows=3,
    )
    schema = staging.schema(
        sparse("x", "quantile", num_quantiles=num_quantiles), table("x", "hash", max_rows=9)
    )
    assert fit(tmp_path, rows, schema, LAST_FILE_IS_TEST).quantiles == {"x": edges}


def test_columns_without_a_train_value_are_refused(tmp_path: Path) -> None:
    nothing = pa.array([None, None], pa.uint64())
    rows = staged(
        tmp_path,
        {
            "d.x": pa.array([None, float("nan")], F64),
            "d.full": pa.array([None, 1.0], F64),
            "s.a": nothing,
            "s.full2": pa.array([None, 1], pa.uint64()),
            "s.bag": pa.array([[], []], pa.list_(pa.int64())),
        },
        {
            "d.x": pa.array([1.0]),
            "d.full": pa.array([1.0]),
            "s.a": pa.array([1], pa.uint64()),
            "s.full2": pa.array([1], pa.uint64()),
            "s.bag": pa.array([[1]], pa.list_(pa.int64())),
        },
        row_group_rows=1,
    )
    schema = staging.schema(
        dense("x"),
        dense("full"),
        sparse("a"),
        sparse("full2", table="t"),
        sparse("bag", "int", bag=True, separator=" "),
        table("a", "hash", max_rows=9),
    )
    with pytest.raises(DataError, match=r"without a single value in the train rows: x, a, bag;"):
        fit(tmp_path, rows, schema, LAST_FILE_IS_TEST)
    fit(tmp_path, rows, schema)
