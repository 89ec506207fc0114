"""Against a real broker."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paho.mqtt.client as mqtt
import pytest
from conftest import until
from helpers_live import SYSTEM, free_port
from paho.mqtt.enums import CallbackAPIVersion
from test_sinks import LOST, alert_event, put, score_event

from grmp_edge.runtime.sinks.make import make_sink
from grmp_edge.runtime.sinks.mqtt import MqttWriter
from grmp_edge.runtime.sinks.queue import EarlierLostError, Message, to_record

pytestmark = pytest.mark.system


@contextlib.contextmanager
def broker(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    assert Path(program).exists(), f"mosquitto is not installed; {SYSTEM}"
    passwords = folder / "passwords"
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", passwords, "me", "SECRET"], check=True, capture_output=True
    )
    passwords.chmod(0o644)
    settings = folder / "mosquitto.conf"
    # Started by root it would become a user who cannot read this folder.
    settings.write_text(
        f"user root\nlistener {port} 127.0.0.1\npassword_file {passwords}\nallow_anonymous false\n"
    )
    process = subprocess.Popen([program, "-c", settings], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        while not (line := process.stdout.readline()).rstrip().endswith(b" running"):
            assert line, "the broker does not start"
        yield process
    finally:
        process.kill()
        process.communicate()


class Listener:
    """Another client, with all it has heard: topic, retained, content."""

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[str, bool, bytes | bytearray]] = []
        self.subscribed = threading.Event()
        self.client: Any = mqtt.Client(CallbackAPIVersion.VERSION2)
        self.client.username_pw_set("me", "SECRET")
        self.client.on_connect = lambda client, *_: client.subscribe("#")
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = lambda client, data, m: self.heard.append((m.topic, m.retain, m.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.subscribed.wait(20)

    def of(self, topic: str) -> list[bytes | bytearray]:
        return [payload for name, _, payload in list(self.heard) if name == topic]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_scores_alerts_discovery_and_the_last_will(tmp_path: Path) -> None:
    port = free_port()
    url = f"mqtt://me:SECRET@127.0.0.1:{port}"
    with broker(port, tmp_path):
        ears = Listener(port)
        sink = make_sink({"kind": "mqtt", "url": url, "node": "edge1", "interval_s": 0.0})
        until(lambda: ears.of("grmp-edge/edge1/status") == [b"online"])
        put(sink, LOST, score_event(1), alert_event(2))
        until(lambda: bool(ears.of("grmp-edge/edge1/gate/image")))
        device = "homeassistant/device/edge1_gate/config"
        until(lambda: bool(ears.of(device)))
        assert json.loads(ears.of("grmp-edge/edge1/gate/score")[0])["frame"] == 1
        assert json.loads(ears.of("grmp-edge/edge1/gate/alert")[0])["raised"] is True
        state = json.loads(ears.of("grmp-edge/edge1/gate/state")[-1])
        assert (state["state"], state["alerts"], state["severity"]) == ("restarting", ["low"], "warning")
        picture = cv2.imdecode(np.frombuffer(ears.of("grmp-edge/edge1/gate/image")[0], np.uint8), 1)
        assert picture is not None and picture.shape == (48, 64, 3)
        config = json.loads(ears.of(device)[0])
        assert config["components"]["score"]["state_topic"] == "grmp-edge/edge1/gate/score"
        # Another sensor, once the model names causes.
        assert "cause" not in config["components"]
        named = score_event(3)
        named = replace(named, score=replace(named.score, causes={"blur": 0.9}))
        put(sink, named)
        until(lambda: len(ears.of(device)) == 2 and len(ears.of("grmp-edge/edge1/gate/score")) == 2)
        assert json.loads(ears.of("grmp-edge/edge1/gate/score")[1])["cause"] == "blur"
        config = json.loads(ears.of(device)[1])["components"]["cause"]
        assert (config["state_topic"], config["unique_id"]) == (
            "grmp-edge/edge1/gate/score",
            "edge1_gate_cause",
        )

        late = Listener(port)  # who comes later hears what is retained
        until(lambda: len(late.heard) >= 5)
        assert {(topic, kept) for topic, kept, _ in late.heard} == {
            ("grmp-edge/edge1/status", True), ("grmp-edge/edge1/gate/state", True),
            ("grmp-edge/edge1/gate/image", True), (device, True), ("homeassistant/device/edge1/config", True),
        }  # fmt: skip

        # The alert is over: the retained state says so. Home Assistant starts: all is said again.
        put(sink, alert_event(4, raised=False))
        until(lambda: json.loads(ears.of("grmp-edge/edge1/gate/state")[-1])["alerts"] == [])
        said = len(ears.of(device)), len(ears.of("grmp-edge/edge1/gate/state"))
        late.client.publish("homeassistant/status", b"online")
        until(lambda: len(ears.of(device)) > said[0] and len(ears.of("grmp-edge/edge1/gate/state")) > said[1])
        late.close()

        stats = sink.close()
        assert (stats.written, stats.failed, stats.lost) == (5, 0, 0)
        until(lambda: ears.of("grmp-edge/edge1/status") == [b"online", b"offline"])
        assert not any(b"SECRET" in payload for _, _, payload in ears.heard)

        code = (
            "import signal; from grmp_edge.runtime.sinks.mqtt import MqttWriter\n"
            f"writer = MqttWriter({url!r}, node='edge2'); signal.pause()"
        )
        process = subprocess.Popen([sys.executable, "-c", code])
        until(lambda: ears.of("grmp-edge/edge2/status") == [b"online"])
        process.kill()
        process.wait()
        until(lambda: ears.of("grmp-edge/edge2/status") == [b"online", b"offline"])  # said by the broker
        ears.close()


def test_a_broker_that_comes_late_and_goes(tmp_path: Path) -> None:
    port = free_port()
    sink = make_sink({"kind": "mqtt", "url": f"mqtt://me:SECRET@127.0.0.1:{port}", "interval_s": 0.0})
    put(sink, score_event(1), alert_event(2))
    until(lambda: sink.stats().failed == 1 and sink.stats().written == 1)
    assert "not connected" in sink.stats().error and "SECRET" not in sink.stats().error
    with broker(port, tmp_path):
        ears = Listener(port)
        until(lambda: bool(ears.of("grmp-edge/grmp-edge/gate/alert")))  # it waited
        put(sink, score_event(3))
        until(lambda: bool(ears.of("grmp-edge/grmp-edge/gate/score")))
        until(lambda: bool(ears.of("homeassistant/device/grmp-edge_gate/config")))
        assert [json.loads(line)["frame"] for line in ears.of("grmp-edge/grmp-edge/gate/score")] == [3]
        ears.close()
    sink.close()


def test_the_state_is_told_again_to_a_broker_that_has_forgotten(tmp_path: Path) -> None:
    port = free_port()
    url = f"mqtt://me:SECRET@127.0.0.1:{port}"
    state = "grmp-edge/grmp-edge/gate/state"
    sink = make_sink({"kind": "mqtt", "url": url, "discovery": ""})
    put(sink, LOST)  # before there is a broker
    for again in range(2):
        with broker(port, tmp_path):
            ears = Listener(port)
            until(partial(ears.of, state))
            assert json.loads(ears.of(state)[0])["state"] == "restarting", again
            ears.close()
    sink.close()


def test_cameras_of_nearly_one_name_have_topics_of_their_own(tmp_path: Path) -> None:
    port = free_port()
    names = ["gate 1", "gate.1", "gate/1", "gate_1"]
    with broker(port, tmp_path):
        ears = Listener(port)
        sink = make_sink({"kind": "mqtt", "url": f"mqtt://me:SECRET@127.0.0.1:{port}", "interval_s": 0.0})
        until(lambda: ears.of("grmp-edge/grmp-edge/status") == [b"online"])
        put(sink, *(score_event(index, name) for index, name in enumerate(names)))
        until(lambda: len([topic for topic, _, _ in ears.heard if topic.endswith("/score")]) == 4)
        until(lambda: len([topic for topic, _, _ in ears.heard if "/device/" in topic]) == 5)
        sink.close()
        ears.close()
    heard = {topic: payload for topic, _, payload in ears.heard}
    assert len([topic for topic in heard if topic.endswith("/score")]) == 4
    configs = [json.loads(data) for topic, data in heard.items() if "/device/grmp-edge_" in topic]
    assert len({config["components"]["score"]["unique_id"] for config in configs}) == 4
    for config in configs:  # each sensor hears its own camera
        scores = heard[config["components"]["score"]["state_topic"]]
        assert json.loads(scores)["camera"] == config["device"]["name"]
    assert "grmp-edge/grmp-edge/gate_1/score" in heard  # a plain name is its own topic


def test_alerts_that_the_broker_never_took_are_counted(tmp_path: Path) -> None:
    sink = make_sink({"kind": "mqtt", "url": f"mqtt://127.0.0.1:{free_port()}"})
    put(sink, alert_event(1), alert_event(2))
    until(lambda: sink.stats().written == 2)  # they wait for the broker
    stats = sink.close()
    assert (stats.written, stats.failed) == (0, 2)
    assert "before the broker took all alerts" in stats.error


def test_an_alert_is_not_confirmed_by_an_earlier_message_of_its_id() -> None:
    """Of which there are 65,535: a day of scores, one a second."""
    writer = MqttWriter(f"mqtt://127.0.0.1:{free_port()}")
    writer._confirmed.update(range(1, 65536))
    event = alert_event(1)
    writer.write(Message(to_record(event), event.image))
    with pytest.raises(EarlierLostError):
        writer.close()


def test_a_wrong_password_is_told(tmp_path: Path) -> None:
    port = free_port()
    with broker(port, tmp_path):
        sink = make_sink({"kind": "mqtt", "url": f"mqtt://me:WRONG@127.0.0.1:{port}", "interval_s": 0.0})

        def refused() -> bool:
            put(sink, score_event(1))
            return "refused" in sink.stats().error

        until(refused)
        assert "password" in sink.stats().error and "WRONG" not in sink.stats().error
        sink.close()
