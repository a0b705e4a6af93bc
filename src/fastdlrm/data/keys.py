"""64-bit keys of whole arrays: the compiled twin of `fastdlrm.contracts.hashing`.

Constants are np.uint64 throughout: one signed operand would turn the arithmetic into floats.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastdlrm.contracts import hashing

Keys = NDArray[np.uint64]

_OFFSET = np.uint64(hashing.FNV_OFFSET)
_PRIME = np.uint64(hashing.FNV_PRIME)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


@njit(cache=True, nogil=True)
def mix(key: np.uint64) -> np.uint64:
    """`hashing.mix` of one key; for use inside compiled code."""
    key = (key ^ (key >> _S30)) * _FACTOR_1
    key = (key ^ (key >> _S27)) * _FACTOR_2
    return key ^ (key >> _S31)


@njit(cache=True, nogil=True)
def mixed(keys: Keys) -> Keys:
    """`hashing.mix` of each key, shape (n,)."""
    out = np.empty(len(keys), dtype=np.uint64)
    for i in range(len(keys)):
        out[i] = mix(keys[i])
    return out


@njit(cache=True, nogil=True)
def text_key(data: NDArray[np.uint8], begin: int, end: int) -> np.uint64:
    """`hashing.text_key` of data[begin:end], UTF-8 bytes; for use inside compiled code."""
    key = _OFFSET
    for j in range(begin, end):
        key = (key ^ np.uint64(data[j])) * _PRIME
    return mix(key)


@njit(cache=True, nogil=True)
def text_keys(offsets: NDArray[np.int32], data: NDArray[np.uint8]) -> Keys:
    """`hashing.text_key` of each text of an Arrow string array.

    Args:
        offsets: Text i is data[offsets[i]:offsets[i + 1]], shape (n + 1,).
        data: UTF-8 bytes.

    Returns:
        Shape (n,).
    """
    keys = np.empty(len(offsets) - 1, dtype=np.uint64)
    for i in range(len(keys)):
        keys[i] = text_key(data, offsets[i], offsets[i + 1])
    return keys


@njit(cache=True, nogil=True, error_model="numpy")
def write_buckets(keys: Keys, num_buckets: np.uint64, first: np.uint64, out: NDArray[Any]) -> None:
    """Write first + `hashing.bucket` of each key.

    Args:
        keys: Shape (n,).
        num_buckets: At least 1.
        first: Added to each bucket.
        out: Unsigned integers, shape (n,).
    """
    for i in range(len(keys)):
        out[i] = first + mix(keys[i]) % num_buckets


def stream(seed: int, purpose: str) -> np.uint64:
    """A stream of random numbers of its own for each seed and purpose, for `draws`."""
    return np.uint64(hashing.mix((seed & hashing.MASK) ^ hashing.text_key(purpose)))


@njit(cache=True, nogil=True)
def draws(stream: np.uint64, start: int, stop: int) -> Keys:
    """Numbers start .. stop - 1 of a stream: splitmix64 seeded by the stream, 64 bits each."""
    out = np.empty(stop - start, dtype=np.uint64)
    for i in range(stop - start):
        out[i] = mix(stream + np.uint64(start + i + 1) * _GOLDEN)
    return out


@njit(cache=True, nogil=True)
def uniforms(stream: np.uint64, start: int, stop: int) -> NDArray[np.float64]:
    """Numbers start .. stop - 1 of a stream, uniform in [0, 1) in steps of 2**-53."""
    out = np.empty(stop - start, dtype=np.float64)
    for i in range(stop - start):
        bits = mix(stream + np.uint64(start + i + 1) * _GOLDEN) >> _S11
        out[i] = np.float64(bits) * 2.0**-53
    return out
