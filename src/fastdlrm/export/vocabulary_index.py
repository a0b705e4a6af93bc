"""The vocabularies of a model as one file that is mapped: opening it takes no time of its size.

Layout: `MARK`, the u32 length of a head, the head (JSON: name, keys and slots of each table), zeros
up to a multiple of `ALIGNMENT`; the keys of all tables (uint64, in the order of their ids); the
slots of all tables (uint32). Keys and slots are those of `fastdlrm.data.keytable.KeyTable`, so that
processes that map the file share its pages. What a slot holds is trusted: the manifest's checksum
vouches for it.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fastdlrm.contracts.encoding import Encoding
from fastdlrm.contracts.manifest import replacing
from fastdlrm.data.keys import Keys
from fastdlrm.data.keytable import KeyTable
from fastdlrm.data.vocabulary import read_keys
from fastdlrm.errors import ExportError

INDEX = "vocabularies.index"
"""Name of the file in an exported model."""
MARK = b"FDLRMVI1"
"""This layout, first version."""
HEAD_LENGTH = struct.Struct("<I")
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where a table's part of the keys and of the slots lies.

    Attributes:
        first_key: In the keys of all tables.
        num_keys: Size of the vocabulary.
        first_slot: In the slots of all tables.
        num_slots: A power of two.
    """

    first_key: int
    num_keys: int
    first_slot: int
    num_slots: int


@dataclass(frozen=True, slots=True)
class VocabularyIndex:
    """The vocabularies of all tables that have one; safe to use from several threads.

    Attributes:
        keys: Of all tables, one after the other, uint64.
        slots: Of all tables, uint32.
        places: By table.
    """

    keys: Keys
    slots: NDArray[np.uint32]
    places: Mapping[str, Place]

    @classmethod
    def open(cls, path: Path, encoding: Encoding) -> "VocabularyIndex":
        """Map an index.

        Args:
            path: Made by `write_index`.
            encoding: Of the same model.

        Raises:
            ExportError: There is none, it is damaged, or of another encoding.
        """
        places = _places(encoding)
        head = _head(places)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as problem:
            raise ExportError(
                f"{path}: no vocabularies: {problem}; export the model again"
            ) from problem
        num_keys = sum(place.num_keys for place in places.values())
        num_slots = sum(place.num_slots for place in places.values())
        expected = len(head) + 8 * num_keys + 4 * num_slots
        if mapped[: len(head)] != head or len(mapped) != expected:
            raise ExportError(
                f"{path}: {len(mapped)} bytes that are not the index of this model's "
                f"{len(places)} vocabularies ({expected} bytes); export the model again"
            )
        keys = np.frombuffer(mapped, np.uint64, num_keys, len(head))
        slots = np.frombuffer(mapped, np.uint32, num_slots, len(head) + 8 * num_keys)
        return cls(keys, slots, places)

    def tables(self) -> dict[str, KeyTable]:
        """Each vocabulary as `fastdlrm.data.encode.Encoder` takes it, without a copy."""
        return {
            name: KeyTable.over(
                self.keys[p.first_key : p.first_key + p.num_keys],
                self.slots[p.first_slot : p.first_slot + p.num_slots],
            )
            for name, p in self.places.items()
        }


def write_index(path: Path, folder: Path, encoding: Encoding) -> None:
    """Write the index of an artifact's vocabularies, atomically; a table at a time in memory.

    Args:
        path: The file to write.
        folder: The artifact.
        encoding: Of the artifact.

    Raises:
        DataError: A vocabulary is missing or damaged.
    """
    places = _places(encoding)
    with replacing(path) as file:
        head = _head(places)
        num_keys = sum(place.num_keys for place in places.values())
        file.write(head)
        for name, place in places.items():
            table = KeyTable(read_keys(folder, encoding.tables[name]))
            file.seek(len(head) + 8 * place.first_key)
            file.write(table.keys.view(np.uint8).data)
            file.seek(len(head) + 8 * num_keys + 4 * place.first_slot)
            file.write(table.slots.view(np.uint8).data)


def _places(encoding: Encoding) -> dict[str, Place]:
    places: dict[str, Place] = {}
    first_key = first_slot = 0
    for name, table in encoding.tables.items():
        if not table.vocabulary:
            continue
        num_keys = table.num_embeddings - table.first_id
        num_slots = KeyTable.num_slots(num_keys)
        places[name] = Place(first_key, num_keys, first_slot, num_slots)
        first_key += num_keys
        first_slot += num_slots
    return places


def _head(places: Mapping[str, Place]) -> bytes:
    """The bytes before the keys."""
    sizes = [(name, place.num_keys, place.num_slots) for name, place in places.items()]
    content = msgspec.json.encode(sizes)
    head = MARK + HEAD_LENGTH.pack(len(content)) + content
    return head.ljust(-(-len(head) // ALIGNMENT) * ALIGNMENT, b"\0")
