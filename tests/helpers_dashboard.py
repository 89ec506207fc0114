"""Cameras to look at, and a running ``serve`` or ``watch --http`` that looks at them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from conftest import make_image, tiny_score
from helpers_process import Served

from grmp_edge.bundle import Bundle

NAME = "<script>window.hacked=1</script>"  # what a camera might be called


def write_video(
    path: Path, levels: tuple[float, float] = (0.9, 1.0), frames: int = 20
) -> tuple[float, float]:
    """A textured clip of 20 frames a second; the lowest and highest score of its frames, worked out here."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (320, 180))
    base = make_image(180, 320, seed=3)
    for level in np.linspace(0.9, 1.0, frames):
        writer.write((base * level).astype(np.uint8))
    writer.release()
    video, scores = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        scores.append(tiny_score(np.asarray(read[1], np.uint8)[:, :, ::-1]))
    assert len(scores) == frames
    return min(scores), max(scores)


@contextlib.contextmanager
def running(command: str, bundle: Bundle | Path, *options: str | Path, token: str = "") -> Iterator[Running]:
    """``serve``, ``watch`` or (of a folder) ``label`` with these options; it has told its address."""
    first = bundle.path if isinstance(bundle, Bundle) else bundle
    threads = ("--threads", "1") if isinstance(bundle, Bundle) else ()
    process = Served([command, str(first), *map(str, options), *threads], {"GRMP_EDGE_TOKEN": token})
    try:
        line = process.stderr.readline()
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found, line + process.stderr.read()
        at = found.group().replace("0.0.0.0", "127.0.0.1")
        with httpx.Client(base_url=at, trust_env=False, timeout=30.0) as client:
            yield Running(at, process, client, line)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


class Running:
    """A process that serves."""

    def __init__(self, at: str, process: Served, client: httpx.Client, line: str) -> None:
        self.at, self.process, self.client, self.line = at, process, client, line

    def cameras(self) -> dict[str, Any]:
        """The state of the cameras by name."""
        return {camera["name"]: camera for camera in self.client.get("/v1/cameras").json()["cameras"]}

    def messages(self, **headers: str) -> Iterator[dict[str, Any]]:
        """What the event stream tells, until the caller has enough."""
        with self.client.stream("GET", "/v1/events", headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert "no-store" in answer.headers["cache-control"]
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "data":
                    yield json.loads(value)


class InThread:
    """An ASGI application on a real socket, in this process."""

    def __init__(self, server: Any, door: Any) -> None:
        self.server = server
        self.port = int(door.getsockname()[1])
        self.thread = threading.Thread(target=server.run, args=([door],), daemon=True)

    def __enter__(self) -> InThread:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def ask(port: int, room: int | None = None) -> socket.socket:
    """A connection that has asked for the events; ``room``: how many bytes it takes without being read."""
    client = socket.socket()
    if room is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    client.settimeout(30)
    client.connect(("127.0.0.1", port))
    client.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client
