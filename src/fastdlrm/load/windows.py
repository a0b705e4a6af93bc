"""Windows of rows that queries are made of."""


def window(start: int, count: int, num_rows: int) -> list[tuple[int, int]]:
    """Ranges of rows that together are `count` rows from `start` on, going round."""
    ranges = []
    while count:
        stop = min(start + count, num_rows)
        ranges.append((start, stop))
        count -= stop - start
        start = 0
    return ranges
