"""A short run of the fuzzer of requests, from a fixed seed."""

import pytest

from tests.fuzz.wire import READERS, fuzz


@pytest.mark.slow
def test_damaged_requests_are_request_errors() -> None:
    counts = fuzz(seconds=20, seed=20)
    for target in READERS:
        assert counts[target] > counts[f"{target} accepted"] > 0
