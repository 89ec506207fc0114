"""What each fault costs: seconds to recover, frames lost, false scores, memory and threads.

    python tests/field/faults.py [--quick] [--only NAME,...] [--json FILE] [--markdown FILE]

Real parts: GStreamer's RTSP server, mosquitto, a small file system, this machine's network. Each fault has a
process of its own, with two cameras: the one it happens to, and another that must not notice. The truth is
the time and the number drawn into each picture by the camera. Exit code 1 where something did not recover, a
picture that no camera took (or that was scored already) was scored, the other camera lost frames, or threads
or descriptors stayed behind.

Needs the Debian packages of the tests marked `system`; as root also a network namespace (`ip`), a mount and
a C compiler, and without them it says what it left out or did instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from fault_places import CLOCK_FILE, clock_environment, namespace, set_clock, small_disk
from parts import FPS, Watcher, bundle_or_tiny, usage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from helpers_live import Proxy, free_port, rtsp_server

from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.live import Live
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.sinks.make import make_sink
from grmp_edge.runtime.sinks.queue import QueuedSink


class NotHere(Exception):  # noqa: N818 - nothing failed
    """This machine cannot make the fault."""


@dataclass
class Result:
    """One row of the table."""

    fault: str
    lasted_s: float = 0.0
    recovered_s: float | None = None  # from the fault's end to the first score (or message) after it
    lost: int = 0  # frames drawn and not scored, from the fault's beginning to the recovery
    other_lost: int = 0  # of the camera that nothing happened to
    false: int = 0  # scored though synthetic, or scored before
    torn: int = 0  # scored though damaged so much that the drawn time cannot be read
    rss_mb: tuple[float, float] = (0.0, 0.0)
    threads: tuple[int, int] = (0, 0)
    descriptors: tuple[int, int] = (0, 0)
    note: str = ""
    problems: list[str] = field(default_factory=list)


class Scene:
    """Two cameras being scored; the fault happens in :meth:`fault`'s block."""

    def __init__(self, stack: contextlib.ExitStack, result: Result, source: str, quick: bool) -> None:
        self.result, self.quick = result, quick
        scorer = stack.enter_context(
            Scorer.open(stack.enter_context(bundle_or_tiny(None)), provider="cpu", threads=1)
        )
        port = free_port()
        stack.enter_context(rtsp_server(port))
        timeout = 3.0 if quick else 10.0  # 10: the default
        cameras = [
            CameraConfig(source, "victim", open_timeout_s=timeout, read_timeout_s=timeout),
            # `every`: what it loses is lost by the fault, and not by the load on this machine.
            CameraConfig(f"rtsp://127.0.0.1:{port}/live", "other", policy="every", queue=200),
        ]
        self.timeout_s = timeout
        self.watcher = stack.enter_context(Watcher(Live(scorer, cameras)))
        for name in ("victim", "other"):
            if self.watcher.wait(name, 3 * FPS) is None:
                raise AssertionError(f"{name} gives no scores")

    @contextlib.contextmanager
    def fault(self, settle_s: float = 5.0) -> Iterator[None]:
        """Measures round the block, which makes the fault and ends it."""
        before, began = usage(), time.monotonic()
        seen = self.watcher.seen
        false = {name: (s.repeated + s.synthetic, s.torn) for name, s in seen.items()}
        yield
        ended = time.monotonic()
        back = self.watcher.wait("victim", 1, 90.0, drawn_after=ended)
        time.sleep(settle_s)
        result, until = self.result, time.monotonic() - 1.0
        after = usage()
        result.lasted_s = ended - began
        result.recovered_s = None if back is None else back - ended
        result.lost = seen["victim"].lost(began, until)
        result.other_lost = seen["other"].lost(began, until)
        result.false = sum(s.repeated + s.synthetic - false[name][0] for name, s in seen.items())
        result.torn = sum(s.torn - false[name][1] for name, s in seen.items())
        result.rss_mb = (before.rss_mb, after.rss_mb)
        result.threads = (before.threads, after.threads)
        result.descriptors = (before.descriptors, after.descriptors)


def _local(stack: contextlib.ExitStack, *arguments: int) -> tuple[str, subprocess.Popen[str], int]:
    port = free_port()
    server = stack.enter_context(rtsp_server(port, *arguments))
    return f"rtsp://127.0.0.1:{port}/live", server, port


def server_killed(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """The camera's server is killed, and started again after 3 s."""
    first = stack.enter_context(contextlib.ExitStack())
    source, _, port = _local(first)
    scene = Scene(stack, result, source, quick)
    with scene.fault():
        first.close()
        time.sleep(3.0)
        stack.enter_context(rtsp_server(port))
    result.note = "recovery: the pause before the next attempt, the connection, the first key frame"


def server_stopped(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """The server's process stands still (SIGSTOP) for longer than the read timeout, then goes on."""
    source, server, _ = _local(stack)
    scene = Scene(stack, result, source, quick)
    with scene.fault():
        server.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * scene.timeout_s)
        server.send_signal(signal.SIGCONT)


def _cable(result: Result, stack: contextlib.ExitStack, quick: bool, share: float) -> None:
    place = stack.enter_context(namespace())
    if place is None:
        source, _, port = _local(stack)
        proxy = Proxy(port)
        stack.callback(proxy.close)
        scene = Scene(stack, result, source.replace(str(port), str(proxy.port)), quick)
        off: Callable[[], None] = proxy.flow.clear
        on: Callable[[], None] = proxy.flow.set
        result.note = "by a proxy that passes nothing on: no network namespace here"
    else:
        port = free_port()
        stack.enter_context(
            rtsp_server(port, 384, 288, FPS, 0, place.address, prefix=["ip", "netns", "exec", place.name])
        )
        scene = Scene(stack, result, f"rtsp://{place.address}:{port}/live", quick)
        off, on = place.down, place.up
        result.note = "the link of a network namespace set down"
    with scene.fault():
        off()
        time.sleep(share * scene.timeout_s)
        on()


def network_short(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """The cable is out for half the read timeout: the connection survives."""
    _cable(result, stack, quick, 0.5)


def network_long(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """The cable is out for twice the read timeout."""
    _cable(result, stack, quick, 2.0)


def corrupted(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """Five bytes are changed in each piece of more than 500 that comes, for 5 s."""
    source, _, port = _local(stack)
    proxy = Proxy(port)
    stack.callback(proxy.close)
    scene = Scene(stack, result, source.replace(str(port), str(proxy.port)), quick)
    with scene.fault():
        proxy.damage = True
        time.sleep(5.0)
        proxy.damage = False
    result.note = "bytes changed by a proxy"


def resized(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """The camera changes its frame size within the running stream, twice."""
    source, server, _ = _local(stack)
    scene = Scene(stack, result, source, quick)
    with scene.fault():
        for _ in range(2):
            server.send_signal(signal.SIGUSR1)
            time.sleep(3.0)


def _with_sinks(result: Result, stack: contextlib.ExitStack, quick: bool, sinks: list[QueuedSink]) -> Scene:
    source, _, _ = _local(stack)
    scene = Scene(stack, result, source, quick)
    scene.watcher.sinks.extend(sinks)
    return scene


def disk_full(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """The disk of a JSON lines file, a CSV file and a database is full for 10 s."""
    folder = stack.enter_context(small_disk())
    if folder is None:
        raise NotHere("a small file system can be mounted by root alone")
    sinks = [make_sink({"kind": kind, "path": folder / f"a.{kind}"}) for kind in ("jsonl", "csv", "sqlite")]
    scene = _with_sinks(result, stack, quick, sinks)
    time.sleep(2.0)
    filler = folder / "filler"
    with scene.fault():
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 512)
        time.sleep(10.0)
        full = [sink.stats() for sink in sinks]
        filler.unlink()
        _recovers(result, sinks, [stats.written for stats in full])
    scene.watcher.sinks.clear()
    told = [sink.close() for sink in sinks]
    result.problems += [f"{s.name} lost nothing: the disk was not full" for s in full if not s.failed]
    kept = [
        sum(1 for line in (folder / "a.jsonl").read_text().splitlines() if json.loads(line)),
        len((folder / "a.csv").read_text().splitlines()) - 1,
        _rows(folder / "a.sqlite"),
    ]
    for stats, rows in zip(told, kept, strict=True):
        if rows != stats.written:
            result.problems.append(f"{stats.name} holds {rows} rows and says {stats.written}")
    result.note = "files whole; events lost and counted: " + ", ".join(f"{s.name} {s.failed}" for s in told)


def _rows(path: Path) -> int:
    import sqlite3

    with contextlib.closing(sqlite3.connect(path)) as base:
        if base.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            return -1
        return int(base.execute("SELECT count(*) FROM events").fetchone()[0])


def _recovers(result: Result, sinks: list[QueuedSink], written: list[int], seconds: float = 60.0) -> None:
    """Wait until every sink has written more than before; how long it took goes into the note."""
    began = time.monotonic()
    while any(s.stats().written <= n for s, n in zip(sinks, written, strict=True)):
        if time.monotonic() - began > seconds:
            result.problems.append("a sink did not recover")
            return
        time.sleep(0.02)
    result.note += f"sink back after {time.monotonic() - began:.1f} s; "


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def broker_down(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """The MQTT broker is killed and back after 5 s."""
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    if not Path(program).exists():
        raise NotHere("no mosquitto")
    port = free_port()
    start = partial(subprocess.Popen, [program, "-p", str(port)], stderr=subprocess.DEVNULL, text=True)
    broker: list[subprocess.Popen[str]] = [start()]
    stack.callback(lambda: _end(broker[-1]))
    sink = make_sink({"kind": "mqtt", "url": f"mqtt://127.0.0.1:{port}", "interval_s": 0.1})
    scene = _with_sinks(result, stack, quick, [sink])
    _recovers(Result(""), [sink], [5])
    with scene.fault():
        _end(broker[-1])
        time.sleep(5.0)
        written = sink.stats().written
        broker.append(start())
        _recovers(result, [sink], [written])
    scene.watcher.sinks.clear()
    stats = sink.close()
    result.note += f"{stats.failed} scores not published, and counted"


_RECEIVER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Hook(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Hook).serve_forever()
"""


def webhook_down(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """A webhook's receiver is gone for 5 s."""
    port = free_port()
    start = partial(subprocess.Popen, [sys.executable, "-c", _RECEIVER, str(port)], text=True)
    server: list[subprocess.Popen[str]] = [start()]
    stack.callback(lambda: _end(server[-1]))
    sink = make_sink({"kind": "webhook", "url": f"http://127.0.0.1:{port}/", "events": ["score"]})
    scene = _with_sinks(result, stack, quick, [sink])
    _recovers(Result(""), [sink], [5])
    with scene.fault():
        _end(server[-1])
        time.sleep(5.0)
        written = sink.stats().written
        server.append(start())
        _recovers(result, [sink], [written])
    scene.watcher.sinks.clear()
    stats = sink.close()
    result.note += f"{stats.failed} events given up, {stats.lost} lost"


def clock_step(result: Result, stack: contextlib.ExitStack, quick: bool) -> None:
    """The wall clock is set back by a day, then forward by two."""
    if CLOCK_FILE not in os.environ:
        raise NotHere("no C compiler for the shim that steps the clock of one process")
    source, _, _ = _local(stack)
    scene = Scene(stack, result, source, quick)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    sink = make_sink({"kind": "jsonl", "path": Path(folder) / "a"})
    scene.watcher.sinks.append(sink)
    true = time.time() - time.monotonic()
    with scene.fault():
        for step in (-86400, 86400):
            set_clock(step)
            time.sleep(3.0)
            off = time.time() - time.monotonic() - true
            if abs(off - step) > 5.0:
                result.problems.append(f"the clock is off by {off:.0f} s instead of {step}")
        set_clock(0)
    scene.watcher.sinks.clear()
    sink.close()
    records = [json.loads(line) for line in (Path(folder) / "a").read_text().splitlines()]
    ages = [record["age_ms"] for record in records if record["event"] == "score"]
    if not ages or not 0 <= min(ages) <= max(ages) < 60_000:
        result.problems.append(f"ages from {min(ages)} to {max(ages)} ms")
    result.note = f"ages of {len(ages)} scores between {min(ages):.0f} and {max(ages):.0f} ms throughout"


FAULTS: dict[str, Callable[[Result, contextlib.ExitStack, bool], None]] = {
    made.__name__: made
    for made in (
        server_killed, server_stopped, network_short, network_long, corrupted, resized, disk_full,
        broker_down, webhook_down, clock_step,
    )
}  # fmt: skip


def one(name: str, quick: bool) -> Result:
    """Make one fault, in this process."""
    result = Result(name)
    try:
        with contextlib.ExitStack() as stack:
            FAULTS[name](result, stack, quick)
    except NotHere as error:
        result.note = f"not run: {error}"
        return result
    if result.recovered_s is None:
        result.problems.append("not recovered")
    if result.false:
        result.problems.append(f"{result.false} false scores")
    if result.other_lost:
        result.problems.append(f"the other camera lost {result.other_lost} frames")
    if result.threads[1] > result.threads[0]:
        result.problems.append(f"{result.threads[1] - result.threads[0]} threads more")
    if result.descriptors[1] > result.descriptors[0] + 1:  # a database opens one more when it is full
        result.problems.append(f"{result.descriptors[1] - result.descriptors[0]} descriptors more")
    return result


def table(results: list[Result]) -> str:
    """Markdown."""
    lines = [
        "| fault | lasted s | recovered after s | frames lost | of the other camera | false scores "
        "| RSS MB | threads | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        words = (FAULTS[r.fault].__doc__ or "").strip().rstrip(".")
        if r.note.startswith("not run"):
            lines.append(f"| {words} | - | - | - | - | - | - | - | {r.note} |")
            continue
        back = "never" if r.recovered_s is None else f"{r.recovered_s:.1f}"
        note = "; ".join(part.strip("; ") for part in (r.note, *r.problems) if part)
        if r.torn:
            note = f"{r.torn} damaged pictures scored; {note}".rstrip("; ")
        lines.append(
            f"| {words} | {r.lasted_s:.1f} | {back} | {r.lost} | {r.other_lost} | {r.false} "
            f"| {r.rss_mb[0]:.0f} -> {r.rss_mb[1]:.0f} | {r.threads[0]} -> {r.threads[1]} | {note} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Make the faults one after the other; 0 if all is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="read timeouts of 3 s instead of 10 s")
    parser.add_argument("--only", help=f"some of {','.join(FAULTS)}")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", choices=tuple(FAULTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(one(options.one, options.quick))), flush=True)
        return 0
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only.split(",") if options.only else FAULTS:
            command = [sys.executable, __file__, "--one", name, *(["--quick"] if options.quick else [])]
            more = clock_environment(Path(folder)) if name == "clock_step" else {}
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=300, env={**os.environ, **more}
            )  # fmt: skip
            if done.returncode:
                why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                results.append(Result(name, problems=[why]))
            else:
                results.append(Result(**json.loads(done.stdout.splitlines()[-1])))
            print(table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    text = table(results)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    bad = [result for result in results if result.problems]
    for result in bad:
        print(f"{result.fault}: {'; '.join(result.problems)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
