"""A real server on a real socket, asked by real clients."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from conftest import encode, make_image, tiny_score
from helpers_hostile import hostile, png
from helpers_live import free_port
from helpers_process import Served
from prometheus_client.parser import text_string_to_metric_families
from test_damage import JPEGS, half

from grmp_edge.bundle import Bundle
from grmp_edge.errors import UsageError
from grmp_edge.runtime.web.guard import ServeConfig
from grmp_edge.runtime.web.prometheus import RequestMetrics
from grmp_edge.score import Score

COMMAND = [sys.executable, "-m", "grmp_edge", "serve"]


@contextlib.contextmanager
def server(
    bundle: Bundle, *options: str, token: str = "", command: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[str] | Served]]:
    """A running server: its address and its process, a new interpreter where a ``command`` is given."""
    variables, words = {"GRMP_EDGE_TOKEN": token}, [str(bundle.path), "--port", "0", *options]
    process: subprocess.Popen[str] | Served
    if command:
        environment = {**os.environ, **variables}
        process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, env=environment)
    else:
        process = Served(["serve", *words], variables)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r" at (http://\S+);", line)
        assert found, line + process.stderr.read()
        yield found.group(1).replace("0.0.0.0", "127.0.0.1"), process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def samples(text: str) -> dict[str, float]:
    """What Prometheus' own parser reads, by name and labels."""
    return {
        f"{sample.name}{json.dumps(sample.labels, sort_keys=True)}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_score_batch_kserve_and_metrics(tiny_bundle: Bundle) -> None:
    one, two = encode(make_image(seed=1), "PNG"), encode(make_image(seed=2), "PNG")
    with (
        server(tiny_bundle) as (at, process),
        httpx.Client(base_url=at, trust_env=False, timeout=60) as client,
    ):
        answer = client.post("/score?camera=gate", content=one)
        assert answer.status_code == 200
        assert answer.json()["value"] == pytest.approx(tiny_score(make_image(seed=1)), abs=1e-5)
        assert (answer.json()["source"], answer.json()["model"]) == ("gate", tiny_bundle.id)
        assert client.post("/score", content=two).json()["source"] == "upload"

        files = [("a", ("1.png", one)), ("b", ("bad.png", one[:80])), ("c", ("2.png", two))]
        results = client.post("/batch?camera=door", files=files).json()["results"]
        assert [result["source"] for result in results] == ["1.png", "bad.png", "2.png"]
        assert results[2]["value"] == pytest.approx(tiny_score(make_image(seed=2)), abs=1e-5)
        assert results[1]["status"] == 422 and "bad.png" in results[1]["error"]
        assert client.post("/batch", content=b"").status_code == 422
        assert client.post("/batch", files=[("a", ("1.png", one))] * 33).status_code == 400

        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        assert client.get("/v2/models/grmp-edge/ready").status_code == 200
        model = client.get("/v2/models/grmp-edge").json()
        assert model["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}
        assert model["versions"] == [tiny_bundle.id]
        assert client.get("/nothing").status_code == 404

        answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = samples(answer.text)
        assert found['grmp_edge_scores_total{"camera": "gate"}'] == 1
        assert found['grmp_edge_scores_total{"camera": "door"}'] == 2
        assert found['grmp_edge_unreadable_total{"camera": "door"}'] == 1
        last = found['grmp_edge_last_score{"camera": "gate"}']
        assert last == pytest.approx(tiny_score(make_image(seed=1)), abs=1e-5)
        assert found['grmp_edge_requests_total{"path": "/score", "status": "200"}'] == 2
        assert found['grmp_edge_request_seconds_count{"path": "/score"}'] == 2
        assert found['grmp_edge_request_seconds_bucket{"le": "+Inf", "path": "/score"}'] == 2
        assert 0 < found['grmp_edge_request_seconds_sum{"path": "/score"}'] < 60

        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None and process.stderr.read() == ""


def family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def peak_memory(pid: int) -> int:
    """The sum of what a server and its decoders held at most, each at its own time."""
    texts = [Path(f"/proc/{one}/status").read_text() for one in family(pid)]
    return sum(int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) for text in texts) << 10


def test_what_is_too_much_is_refused_before_it_costs(tiny_bundle: Bundle) -> None:
    good = encode(make_image(seed=1), "PNG")
    limits = ["--max-mb", "1", "--max-megapixels", "2"]
    with (
        server(tiny_bundle, *limits, command=COMMAND) as (at, process),
        httpx.Client(base_url=at, trust_env=False, timeout=60) as client,
    ):
        client.post("/score", content=good)
        before = peak_memory(process.pid)
        answer = client.post("/score", content=png(30_000, 30_000))
        assert answer.status_code == 413 and "30000 x 30000" in answer.json()["detail"]
        for data, status in (
            (half(JPEGS["baseline"]), 422),
            (b"", 422), (b"text" * 100, 415), (good[:200], 422), (b"\x89PNG\r\n\x1a\n", 415),
            (encode(make_image(1200, 1800), "JPEG"), 413),
        ):  # fmt: skip
            assert client.post("/score", content=data).status_code == status
        assert (
            client.post("/batch", files=[("a", ("b.png", png(30_000, 30_000)))]).json()["results"][0][
                "status"
            ]
            == 413
        )
        assert peak_memory(process.pid) - before < 100 << 20

        assert client.post("/score", content=b"x" * (1 << 20) + b"x").status_code == 413  # by Content-Length
        # In pieces, without a length: refused after the first megabyte, and the connection is cut.
        with contextlib.suppress(httpx.TransportError):
            assert client.post("/score", content=(b"x" * 65536 for _ in range(64))).status_code == 413
        assert httpx.post(f"{at}/score", content=good, trust_env=False).status_code == 200
        found = samples(httpx.get(f"{at}/metrics", trust_env=False).text)
        assert found['grmp_edge_requests_total{"path": "/score", "status": "413"}'] == 4
        assert not [key for key in found if key.startswith("grmp_edge_requests_total") and '"500"' in key]


def test_hostile_pictures_cost_little(tiny_bundle: Bundle) -> None:
    """Whatever a file says of itself, and four at a time: less than 300 MB for all of them, and no 500."""
    good = encode(make_image(seed=1), "PNG")
    with (
        server(tiny_bundle, command=COMMAND) as (at, process),
        httpx.Client(base_url=at, trust_env=False, timeout=60) as client,
    ):
        files = [("a", ("1.png", good))]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: client.post("/batch", files=files), range(8)))  # all decoders are warm
            before = peak_memory(process.pid)
            decoders = family(process.pid)[1:]
            assert len(decoders) == 2
            answers = list(threads.map(lambda data: client.post("/score", content=data), hostile().values()))
            sound = encode(make_image(6000, 6000), "JPEG", quality=5)  # within the limits
            answers += [client.post("/score", content=sound)]
            data = list(hostile().values())
            forms = [[("a", (f"{i}", one)) for i, one in enumerate(part)] for part in (data[:30], data[30:])]
            batches = list(threads.map(lambda files: client.post("/batch", files=files), forms * 2))
            assert peak_memory(process.pid) - before < 300e6
        assert answers.pop().status_code == 200
        by_name = dict(zip(hostile(), answers, strict=True))
        for name in ("jpeg hides one behind FF 00", "tiff with doubled tags", "png of 16 bits with alpha"):
            assert by_name[name].status_code == 413
        results = [result["status"] for batch in batches for result in batch.json()["results"]]
        assert results == [answer.status_code for answer in answers] * 2
        assert {answer.status_code for answer in answers} <= {413, 415, 422}
        assert all(answer.json()["detail"].startswith("upload: ") for answer in answers)

        for decoder in decoders:
            os.kill(decoder, signal.SIGKILL)  # as the system does when memory is short
        assert client.post("/score", content=good).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_too_many_at_once_and_slow_senders(tiny_bundle: Bundle) -> None:
    good = encode(make_image(seed=1), "PNG")
    with (
        server(tiny_bundle, "--concurrency", "2") as (at, _),
        httpx.Client(base_url=at, trust_env=False, timeout=60) as client,
    ):
        port = int(at.rpartition(":")[2])
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for sender in slow:
            sender.sendall(
                f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(good)}\r\n\r\n".encode()
            )
            sender.sendall(good[:10])
        end = time.monotonic() + 20
        while (answer := client.post("/score", content=good)).status_code != 429:
            assert time.monotonic() < end
        assert answer.headers["retry-after"] == "1"
        assert client.get("/v2/health/live").status_code == 200
        for sender in slow:
            sender.sendall(good[10:])
            assert sender.recv(65536).startswith(b"HTTP/1.1 200")
            sender.close()
        statuses = []
        asking = threading.Thread(
            target=lambda: statuses.append(client.post("/score", content=good).status_code)
        )
        asking.start()
        asking.join(20)
        assert statuses == [200]


def test_a_token_is_needed_when_bound_wider(tiny_bundle: Bundle) -> None:
    done = subprocess.run(
        [*COMMAND, str(tiny_bundle.path), "--host", "0.0.0.0", "--port", "0"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "GRMP_EDGE_TOKEN": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert "GRMP_EDGE_TOKEN" in done.stderr
    good = encode(make_image(seed=1), "PNG")
    wide = server(tiny_bundle, "--host", "0.0.0.0", token="long-secret-of-a-server")
    with wide as (at, _), httpx.Client(base_url=at, trust_env=False, timeout=60) as client:
        assert client.post("/score", content=good).status_code == 401
        assert client.get("/metrics").status_code == 401
        wrong = {"Authorization": "Bearer long-secre"}
        assert client.post("/score", content=good, headers=wrong).status_code == 401
        assert client.get("/v2/health/live").status_code == 200
        right = {"Authorization": "Bearer long-secret-of-a-server", "Host": "edge.example"}
        assert client.post("/score", content=good, headers=right).status_code == 200


def test_a_page_that_pretends_to_be_localhost(tiny_bundle: Bundle) -> None:
    with server(tiny_bundle) as (at, _), httpx.Client(base_url=at, trust_env=False, timeout=60) as client:
        for host in ("evil.example:80", "127.0.0.1.evil.example", "127.evil.example:80", "[::2]", ""):
            assert client.get("/metrics", headers={"Host": host}).status_code == 421
        for host in ("localhost", "127.0.0.1:80", "[::1]:80", "LOCALHOST:8080"):
            assert client.get("/metrics", headers={"Host": host}).status_code == 200
        # What a browser says of what a page of another site asks for; a link to here is fine.
        link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        for site in ("cross-site", "same-site", "anything"):
            other = {"Sec-Fetch-Site": site}
            assert client.get("/metrics", headers={**other, "Sec-Fetch-Mode": "no-cors"}).status_code == 403
            assert client.get("/metrics", headers={**other, **link}).status_code == 200
            frame = {**other, **link, "Sec-Fetch-Dest": "iframe"}
            assert client.get("/metrics", headers=frame).status_code == 403
            assert client.post("/score", content=b"x", headers={**other, **link}).status_code == 403
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", at + "0", "http://" + "x" * 999):
            assert client.post("/score", content=b"x", headers={"Origin": origin}).status_code == 403
        for own in ({"Origin": at.upper()}, {"Sec-Fetch-Site": "same-origin"}):
            assert client.post("/score", content=b"x", headers=own).status_code == 415
        assert client.get("/").headers["location"] == "docs"  # no cameras, no page of them
        assert client.get("/readyz").json() == {"ready": True}


def test_a_port_that_is_taken(tiny_bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, str(tiny_bundle.path), "--port", port], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    with pytest.raises(UsageError):
        ServeConfig(port=free_port() + 70_000)


def test_metrics_text_is_what_prometheus_reads() -> None:
    scorer: Any = SimpleNamespace(
        bundle=SimpleNamespace(id="b"), backend=SimpleNamespace(provider="cpu", name="onnxruntime")
    )
    metrics = RequestMetrics(scorer)
    name = 'a "b"\\c\nd'
    for _ in range(3):
        metrics.result(name, Score(0.5, name, "b"))
    for seconds in (0.0004, 0.005, 0.3, 99.0):
        metrics.answered("/score", 200, seconds)
    for index in range(500):
        metrics.result(str(index), Score(0.5, str(index), "b"))
    values = samples(metrics.text())
    assert values[f"grmp_edge_scores_total{json.dumps({'camera': name})}"] == 3
    limits = ("0.001", "0.005", "0.5", "10.0", "+Inf")
    buckets = [values[f'grmp_edge_request_seconds_bucket{{"le": "{le}", "path": "/score"}}'] for le in limits]
    assert buckets == [1, 2, 3, 3, 4]
    assert values['grmp_edge_request_seconds_count{"path": "/score"}'] == 4
    assert values['grmp_edge_request_seconds_sum{"path": "/score"}'] == pytest.approx(99.3054)
    cameras = [key for key in values if key.startswith("grmp_edge_scores_total")]
    assert len(cameras) <= 201
    assert values['grmp_edge_scores_total{"camera": "other"}'] == 500 - 199
    assert metrics.text().endswith("\n")
    assert "_created" not in metrics.text()


def test_metrics_say_what_is_missing(tiny_bundle: Bundle) -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; from grmp_edge.cli import main; main()"
    command = [sys.executable, "-c", code, "serve"]
    with (
        server(tiny_bundle, command=command) as (at, _),
        httpx.Client(base_url=at, trust_env=False, timeout=60) as client,
    ):
        assert client.post("/score", content=encode(make_image(seed=1), "PNG")).status_code == 200
        answer = client.get("/metrics")
        assert answer.status_code == 501
        (line,) = answer.text.splitlines()
        assert "prometheus_client" in line and re.search(r"pip install -e '\S+\[serve\]'$", line)
