"""The hash that turns text into 64-bit keys and keys into rows, version 1.

FNV-1a over the UTF-8 bytes, then the splitmix64 finaliser, all modulo 2**64. It is written here in
plain Python as the definition; the compiled version is tested against it.

Source: Fowler, Noll, Vo (FNV-1a, 64 bit); Steele et al. 2014 (splitmix64).
"""

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
MASK = 0xFFFFFFFFFFFFFFFF


def mix(key: int) -> int:
    """Finalise a 64-bit key: a bijection that spreads every input bit.

    Args:
        key: 0 .. 2**64 - 1.

    Returns:
        0 .. 2**64 - 1.
    """
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & MASK
    return key ^ (key >> 31)


def text_key(text: str) -> int:
    """The 64-bit key of a text value."""
    key = FNV_OFFSET
    for byte in text.encode():
        key = ((key ^ byte) * FNV_PRIME) & MASK
    return mix(key)


def bucket(key: int, num_buckets: int) -> int:
    """The bucket of a key under encoding "hash", 0 .. num_buckets - 1."""
    return mix(key) % num_buckets
