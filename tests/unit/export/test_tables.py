"""Tables in a file: the bits of training's own, mapped privately, replaced row by row."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdlrm.batch import SparseBatch
from fastdlrm.contracts.exported import TableDtype
from fastdlrm.errors import ExportError
from fastdlrm.export import tables as module
from fastdlrm.export.tables import (
    EmbeddingTables,
    QuantizedTables,
    map_stacks,
    plain_rows,
    replace_rows,
    row_bytes,
    stored_rows,
    stored_tables,
    table_dtype,
    tables_bytes,
    write_tables,
)
from fastdlrm.kernels.quantized_lookup import dequantize_rows, quantize_rows
from fastdlrm.model import embedding
from fastdlrm.model.mixed_tables import MixedTables
from tests import oracles

SIZES = {"user": 4, "item": 6}
FEATURES = ["item", "user", "item"]
DIM = 6
DTYPES: list[TableDtype] = ["fp32", "bf16", "int8", "int4"]


def trained(pooling: str = "sum", dtype: torch.dtype = torch.float32) -> EmbeddingTables:
    tables = EmbeddingTables(SIZES, FEATURES, embedding_dim=DIM, pooling=pooling, dtype=dtype)
    tables.initialise("normal", torch.Generator().manual_seed(1), 1.0)
    return tables


def stored(path, dtype: TableDtype, pooling: str = "sum", tables: EmbeddingTables | None = None):
    write_tables(path, (tables or trained(pooling)).state_tensors(), dtype)
    return stored_tables(path, SIZES, FEATURES, dim=DIM, dtype=dtype, pooling=pooling)


def single_batch() -> SparseBatch:
    ids = torch.tensor([5, 0, 3, 1, 2, 4], dtype=torch.int32)
    return SparseBatch(ids=ids, lengths=None, weights=None, num_features=3)


def jagged_batch(is_weighted: bool) -> SparseBatch:
    # B = 2; bags: item [5, 0] and [], user [3] and [1, 1], item [2] and [4, 5, 0]
    return SparseBatch(
        ids=torch.tensor([5, 0, 3, 1, 1, 2, 4, 5, 0], dtype=torch.int32),
        lengths=torch.tensor([2, 0, 1, 2, 1, 3], dtype=torch.int32),
        weights=torch.arange(1.0, 10.0) if is_weighted else None,
        num_features=3,
    )


def content(tables: QuantizedTables | EmbeddingTables) -> Tensor:
    """What the rows stand for, as float32."""
    weight = tables.weight.detach()
    is_quantized = isinstance(tables, QuantizedTables)
    return dequantize_rows(weight, tables.dtype) if is_quantized else weight.float()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("fp32", 64), ("bf16", 32), ("int8", 18), ("int4", 12)],  # 16 * 4, 16 * 2, 16 + 2, 8 + 4
)
def test_row_bytes_by_hand(dtype: TableDtype, expected: int) -> None:
    assert row_bytes(dtype, 16) == expected


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize(("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_plain_tables_look_up_the_very_bits_of_trained_ones(
    tmp_path, dtype: TableDtype, kind: torch.dtype, pooling: str
) -> None:
    ours = trained(pooling, kind)
    found = stored(tmp_path / "tables.bin", dtype, pooling, ours)
    assert isinstance(found, EmbeddingTables)
    for batch in (single_batch(), jagged_batch(False), jagged_batch(True)):
        for out in (torch.float32, torch.bfloat16, None):
            assert torch.equal(found(batch, out), ours(batch, out))


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_tables_match_the_oracle(
    tmp_path, dtype: TableDtype, is_weighted: bool, pooling: str
) -> None:
    tables = stored(tmp_path / "tables.bin", dtype, pooling)
    rows = content(tables).double().numpy()
    user, item = rows[:4], rows[4:]
    bags = [[[5, 0], []], [[3], [1, 1]], [[2], [4, 5, 0]]]
    weights = [[[1, 2], []], [[3], [4, 5]], [[6], [7, 8, 9]]]
    found = tables(jagged_batch(is_weighted))
    assert found.shape == (2, 3, DIM)
    for f, table in enumerate((item, user, item)):
        scales = weights[f] if is_weighted else None
        expected = oracles.pooled_lookup(table, bags[f], scales, pooling)
        np.testing.assert_allclose(found[:, f], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_single_ids_are_rows(tmp_path, dtype: TableDtype) -> None:
    tables = stored(tmp_path / "tables.bin", dtype)
    rows = content(tables)
    found = tables(single_batch(), torch.float32)
    # item's rows begin at 4 of the stack, user's at 0
    assert torch.equal(found[:, 0], rows[[4 + 5, 4 + 0]])
    assert torch.equal(found[:, 1], rows[[3, 1]])
    assert tables(single_batch(), torch.bfloat16).dtype == torch.bfloat16
    assert tables(single_batch()).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_written_in_pieces_it_is_the_same_file(
    tmp_path, monkeypatch: pytest.MonkeyPatch, dtype: TableDtype
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    write_tables(whole, trained().state_tensors(), dtype)
    monkeypatch.setattr(module, "CHUNK_ROWS", 4)
    write_tables(pieces, trained().state_tensors(), dtype)
    assert pieces.read_bytes() == whole.read_bytes()
    assert whole.stat().st_size == 10 * row_bytes(dtype, DIM)


def test_a_large_stack_is_counted_in_int64(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "INT32_ROWS", 9)  # the stack has 10 rows
    tables = stored(tmp_path / "tables.bin", "int8")
    assert tables.rows(single_batch()).dtype == torch.int64
    assert torch.equal(tables(single_batch())[:, 1], content(tables)[[3, 1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_replaced_in_this_mapping_alone(tmp_path, dtype: TableDtype) -> None:
    path = tmp_path / "tables.bin"
    tables = stored(path, dtype)
    other = stored_tables(path, SIZES, FEATURES, dim=DIM, dtype=dtype, pooling="sum")
    file, before = path.read_bytes(), content(tables).clone()
    fresh = torch.randn(2, DIM, generator=torch.Generator().manual_seed(2))
    replace_rows(tables, "item", torch.tensor([5, 1]), fresh)
    expected = before.clone()
    as_stored = {"fp32": fresh, "bf16": fresh.bfloat16().float()}
    for kind in ("int8", "int4"):
        as_stored[kind] = dequantize_rows(quantize_rows(fresh, kind), kind)
    expected[[4 + 5, 4 + 1]] = as_stored[dtype]
    assert torch.equal(content(tables), expected)
    assert torch.equal(content(other), before)
    assert path.read_bytes() == file
    assert table_dtype(tables) == dtype


def mixed(path, dtype: TableDtype, narrow: int) -> tuple[dict[str, Tensor], MixedTables]:
    """Table user is narrow, and lies behind item in the file; what is written, and what is read."""
    dims = {"user": narrow, "item": DIM}
    generator = torch.Generator().manual_seed(1)
    written = {t: torch.randn(SIZES[t], dims[t], generator=generator) for t in SIZES}
    write_tables(path, written, dtype)
    tables = stored_tables(path, SIZES, FEATURES, dim=DIM, dims=dims, dtype=dtype, pooling="sum")
    assert isinstance(tables, MixedTables)
    return written, tables


@pytest.mark.parametrize(
    ("dtype", "narrow"), [("fp32", 1), ("bf16", 3), ("int8", 1), ("int8", 3), ("int4", 2)]
)
def test_tables_of_several_widths(tmp_path, dtype: TableDtype, narrow: int) -> None:
    path = tmp_path / "tables.bin"
    written, tables = mixed(path, dtype, narrow)
    num_bytes = 4 * row_bytes(dtype, narrow) + 6 * row_bytes(dtype, DIM)
    assert path.stat().st_size == tables_bytes(written, dtype) == num_bytes
    state = tables.state_tensors()
    kept = {t: plain_rows(state[t], dtype) for t in SIZES}
    assert list(state) == list(SIZES)
    for name, rows in written.items():
        # half a step of int4 over 15 steps of a range; of int8 over 127 of a largest number
        bound = {"fp32": 0, "bf16": 2**-8, "int8": 0.5 / 126, "int4": 1 / 14}[dtype]
        assert (kept[name] - rows).abs().max() <= bound * rows.abs().max()
    for batch in (single_batch(), jagged_batch(True)):
        found = tables(batch, torch.float32)
        assert found.shape == (2, 3, DIM)
        assert not found[:, 1, narrow:].any()
        weights = batch.weights if batch.weights is not None else torch.ones(len(batch.ids))
        at = torch.repeat_interleave(torch.arange(6), batch.offsets().diff())
        for f, name in enumerate(FEATURES):
            width = kept[name].shape[1]
            expected = torch.zeros(6, width)
            own = at // 2 == f
            vectors = kept[name][batch.ids[own].long()] * weights[own, None]
            expected.index_add_(0, at[own], vectors)
            expected = expected.view(3, 2, width)[f]
            # plain rows are pooled in their own type
            rtol = 2**-7 if dtype == "bf16" else 1e-5
            torch.testing.assert_close(found[:, f, :width], expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_rows_of_a_narrow_table_are_replaced(tmp_path, dtype: TableDtype) -> None:
    _, tables = mixed(tmp_path / "tables.bin", dtype, 2)
    fresh = torch.ones(1, 2)
    before = {name: rows.clone() for name, rows in tables.state_tensors().items()}
    replace_rows(tables, "user", torch.tensor([3]), fresh)
    after = tables.state_tensors()
    assert torch.equal(after["item"], before["item"])
    assert torch.equal(after["user"][:3], before["user"][:3])
    assert torch.equal(after["user"][3:], stored_rows(fresh, dtype))
    with pytest.raises(ExportError, match=r"shape \(1, 6\) for 1 ids; one row of 2 numbers"):
        replace_rows(tables, "user", torch.tensor([3]), torch.ones(1, DIM))
    with pytest.raises(ExportError, match=r"no table 'nope'; user, item are there"):
        replace_rows(tables, "nope", torch.tensor([3]), fresh)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_rows_that_do_not_fit_are_refused(tmp_path, dtype: TableDtype) -> None:
    tables = stored(tmp_path / "tables.bin", dtype)
    before = content(tables).clone()
    one, rows = torch.tensor([1]), torch.ones(1, DIM)
    with pytest.raises(ExportError, match=r"no table 'nope'; user, item are there"):
        replace_rows(tables, "nope", one, rows)
    with pytest.raises(ExportError, match=r"table 'user': rows 4 to 4 .* it has rows 0 to 3;"):
        replace_rows(tables, "user", torch.tensor([4]), rows)
    with pytest.raises(ExportError, match=r"table 'user': rows -1 to -1 are to be replaced"):
        replace_rows(tables, "user", torch.tensor([-1]), rows)
    with pytest.raises(ExportError, match=rf"shape \(1, 3\) for 1 ids; one row of {DIM} numbers"):
        replace_rows(tables, "user", one, rows[:, :3])
    with pytest.raises(ExportError, match=r"shape \(1, 6\) for 2 ids"):
        replace_rows(tables, "user", torch.tensor([1, 2]), rows)
    with pytest.raises(ExportError, match=r"'user', rows to replace: row 0 holds NaN"):
        replace_rows(tables, "user", one, rows * torch.nan)
    assert torch.equal(content(tables), before)
    replace_rows(tables, "user", one[:0], rows[:0])
    assert torch.equal(content(tables), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_cannot_be_stored_are_refused(tmp_path, dtype: TableDtype) -> None:
    tables = trained()
    tables.table("item")[3, 0] = torch.inf
    with pytest.raises(ExportError, match=r"table 'item', rows from 0 on: row 3 holds NaN"):
        write_tables(tmp_path / "tables.bin", tables.state_tensors(), dtype)


def test_bf16_refuses_what_it_would_round_to_infinity(tmp_path) -> None:
    tables = trained()
    tables.table("user")[2, 1] = torch.finfo(torch.float32).max
    write_tables(tmp_path / "tables.bin", tables.state_tensors(), "fp32")
    with pytest.raises(ExportError, match=r"table 'user', rows from 0 on: row 2 holds"):
        write_tables(tmp_path / "tables.bin", tables.state_tensors(), "bf16")


def test_int4_of_an_odd_dim_is_refused(tmp_path) -> None:
    with pytest.raises(ExportError, match=r"tables: int4 rows of 5 numbers: .* use int8"):
        write_tables(tmp_path / "tables.bin", {"user": torch.ones(2, 5)}, "int4")


def test_a_file_of_another_size_is_refused(tmp_path) -> None:
    path = tmp_path / "tables.bin"
    write_tables(path, trained().state_tensors(), "int8")
    with pytest.raises(ExportError, match=r"80 bytes, 11 rows of 6 int8 numbers take 88"):
        map_stacks(path, [(11, DIM)], "int8")
    with pytest.raises(ExportError, match=r"0 bytes, 10 rows of 6 fp32 numbers take 240"):
        map_stacks(tmp_path / "missing", [(10, DIM)], "fp32")
    with pytest.raises(ExportError, match=r"80 bytes, 4 rows of 6 and 6 rows of 2 int8 numbers"):
        map_stacks(path, [(4, 6), (6, 2)], "int8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(tmp_path, dtype: TableDtype) -> None:
    path = tmp_path / "tables.bin"
    write_tables(path, {}, dtype)
    tables = stored_tables(path, {}, [], dim=DIM, dtype=dtype, pooling="sum")
    empty = torch.empty(0, dtype=torch.int32)
    batch = SparseBatch(ids=empty, lengths=None, weights=None, num_features=0)
    assert tables(batch, torch.float32).shape == (0, 0, DIM)


def test_quantised_tables_are_not_drawn(tmp_path) -> None:
    tables = stored(tmp_path / "tables.bin", "int8")
    with pytest.raises(ExportError, match=r"tables of int8 cannot be drawn; train in fp32"):
        tables.initialise("normal", torch.Generator())


def test_tables_are_views_of_the_stack(tmp_path) -> None:
    tables = stored(tmp_path / "tables.bin", "int8")
    state = tables.state_tensors()
    assert {name: len(rows) for name, rows in state.items()} == SIZES
    assert state["item"].data_ptr() == tables.weight[4:].data_ptr()
    assert not tables.state_dict()
