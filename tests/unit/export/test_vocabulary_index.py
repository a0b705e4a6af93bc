"""Vocabularies as one mapped file: the same ids, and refusals of what is no such file."""

from pathlib import Path

import numpy as np
import pytest

from fastdlrm.contracts.encoding import HASH_VERSION, Encoding, TableEncoding
from fastdlrm.data.keytable import KeyTable
from fastdlrm.data.vocabulary import Vocabulary, write_vocabulary
from fastdlrm.errors import DataError, ExportError
from fastdlrm.export.vocabulary_index import INDEX, VocabularyIndex, write_index
from tests import staging

KEYS = {"a": [7, 2**64 - 1, 0], "none": [], "b": list(range(1000, 3000))}


def fitted(folder: Path) -> Encoding:
    """Three vocabularies in a folder, one of them empty, and a table without one."""
    tables = {"hashed": TableEncoding(num_embeddings=9, vocabulary="", coverage=1.0)}
    for name, values in KEYS.items():
        keys = np.array(values, dtype=np.uint64)
        vocabulary = Vocabulary(keys, np.ones(len(keys), np.uint64), None, len(keys))
        tables[name] = write_vocabulary(folder, staging.table(name), vocabulary, "hex", ())
    return Encoding(hash_version=HASH_VERSION, dense={}, quantiles={}, tables=tables)


def test_every_key_has_the_id_of_its_place(tmp_path: Path) -> None:
    encoding = fitted(tmp_path)
    write_index(tmp_path / INDEX, tmp_path, encoding)
    tables = VocabularyIndex.open(tmp_path / INDEX, encoding).tables()
    assert list(tables) == ["a", "none", "b"]
    for name, values in KEYS.items():
        asked = np.array([*values, 555], dtype=np.uint64)
        ids = np.empty(len(asked), dtype=np.uint32)
        tables[name].write_ids(asked, ids)
        assert ids.tolist() == [*range(2, 2 + len(values)), 0]


def test_parts_begin_where_they_can_be_read_as_numbers(tmp_path: Path) -> None:
    encoding = fitted(tmp_path)
    write_index(tmp_path / INDEX, tmp_path, encoding)
    index = VocabularyIndex.open(tmp_path / INDEX, encoding)
    assert index.keys.flags.aligned
    assert index.slots.flags.aligned
    assert not index.keys.flags.writeable
    assert len(index.slots) == sum(KeyTable.num_slots(len(keys)) for keys in KEYS.values())


def test_an_index_of_another_model_or_size_is_refused(tmp_path: Path) -> None:
    encoding = fitted(tmp_path)
    path = tmp_path / INDEX
    with pytest.raises(ExportError, match=r"vocabularies.index: no vocabularies: .*No such file"):
        VocabularyIndex.open(path, encoding)
    path.write_bytes(b"")
    with pytest.raises(ExportError, match="no vocabularies: cannot mmap an empty file"):
        VocabularyIndex.open(path, encoding)
    write_index(path, tmp_path, encoding)
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole + b"\0\0\0\0", b"X" + whole[1:], whole[:20]):
        path.write_bytes(damaged)
        with pytest.raises(ExportError, match="bytes that are not the index of this model's 3 voc"):
            VocabularyIndex.open(path, encoding)
    path.write_bytes(whole)
    fewer = {name: table for name, table in encoding.tables.items() if name != "none"}
    other = Encoding(hash_version=HASH_VERSION, dense={}, quantiles={}, tables=fewer)
    with pytest.raises(ExportError, match="not the index of this model's 2 vocabularies"):
        VocabularyIndex.open(path, other)


def test_a_missing_vocabulary_is_told(tmp_path: Path) -> None:
    encoding = fitted(tmp_path)
    (tmp_path / "vocab" / "b.arrow").unlink()
    with pytest.raises(DataError, match=r"b\.arrow: no vocabulary"):
        write_index(tmp_path / INDEX, tmp_path, encoding)
    assert not (tmp_path / INDEX).exists()
