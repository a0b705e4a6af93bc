"""The compiled keys against their definition in plain Python, and against published numbers."""

import numpy as np
import pyarrow as pa
import pytest

from fastdlrm.contracts import hashing
from fastdlrm.data.keys import draws, mix, stream, text_keys, uniforms, write_buckets

KEYS = [0, 1, 2, 255, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
TEXTS = ["", "a", "0", "foobar", "Zürich", "日本語", "\x00", "  ", "x" * 300]


def test_mix() -> None:
    assert [int(mix(np.uint64(key))) for key in KEYS] == [hashing.mix(key) for key in KEYS]


def test_text_keys() -> None:
    texts = pa.array(TEXTS)
    offsets = np.frombuffer(texts.buffers()[1], np.int32)
    data = np.frombuffer(texts.buffers()[2], np.uint8)
    expected = [hashing.text_key(text) for text in TEXTS]
    assert text_keys(offsets[: len(TEXTS) + 1], data).tolist() == expected
    assert text_keys(offsets[2 : len(TEXTS) + 1], data).tolist() == expected[2:]


@pytest.mark.parametrize("num_buckets", [1, 2, 998, 2**32])
def test_buckets(num_buckets: int) -> None:
    out = np.empty(len(KEYS), np.uint64)
    write_buckets(np.array(KEYS, np.uint64), np.uint64(num_buckets), np.uint64(2), out)
    assert out.tolist() == [2 + hashing.bucket(key, num_buckets) for key in KEYS]


def test_draws_are_the_published_splitmix64() -> None:
    # https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64, seed 1234567
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert draws(np.uint64(1234567), 0, 5).tolist() == published
    assert draws(np.uint64(1234567), 3, 5).tolist() == published[3:]


def test_uniforms_fall_where_published() -> None:
    # The same page: 100,000 numbers of seed 987654321, counted by floor(5 x).
    numbers = uniforms(np.uint64(987654321), 0, 100_000)
    counts = np.bincount((5 * numbers).astype(int))
    assert counts.tolist() == [20027, 19892, 20073, 19978, 20030]


def test_a_stream_is_its_seeds_and_purposes_own() -> None:
    streams = [stream(seed, purpose) for seed in (0, 1, -1) for purpose in ("test", "part")]
    assert len(set(streams)) == 6
    assert stream(1, "test") == streams[2]
