"""The sink that publishes to an MQTT broker, with Home Assistant discovery."""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
from typing import Any, TypedDict
from urllib.parse import urlsplit

from grmp_edge.errors import GrmpError, MissingDependencyError, UsageError
from grmp_edge.redact import safe_name, slug, split_credentials
from grmp_edge.runtime.live.alert import SEVERITY, AlertKind
from grmp_edge.runtime.sinks.home_assistant import Discovery
from grmp_edge.runtime.sinks.queue import (
    AlertRecord,
    CameraRecord,
    EarlierLostError,
    Message,
    Record,
    Throttle,
    Writer,
    jpeg,
)

__all__ = ["MqttWriter"]


class _State(TypedDict):
    """What ``.../state`` says of a camera: all that is true of it now."""

    camera: str
    at: float  # of the last change
    state: str  # unknown until the camera has told it
    picture: str
    detail: str
    alerts: list[AlertKind]
    severity: str  # of the worst alert; none
    alert_detail: str


class MqttWriter(Writer):
    """Publishes to a broker; reconnects by itself.

    Topics: ``PREFIX/NODE/status`` (``online`` or, as the last will, ``offline``; retained), and for each
    camera ``PREFIX/NODE/CAMERA/score``, ``.../alert``, ``.../state`` (retained: its state and all alerts
    raised now) and ``.../image`` (retained: a JPEG of the last alert), all JSON but the first and the last.
    NODE and CAMERA are names turned into one topic level by :func:`~grmp_edge.redact.slug`.
    With ``discovery``, each camera becomes a device of Home Assistant by itself.
    """

    takes_image = True
    repeats = True

    def __init__(
        self,
        url: str,
        node: str = "grmp-edge",
        prefix: str = "grmp-edge",
        discovery: str = "homeassistant",
        interval_s: float = 1.0,
        expire_after_s: float = 600.0,
    ) -> None:
        """Connect in the background; a broker that is down is no error.

        Args:
            url: ``mqtt://user:password@host:1883`` or ``mqtts://``.
            node: name of this machine on the broker.
            prefix: first level of all topics, or several levels.
            discovery: Home Assistant's discovery prefix; empty: no discovery.
            interval_s: shortest time between two scores of a camera; no dashboard needs 15 a second.
            expire_after_s: Home Assistant calls a score unknown when none has followed for so long; 0: never.
        """
        try:
            mqtt = importlib.import_module("paho.mqtt.client")
        except ImportError:
            raise MissingDependencyError("paho-mqtt", "mqtt", "publishing to MQTT") from None
        bare, user, password = split_credentials(url)
        parts = urlsplit(bare)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise UsageError(
                f"{safe_name(url)}: not an MQTT address", "write mqtt://HOST or mqtt://HOST:PORT"
            )
        self._name = safe_name(url)
        for key, topic in (("prefix", prefix), ("discovery", discovery)):
            if set(topic) & set("+#\0"):  # if refused later, it would end the client's own thread
                raise UsageError(f"{key} {topic!r} cannot be a topic", "use no + and no #")
        self._base = f"{prefix}/{slug(node)}"
        self._discovery = Discovery(discovery, slug(node), self._base, round(expire_after_s))
        self._throttle = Throttle(interval_s)
        self._announced: dict[str, bytes] = {}  # discovery messages by topic
        self._states: dict[str, _State] = {}  # by camera
        self._causes: set[str] = set()  # cameras whose model names causes
        # Message ids of alerts not yet confirmed by the broker, and of all confirmed messages. Their lock is
        # never held while publishing: the client holds its own lock in its callback.
        self._waiting: set[int] = set()
        self._confirmed: set[int] = set()
        self._numbers = threading.Lock()
        self._refused = ""  # why the broker refused the connection
        self._lock = threading.Lock()
        self._client: Any = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        if user:
            self._client.username_pw_set(user, password)
        if parts.scheme == "mqtts":
            self._client.tls_set()
        self._client.will_set(f"{self._base}/status", b"offline", qos=1, retain=True)
        self._client.on_connect = self._connected
        self._client.on_publish = self._published
        self._client.on_message = self._heard
        self._client.reconnect_delay_set(1, 60)
        self._client.max_queued_messages_set(100)  # alerts waiting for the broker
        self._client.connect_async(parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883))
        self._client.loop_start()

    def wants(self, record: Record) -> bool:
        """Every record but scores that follow their camera's last one too soon."""
        return self._throttle.passes(record)

    def write(self, message: Message) -> None:
        """Publish one event."""
        record = message.record
        camera = record["camera"]
        topic = f"{self._base}/{slug(camera)}"
        if record["event"] == "score" and "causes" in record:
            self._causes.add(camera)
        self._discover(camera)
        if record["event"] == "camera":
            self._note(record)
            self._publish_state(camera)
            return
        connected = self._client.is_connected()
        if record["event"] == "score" and not connected:  # an old score is of no use
            reason, remedy = self._refused, "check its user and password"
            if not reason:
                reason, remedy = "not connected", "check that the broker is running"
            raise GrmpError(f"{self._name}: {reason}", remedy)
        kind = record["event"]
        payload = json.dumps(record).encode("ascii")
        self._unconfirmed()  # message ids come again: what is confirmed by now is another one
        # Alerts wait for a broker that is away.
        result = self._client.publish(f"{topic}/{kind}", payload, qos=1 if kind == "alert" else 0)
        if result.rc not in (0, 4):  # 4: no connection, so the alert is queued
            raise GrmpError(f"{self._name}: a message was refused (code {result.rc})")
        if record["event"] == "alert":
            self._waiting.add(result.mid)
            self._unconfirmed()
            self._note_alert(record)
            self._publish_state(camera)
            if record["raised"] and message.image is not None and connected:
                self._client.publish(f"{topic}/image", jpeg(message.image), retain=True)

    def _note(self, record: CameraRecord) -> None:
        state = self._state(record["camera"])
        state["at"], state["state"], state["picture"] = record["at"], record["state"], record["picture"]
        state["detail"] = record.get("detail", "")

    def _note_alert(self, record: AlertRecord) -> None:
        state = self._state(record["camera"])
        kinds = [kind for kind in state["alerts"] if kind != record["kind"]]
        kinds += [record["kind"]] if record["raised"] else []
        severities = {SEVERITY[kind] for kind in kinds}
        state["at"], state["alerts"] = record["at"], sorted(kinds)
        state["severity"] = next((s for s in ("critical", "warning", "notice") if s in severities), "none")
        state["alert_detail"] = record.get("detail", "") if record["raised"] else ""

    def _state(self, camera: str) -> _State:
        unknown: _State = {
            "camera": camera, "at": 0.0, "state": "unknown", "picture": "ok", "detail": "", "alerts": [],
            "severity": "none", "alert_detail": "",
        }  # fmt: skip
        with self._lock:
            return self._states.setdefault(camera, unknown)

    def _publish_state(self, camera: str) -> None:
        """Publish what is true of a camera; without a connection, that happens once there is one."""
        if self._client.is_connected():
            payload = json.dumps(self._states[camera]).encode("ascii")
            self._client.publish(f"{self._base}/{slug(camera)}/state", payload, qos=1, retain=True)

    def _published(self, client: Any, userdata: Any, number: int, reason: Any, properties: Any) -> None:
        with self._numbers:
            self._confirmed.add(number)

    def _unconfirmed(self) -> int:
        """Number of alerts that the broker has not confirmed."""
        with self._numbers:
            self._waiting -= self._confirmed
            self._confirmed.clear()
        return len(self._waiting)

    def _discover(self, camera: str) -> None:
        """Announce a camera, and this machine, unless that has been done."""
        for topic, payload in self._discovery.messages(camera, camera in self._causes):
            with self._lock:
                if self._announced.get(topic) == payload:
                    continue
                self._announced[topic] = payload
            if self._client.is_connected():
                self._client.publish(topic, payload, qos=1, retain=True)

    def _tell_all(self) -> None:
        """Announce and tell all that is known: the broker or Home Assistant may have forgotten it."""
        with self._lock:
            announced, cameras = dict(self._announced), list(self._states)
        for topic, payload in announced.items():
            self._client.publish(topic, payload, qos=1, retain=True)
        for camera in cameras:
            self._publish_state(camera)

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if getattr(reason, "is_failure", False):
            self._refused = f"the broker refused the connection ({reason})"
            return
        self._refused = ""
        client.publish(f"{self._base}/status", b"online", qos=1, retain=True)
        if self._discovery.birth:
            client.subscribe(self._discovery.birth, qos=1)
        self._tell_all()

    def _heard(self, client: Any, userdata: Any, message: Any) -> None:
        if message.payload == b"online" and not message.retain:  # Home Assistant has started
            self._tell_all()

    def close(self) -> None:
        """Publish ``offline``, since the broker sends no last will after a clean disconnect.

        Raises:
            EarlierLostError: the broker never confirmed some alerts.
        """
        if self._client.is_connected():
            # Sent after all alerts, and so confirmed after them.
            offline = self._client.publish(f"{self._base}/status", b"offline", qos=1, retain=True)
            with contextlib.suppress(ValueError, RuntimeError):  # the queue is full of alerts
                offline.wait_for_publish(2.0)
        left = self._unconfirmed()
        self._client.disconnect()
        self._client.loop_stop()
        if left:
            raise EarlierLostError(f"{self._name}: closed before the broker took all alerts", left)
