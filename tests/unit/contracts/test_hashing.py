"""The definition of the hash against published vectors."""

import random

import pytest

from fastdlrm.contracts.hashing import bucket, mix, text_key

FNV1A = {
    # Published test vectors of 64-bit FNV-1a (Noll), before the finaliser.
    "": 0xCBF29CE484222325,
    "a": 0xAF63DC4C8601EC8C,
    "b": 0xAF63DF4C8601F1A5,
    "foobar": 0x85944171F73967E8,
}
SPLITMIX = [
    # The first outputs of splitmix64 seeded with 1234567.
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_mix_is_the_finaliser_of_splitmix64() -> None:
    # Output i of splitmix64 is the finaliser of seed + (i + 1) * golden ratio, modulo 2^64.
    golden = 0x9E3779B97F4A7C15
    assert [mix((1234567 + i * golden) % 2**64) for i in range(1, 6)] == SPLITMIX
    # Seed 0 gives 0xE220A8397B1DCDAF first.
    assert mix(golden) == 0xE220A8397B1DCDAF
    assert mix(0) == 0


@pytest.mark.parametrize("text", FNV1A)
def test_text_key_finalises_fnv1a(text: str) -> None:
    assert text_key(text) == mix(FNV1A[text])


def test_text_is_hashed_as_utf8() -> None:
    # "é" is the bytes C3 A9.
    key = 0xCBF29CE484222325
    for byte in (0xC3, 0xA9):
        key = (key ^ byte) * 1099511628211 % 2**64
    assert text_key("é") == mix(key)


def test_mix_is_a_bijection_on_a_sample() -> None:
    rng = random.Random(0)
    keys = {rng.getrandbits(64) for _ in range(20_000)}
    mixed = {mix(key) for key in keys}
    assert len(mixed) == len(keys)
    assert all(0 <= key < 2**64 for key in mixed)


def test_mix_changes_half_the_bits() -> None:
    rng = random.Random(0)
    flips = [(mix(k) ^ mix(k ^ (1 << rng.randrange(64)))).bit_count() for k in range(2000)]
    # Binomial(64, 1/2) has standard deviation 4; the mean of 2000 has 0.09.
    assert abs(sum(flips) / len(flips) - 32) < 0.5


def test_buckets_fill_evenly_even_for_consecutive_keys() -> None:
    counts = [0] * 10
    for key in range(10_000):
        counts[bucket(key, 10)] += 1
    # 1000 each, standard deviation sqrt(1000 * 0.9) = 30.
    assert max(abs(count - 1000) for count in counts) < 150
    assert bucket(0x9E3779B97F4A7C15, 10) == 0xE220A8397B1DCDAF % 10
