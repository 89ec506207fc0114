"""Traces and metrics reach an OTLP collector, whose messages are read by OpenTelemetry's own definitions."""

from __future__ import annotations

import queue
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from conftest import encode, make_image
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from test_serve import COMMAND, server

from grmp_edge.bundle import Bundle


def test_a_request_is_traced_and_counted(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    received: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    for name, value in (
        ("EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}"),
        ("EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("SERVICE_NAME", "gate"),
        ("METRIC_EXPORT_INTERVAL", "500"),
        ("BSP_SCHEDULE_DELAY", "100"),
    ):
        monkeypatch.setenv(f"OTEL_{name}", value)
    instrument = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    try:
        with server(tiny_bundle, command=[instrument, *COMMAND]) as (at, _):
            picture = encode(make_image(), "PNG")
            assert httpx.post(f"{at}/score", content=picture, trust_env=False, timeout=60).is_success
            traced = counted = False
            while not (traced and counted):
                path, data = received.get(timeout=30)
                if path == "/v1/traces":
                    traces = ExportTraceServiceRequest.FromString(data).resource_spans
                    names = {span.name for own in traces for part in own.scope_spans for span in part.spans}
                    services = {own.value.string_value for own in traces[0].resource.attributes}
                    traced = traced or ("POST /score" in names and "gate" in services)
                else:
                    metrics = ExportMetricsServiceRequest.FromString(data).resource_metrics
                    kinds = {m.name for own in metrics for part in own.scope_metrics for m in part.metrics}
                    counted = counted or any(kind.startswith("http.server") for kind in kinds)
    finally:
        collector.shutdown()
        collector.server_close()
