"""Rows of a tensor that ranks have saved in pieces."""

from itertools import pairwise

import pytest
import torch

from fastdlrm.checkpoint.rows import StoredRows
from fastdlrm.checkpoint.tensor_file import stored_tensors, write_tensors
from fastdlrm.errors import CheckpointError

WHOLE = torch.arange(7 * 4, dtype=torch.float32).view(7, 4)


@pytest.fixture(params=["whole", "rows", "columns", "both"])
def rows(request, tmp_path):
    row_edges = (0, 3, 7) if request.param in ("rows", "both") else (0, 7)
    column_edges = (0, 1, 4) if request.param in ("columns", "both") else (0, 4)
    pieces = []
    for a, b in pairwise(row_edges):
        for c, d in pairwise(column_edges):
            path = tmp_path / f"{a}-{c}.safetensors"
            write_tensors(path, {"t": WHOLE[a:b, c:d]}, {"t": (a, c)})
            pieces.append(stored_tensors(path)["t"])
    return StoredRows(pieces)


def test_any_rows_of_any_pieces(rows):
    assert rows.shape == (7, 4)
    for start in range(7):
        for stop in range(start, 8):
            assert torch.equal(rows.read(start, stop), WHOLE[start:stop])
    assert torch.equal(rows.gather([6, 0, 3]), WHOLE[[6, 0, 3]])
    assert rows.gather([]).shape == (0, 4)


@pytest.mark.parametrize("edges", [(0, 7), (0, 2, 7)])
def test_rows_times_one_number_each(rows, edges, tmp_path):
    factors, pieces = torch.linspace(-1, 2, 7), []
    for a, b in pairwise(edges):
        path = tmp_path / f"factors-{a}.safetensors"
        write_tensors(path, {"f": factors[a:b]}, {"f": (a,)})
        pieces.append(stored_tensors(path)["f"])
    scaled = StoredRows(rows._pieces, pieces)
    expected = WHOLE * factors[:, None]
    for start in range(7):
        assert torch.equal(scaled.read(start, 7), expected[start:])
        assert torch.equal(scaled.read(0, start), expected[:start])
    assert torch.equal(scaled.gather([6, 0]), expected[[6, 0]])


def test_a_file_that_ends_too_soon(rows):
    piece = rows._pieces[0]
    piece.path.write_bytes(piece.path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="ends too soon; use another checkpoint"):
        rows.read(0, 7)
