"""Clients that connect and say nothing, against a real server: whoever asks is answered all the same."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx
import pytest
from conftest import encode, make_image, until
from fastapi import Request
from starlette.types import Message, Receive, Scope, Send
from test_serve import COMMAND, server

from grmp_edge.bundle import Bundle
from grmp_edge.runtime.web.connections import ConnectionLimits, peer_of
from grmp_edge.runtime.web.guard import Guard, ServeConfig
from grmp_edge.runtime.web.openapi import new_app
from grmp_edge.runtime.web.score_app import listen
from grmp_edge.runtime.web.server import Server, in_background

HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once, whatever the body."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.contextmanager
def serving(
    limits: ConnectionLimits,
    tell: Callable[[str], object] = lambda _: None,
    answered: Callable[[str, int], object] = lambda path, status: None,
) -> Iterator[tuple[str, int]]:
    """A server that answers anything; its address. ``tell``: what it warns of; ``answered``: what it did."""
    config = ServeConfig(port=0, connections=limits)
    guard = Guard(hello, config, lambda path, status, _: answered(path, status))
    server = Server(guard, tell=tell)
    with listen(config) as door, in_background(server, door):
        until(lambda: server.started)
        yield door.getsockname()


def connect(at: tuple[str, int], source: str = "127.0.0.1", data: bytes = HALF) -> socket.socket:
    client = socket.create_connection(at, timeout=20, source_address=(source, 0))
    client.sendall(data)
    return client


def ended(client: socket.socket) -> bool:
    """Whether the server closes it, within the socket's timeout."""
    with contextlib.suppress(ConnectionError):
        return client.recv(1 << 16) == b""
    return True


def answered(at: tuple[str, int], source: str = "127.0.0.1") -> bool:
    with connect(at, source, HALF + b"Connection: close\r\n\r\n") as client:
        return client.recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HALF,
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he",  # the second of two
        # A body that nobody reads, and that never ends.
        b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nxx",
    ],
)
def test_half_a_request_ends_in_time(data: bytes) -> None:
    with serving(ConnectionLimits(header_s=0.4)) as at, connect(at, data=data) as client:
        client.settimeout(0.1)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while True:  # trickling does not help
                try:
                    if not client.recv(1 << 16):
                        break
                except TimeoutError:
                    client.sendall(b"x")
                assert time.monotonic() - began < 20
        assert answered(at)


def test_the_silent_make_room_and_those_at_work_do_not() -> None:
    with serving(ConnectionLimits(of_peer=8, most=16, header_s=60)) as at:
        silent = [connect(at, "127.0.0.2") for _ in range(30)]
        assert all(ended(client) for client in silent[:22])  # the oldest go
        assert answered(at, "127.0.0.2") and answered(at)
        others = [connect(at, f"127.0.1.{number}") for number in range(30)]  # each another peer
        assert answered(at, "127.0.0.3")
        for client in (*silent, *others):
            client.close()


def test_who_leaves_in_the_middle_of_a_body_is_no_error() -> None:
    """uvicorn would log a traceback of each, and anybody may send a body to the login."""
    app, answers = new_app("tried"), list[Message]()

    @app.post("/")
    async def take(request: Request) -> None:
        await request.body()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(app(scope, receive, send))
    assert answers[0]["status"] == 499


def test_many_half_requests_and_few_descriptors(tiny_bundle: Bundle) -> None:
    """A thousand of them, and a server that may have 200 descriptors: it scores, and says nothing."""
    good = encode(make_image(seed=1), "PNG")
    command = ["bash", "-c", 'ulimit -n 200; exec "$@"', "limited", *COMMAND]
    with server(tiny_bundle, command=command) as (address, process):
        at = ("127.0.0.1", int(address.rpartition(":")[2]))
        with contextlib.ExitStack() as stack:
            for number in range(1000):
                # Two hundred peers with five each, so that the limit of a single one does not help.
                stack.enter_context(connect(at, f"127.0.2.{number % 200 + 1}"))
            with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
                assert client.post("/score", content=good).status_code == 200
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None and process.stderr.read() == ""


def test_a_lack_of_descriptors_is_told_once() -> None:
    code = """
import resource, socket, sys, time
sys.path.insert(0, "tests")
from test_connections import ConnectionLimits, serving
said = []
with serving(ConnectionLimits(), said.append) as at:
    clients = [socket.socket() for _ in range(40)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (clients[-1].fileno() + 3, hard))
    for client in clients:
        client.connect(at)
    end = time.monotonic() + 20
    while not said and time.monotonic() < end:
        time.sleep(0.02)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    clients[-1].sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    print(clients[-1].recv(99)[:15], said)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.stderr == "" and done.stdout.startswith("b'HTTP/1.1 200 OK' ['no connection can be taken")
    assert done.stdout.count("no connection can be taken") == 1 and "LimitNOFILE" in done.stdout


def test_descriptors_bound_the_connections() -> None:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert ConnectionLimits(most=10**9).room == soft // 2
    assert replace(ConnectionLimits(), most=3).room == 3


def test_peers() -> None:
    assert peer_of("10.0.0.1") == peer_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert peer_of("2001:db8::1") == peer_of("2001:db8::ffff:2%eth0") != peer_of("2001:db8:0:1::1")
    assert peer_of("testclient") == "testclient"
