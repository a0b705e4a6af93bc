from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts.encoding import TableEncoding
from fastdlrm.contracts.schema import Table
from fastdlrm.data.first_seen import first_seen_vocabulary
from fastdlrm.data.vocabulary import Vocabulary, read_keys, write_vocabulary
from fastdlrm.errors import DataError
from tests.staging import sparse, staged, table

MIB = 1 << 20


def numbered(
    folder: Path, *files: list[int | None], max_rows: int = 0, row_group_rows: int = 1000
) -> tuple[Table, Vocabulary]:
    rows = staged(
        folder,
        *({"s.a": pa.array(values, pa.uint64())} for values in files),
        row_group_rows=row_group_rows,
    )
    numbering = table("a", "reference", max_rows=max_rows)
    return numbering, first_seen_vocabulary(numbering, sparse("a"), rows, 64 * MIB)


@pytest.mark.parametrize("row_group_rows", [1, 3, 1000])
def test_by_hand(tmp_path: Path, row_group_rows: int) -> None:
    files = [7, None, 7, 3], [3, 9, 0]
    _, found = numbered(tmp_path, *files, row_group_rows=row_group_rows)
    # The missing value is 0; the 0 of the second file is the same value.
    assert found.keys.tolist() == [7, 0, 3, 9]
    assert found.counts.tolist() == [2, 2, 2, 1]
    assert found.num_counted == 7


def test_modulo_by_hand(tmp_path: Path) -> None:
    _, found = numbered(tmp_path, [25, 5, None, 2**32 - 1, 10], max_rows=10)
    assert found.keys.tolist() == [5, 0]  # 25 and 5 and 4294967295; the missing one and 10
    assert found.counts.tolist() == [3, 2]


def test_ids_from_2_to_the_31_are_numbered(tmp_path: Path) -> None:
    """The reference overflows where ids are kept without a modulus."""
    _, found = numbered(tmp_path, [2**31, 2**32 - 1, 2**31 - 1, 2**31])
    assert found.keys.tolist() == [2**31, 2**32 - 1, 2**31 - 1]


def test_growth_keeps_the_order(tmp_path: Path) -> None:
    drawn = np.random.default_rng(5).zipf(1.2, 60_000).astype(np.uint64)
    _, found = numbered(tmp_path, drawn.tolist(), row_group_rows=7_000)
    firsts = list(dict.fromkeys(drawn.tolist()))
    assert len(firsts) > 8_192
    assert found.keys.tolist() == firsts
    assert found.counts[0] == (drawn == firsts[0]).sum()
    assert found.counts.sum() == 60_000


def test_it_is_written_and_read_in_order(tmp_path: Path) -> None:
    numbering, found = numbered(tmp_path, [0xFF, 0xA, 0xFF])
    encoding = write_vocabulary(tmp_path, numbering, found, "hex", ())
    assert encoding == TableEncoding(
        num_embeddings=2, vocabulary="vocab/a.arrow", coverage=1.0, first_id=0
    )
    assert read_keys(tmp_path, encoding).tolist() == [0xFF, 0xA]


def test_a_vocabulary_beyond_memory_is_refused(tmp_path: Path) -> None:
    rows = staged(tmp_path, {"s.a": pa.array(range(100_000), pa.uint64())})
    with pytest.raises(DataError, match=r"'a': a vocabulary of more than 16384 values needs 1 MiB"):
        first_seen_vocabulary(table("a", "reference"), sparse("a"), rows, MIB)
