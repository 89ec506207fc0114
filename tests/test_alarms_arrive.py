"""A camera that is killed reaches a webhook, a broker and the page, and so does its return."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import until
from helpers_dashboard import running
from helpers_live import free_port, rtsp_server
from test_mqtt import Listener, broker

from grmp_edge.bundle import Bundle

pytestmark = pytest.mark.system


class Hook(BaseHTTPRequestHandler):
    got: ClassVar[list[Any]] = []

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()


def test_a_killed_camera_and_its_return(tiny_bundle: Bundle, tmp_path: Path) -> None:
    Hook.got = []
    hook = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    camera, mqtt = free_port(), free_port()
    streams = tmp_path / "streams.toml"
    streams.write_text(
        f'[[camera]]\nname = "gate"\nsource = "rtsp://127.0.0.1:{camera}/live"\n'
        "read_timeout_s = 5\nbackoff_max_s = 1\n"
        f'[[sink]]\nkind = "webhook"\nurl = "http://127.0.0.1:{hook.server_port}/"\n'
        f'[[sink]]\nkind = "mqtt"\nurl = "mqtt://me:SECRET@127.0.0.1:{mqtt}"\nnode = "edge1"\n'
    )
    state = "grmp-edge/edge1/gate/state"
    try:
        with broker(mqtt, tmp_path):
            ears = Listener(mqtt)

            def told() -> dict[str, Any]:
                heard = ears.of(state)
                return dict(json.loads(heard[-1])) if heard else {"state": "", "alerts": []}

            server = contextlib.ExitStack()
            server.enter_context(rtsp_server(camera))
            with running("serve", tiny_bundle, "--port", "0", "--streams", streams) as served:

                def everywhere(alerts: list[str]) -> bool:
                    return (
                        bool(Hook.got)
                        and Hook.got[-1]["raised"] is bool(alerts)
                        and told()["alerts"] == alerts == served.cameras()["gate"]["alerts"]
                    )

                until(lambda: told()["state"] == "running")
                assert not Hook.got
                began = time.monotonic()
                server.close()  # kills it
                until(lambda: everywhere(["offline"]))
                raised = time.monotonic() - began
                with rtsp_server(camera):
                    began = time.monotonic()
                    until(lambda: everywhere([]) and told()["state"] == "running")
                    cleared = time.monotonic() - began
                print(f"raised everywhere after {raised:.1f} s, cleared {cleared:.1f} s after its return")
                assert [(hit["kind"], hit["raised"], hit["topic"]) for hit in Hook.got] == [
                    ("offline", True, "SignalLoss"), ("offline", False, "SignalLoss"),
                ]  # fmt: skip
                # When the watch itself is killed, the broker says that nobody watches; the next watch says
                # what is true then.
                served.process.kill()
                until(lambda: ears.of("grmp-edge/edge1/status")[-1] == b"offline")
            with running("serve", tiny_bundle, "--port", "0", "--streams", streams):
                until(lambda: told()["alerts"] == ["offline"])
                assert ears.of("grmp-edge/edge1/status")[-1] == b"online"
            ears.close()
    finally:
        hook.shutdown()
        hook.server_close()
