"""What small files that decode to gigabytes cost: the server, alone and in batches, and a snapshot camera.

    python tests/field/hostile.py [FILE...]

The files are those of tests/helpers_hostile.py, some as large as is just allowed, and those that are named.
Prints what the server answers to each, and the peaks. Exit code 1: a hostile picture moved a peak by more
than 300 MB, or an answer is none of 200, 413, 415 and 422. (`watch` holds three or four frames of a camera,
of 140 MB each where they have 47 megapixels: that is told apart.)
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from parts import bundle_or_tiny

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import encode, make_image
from helpers_hostile import hostile, png
from test_serve import peak_memory, server

from grmp_edge.bundle import Bundle

MOST = 300e6  # bytes
HASTE = "max_fps = 20\nbackoff_min_s = 0.01\nbackoff_max_s = 0.02\n"
GOOD = encode(make_image(seed=1), "JPEG")


@contextmanager
def snapshots(pictures: Sequence[bytes]) -> Iterator[tuple[str, threading.Event]]:
    """A camera that gives one after the other, and the event that they have all been fetched.

    Each comes three times: a camera that is opened again only looks at the first answer's type.
    """
    rest, over = iter([data for data in pictures for _ in range(3)]), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = next(rest, None)
            if data is None:
                over.set()
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.end_headers()
            self.wfile.write(data or GOOD)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}/snapshot", over
        http.shutdown()


def ask(bundle: Bundle, corpus: dict[str, bytes]) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """By name, the status and by how much the server's peak rose; the peak's rise by way."""
    answers, rises = {}, {}
    with server(bundle) as (at, process), httpx.Client(base_url=at, trust_env=False, timeout=120) as client:

        def batch(data: Sequence[bytes]) -> None:
            client.post("/batch", files=[("a", (f"{i}", one)) for i, one in enumerate(data)])

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(batch, [[GOOD]] * 8))  # so that every decoder is warm
            start = peak_memory(process.pid)
            for name, data in corpus.items():
                before = peak_memory(process.pid)
                status = client.post("/score", content=data).status_code
                answers[name] = status, peak_memory(process.pid) - before
            rises["/score, one at a time"] = peak_memory(process.pid) - start
            list(threads.map(lambda data: client.post("/score", content=data), corpus.values()))
            rises["/score, four at a time"] = peak_memory(process.pid) - start
            all_of_them = list(corpus.values())
            list(threads.map(batch, [all_of_them[i : i + 32] for i in range(0, len(corpus), 32)] * 2))
            rises["/batch, two to four at a time"] = peak_memory(process.pid) - start
        assert client.post("/score", content=GOOD).status_code == 200
    return answers, rises


def watch(bundle: Bundle, corpus: dict[str, bytes]) -> int:
    """By how much the peak of `watch` rises above that with harmless pictures."""
    peaks = []
    for pictures in ([GOOD] * 20, [*corpus.values(), GOOD]):
        with snapshots(pictures) as (url, over), tempfile.TemporaryDirectory() as folder:
            streams = Path(folder) / "streams.toml"
            streams.write_text(
                f'[[camera]]\nsource = "{url}"\nmax_fps = 20\nbackoff_min_s = 0.01\nbackoff_max_s = 0.02\n'
            )
            command = [sys.executable, "-m", "grmp_edge", "watch", str(bundle.path)]
            command += ["--streams", str(streams), "--memory", "none", "--json"]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                fetched = over.wait(120)
                text = Path(f"/proc/{process.pid}/status").read_text()
                process.kill()
            if not fetched:
                sys.exit("error: watch does not fetch them all")
            peaks.append(int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) << 10)
    return peaks[1] - peaks[0]


def main() -> int:
    allowed = {
        "allowed: jpeg": encode(make_image(6900, 6900), "JPEG", quality=5),
        "allowed: jpeg, progressive": encode(make_image(5500, 5500), "JPEG", quality=5, progressive=True),
        "allowed: png": png(6900, 6900),
        "allowed: png with alpha": png(4500, 4500, 8, 6),
        "allowed: png of 16 bits with alpha": png(3200, 3200, 16, 6),
    }
    named = hostile() | {Path(path).name: Path(path).read_bytes() for path in sys.argv[1:]}
    corpus = named | allowed
    with bundle_or_tiny(None) as path:
        bundle = Bundle.load(path)
        answers, rises = ask(bundle, corpus)
        rises["watch, snapshot camera"] = watch(bundle, named)
        sound = watch(bundle, allowed)
    for name, (status, rise) in answers.items():
        print(f"| {name} | {len(corpus[name])} bytes | {status} | {rise / 1e6:+.0f} MB |")
    for way, rise in rises.items():
        print(f"{way}: peak {rise / 1e6:+.0f} MB")
    print(f"watch, snapshot camera, allowed pictures: peak {sound / 1e6:+.0f} MB")
    wrong = [name for name, (status, _) in answers.items() if status not in (200, 413, 415, 422)]
    return int(bool(wrong) or max(rises.values()) > MOST)


if __name__ == "__main__":
    sys.exit(main())
