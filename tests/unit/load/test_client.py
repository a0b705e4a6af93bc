"""Connections: what is sent again, what is not, and the timer that wakes the sender."""

import asyncio
import time

import pytest

from fastdlrm.load.client import Address, Client
from fastdlrm.load.samples import BROKEN
from fastdlrm.load.timer import Timer

REQUEST = memoryview(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Notes:
    def __init__(self):
        self.sent_at = {}
        self.ends = {}
        self.event = asyncio.Event()

    def sent(self, query, at):
        self.sent_at[query] = at

    def done(self, query, status, at):
        self.ends[query] = status
        self.event.set()

    async def of(self, query):
        while query not in self.ends:
            self.event.clear()
            await asyncio.wait_for(self.event.wait(), 5)
        return self.ends[query]


class Server:
    """Answers what `behave` says to each connection's bytes; counts requests and connections."""

    def __init__(self, behave):
        self.behave = behave
        self.num_requests = 0
        self.num_connections = 0

    async def serve(self, reader, writer):
        self.num_connections += 1
        while await reader.read(65536):
            self.num_requests += 1
            self.behave(self, writer)
        writer.close()


def with_client(behave, work, max_connections=4):
    async def main():
        server = Server(behave)
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        notes = Notes()
        client = Client(Address("127.0.0.1", port, False), notes, max_connections)
        try:
            return await work(client, notes, server, listener)
        finally:
            client.close()
            listener.close()
            await asyncio.sleep(0.05)

    return asyncio.run(main())


def answer(server, writer):
    writer.write(ANSWER)


def test_an_answer_in_pieces_is_one():
    def behave(server, writer):
        writer.write(ANSWER[:20])
        asyncio.get_running_loop().call_later(0.05, writer.write, ANSWER[20:])

    async def work(client, notes, server, listener):
        await client.open(1)
        started = time.perf_counter()
        client.send(0, REQUEST)
        assert await notes.of(0) == 200
        assert time.perf_counter() - started > 0.045

    with_client(behave, work)


def test_a_connection_that_breaks_fails_its_query():
    """Not sent again: the server had it, and may have scored it."""

    def behave(server, writer):
        writer.transport.abort()

    async def work(client, notes, server, listener):
        await client.open(1)
        client.send(7, REQUEST)
        assert await notes.of(7) == BROKEN
        return server.num_requests

    assert with_client(behave, work) == 1


def test_an_answer_that_is_no_http_fails_its_query():
    async def work(client, notes, server, listener):
        await client.open(1)
        client.send(0, REQUEST)
        assert await notes.of(0) == BROKEN

    with_client(lambda server, writer: writer.write(b"what?\r\n\r\n"), work)


def test_what_an_idle_connection_never_carried_is_sent_again():
    """The server closes a connection after a pause, just as the client uses it."""

    def behave(server, writer):
        if server.num_requests == 1:
            writer.transport.abort()
        else:
            writer.write(ANSWER)

    async def work(client, notes, server, listener):
        await client.open(1)
        await asyncio.sleep(1.1)
        client.send(0, REQUEST)
        assert await notes.of(0) == 200
        return server.num_requests

    assert with_client(behave, work) == 2


def test_queries_wait_for_a_connection_when_all_are_taken():
    def behave(server, writer):
        asyncio.get_running_loop().call_later(0.05, writer.write, ANSWER)

    async def work(client, notes, server, listener):
        await client.open(2)
        for query in range(6):
            client.send(query, REQUEST)
        for query in range(6):
            assert await notes.of(query) == 200
        assert server.num_connections == client.most_open == 2
        assert client.num_waited == 4
        assert notes.sent_at[5] - notes.sent_at[0] > 0.09

    with_client(behave, work, max_connections=2)


def test_queries_fail_when_the_server_is_gone():
    async def work(client, notes, server, listener):
        await client.open(1)
        client.send(0, REQUEST)
        await notes.of(0)
        listener.close()
        for query in range(1, 4):
            client.send(query, REQUEST)
        return [await notes.of(query) for query in range(1, 4)]

    def behave(server, writer):
        writer.write(ANSWER) if server.num_requests == 1 else writer.transport.abort()

    assert with_client(behave, work) == [BROKEN] * 3


def test_no_server_is_an_error():
    async def main():
        client = Client(Address("127.0.0.1", 9, False), Notes(), 4)
        with pytest.raises(OSError, match="Connect call failed"):
            await client.open(2)
        client.close()

    asyncio.run(main())


def test_the_timer_calls_when_it_is_time_and_not_before():
    async def main():
        loop = asyncio.get_running_loop()
        called = asyncio.Event()
        at = []

        def call():
            at.append(time.perf_counter())
            called.set()

        timer = Timer(loop, call)
        for delay in (0.02, 0.0005, -1.0):
            called.clear()
            when = time.perf_counter() + delay
            timer.at(when)
            await asyncio.wait_for(called.wait(), 5)
            assert at[-1] >= when
        timer.at(time.perf_counter() + 0.01)
        timer.at(time.perf_counter() + 0.05)  # the earlier one goes
        await asyncio.sleep(0.03)
        assert len(at) == 3
        timer.close()
        await asyncio.sleep(0.05)
        assert len(at) == 3

    asyncio.run(main())


def test_the_timer_without_the_kernels(monkeypatch):
    """As on a system without timers of the kernel: the loop turns for the last 2 ms."""
    monkeypatch.setattr("sys.platform", "other")
    test_the_timer_calls_when_it_is_time_and_not_before()
