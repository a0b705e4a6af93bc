"""Messages: their bounds hold for the longest, and errors are cut."""

import socket

import pytest

from fastdlrm.errors import ExportError, ServeError
from fastdlrm.serve.messages import (
    MAX_ERROR,
    Done,
    Problem,
    Ready,
    Work,
    encode,
    encode_within,
    from_worker,
    make_pair,
    message_bytes,
    problem_of,
    to_worker,
)


@pytest.mark.parametrize("rows", [1, 7, 256, 4096])
def test_the_longest_messages_fit(rows):
    longest = message_bytes(rows)
    front, back = make_pair(longest)
    with front, back:
        front.setblocking(False)
        work = Work([(2**62, 2**31, 2**31, 2**31)] * rows)
        done = Done(b"1234" * rows, {}, 2**62, 2**62, 2**62)
        for sender, receiver, message, decode in (
            (front, back, work, to_worker),
            (back, front, done, from_worker),
        ):
            content = encode(message)
            assert len(content) <= longest
            assert sender.send(content) == len(content)
            assert decode(receiver.recv(longest)) == message


def test_messages_keep_apart_and_an_end_is_seen():
    front, back = make_pair(1000)
    with back:
        front.send(b"a")
        front.send(b"bc")
        front.close()
        assert [back.recv(100) for _ in range(3)] == [b"a", b"bc", b""]


def test_messages_longer_than_the_system_allows_are_refused():
    with pytest.raises(ServeError, match=r"lower batching\.max_batch_rows, or raise net\.core"):
        make_pair(2**30)


def test_a_system_without_such_sockets_is_named(monkeypatch):
    monkeypatch.delattr(socket, "SOCK_SEQPACKET")
    with pytest.raises(ServeError, match="SOCK_SEQPACKET, which Linux has"):
        make_pair(1000)


def test_an_error_is_cut():
    problem = problem_of(ExportError("x" * 10_000), "loading: ")
    assert problem.kind == "ExportError"
    assert problem.text == "loading: " + "x" * (MAX_ERROR - 9)


def test_errors_of_all_parts_are_cut_until_they_fit():
    longest = message_bytes(256)
    problems = {index: Problem("ServeError", "é" * MAX_ERROR) for index in range(256)}
    content = encode_within(Done(b"", problems, 0, 0, 0), longest)
    assert 0.9 * longest < len(content) <= longest
    found = from_worker(content).problems
    assert found.keys() == problems.keys()
    assert all(p.text == "é" * len(p.text) and len(p.text) > 70 for p in found.values())


def test_examples_that_do_not_fit_are_left_out():
    ready = Ready([(1, 0.5)], [{"text": "x" * 20_000}] * 8)
    found = from_worker(encode_within(ready, message_bytes(64)))
    assert found == Ready([(1, 0.5)], ready.examples[:1])
