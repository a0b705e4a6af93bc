import torch

from fastdlrm.parallel import plan
from fastdlrm.parallel.tensor_shard import table_shard


def test_place_of_a_tables_rows_and_columns():
    shard = plan.row_wise(10, 4, [0, 1]).shards[1]
    rows = table_shard(torch.zeros(5, 4), shard, 10, 4)
    assert (rows.full_shape, rows.offsets) == ((10, 4), (5, 0))
    state = table_shard(torch.zeros(5), shard, 10, 4)  # a number a row
    assert (state.full_shape, state.offsets) == ((10,), (5,))
    shard = plan.column_wise(10, 4, [0, 1]).shards[1]
    columns = table_shard(torch.zeros(10, 2), shard, 10, 4)
    assert (columns.full_shape, columns.offsets) == ((10, 4), (0, 2))
