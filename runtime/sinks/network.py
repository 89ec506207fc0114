"""Sinks over the network: MQTT with Home Assistant discovery, and webhooks with retry."""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib
import json
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from grmp_edge import __version__
from grmp_edge.errors import GrmpError, MissingDependencyError, UsageError
from grmp_edge.redact import safe_name, slug, split_credentials
from grmp_edge.runtime.sinks.queue import EarlierLostError, Message, Record, Throttle, Writer

__all__ = ["MqttWriter", "WebhookWriter"]


class MqttWriter(Writer):
    """Publishes to a broker; reconnects by itself.

    Topics: ``PREFIX/NODE/status`` (``online`` or, as the last will, ``offline``; retained), and for each
    camera ``PREFIX/NODE/CAMERA/score``, ``.../state`` (retained) and ``.../alert``, all JSON but the first.
    NODE and CAMERA are names turned into one topic level by :func:`~grmp_edge.redact.slug`.
    With ``discovery``, Home Assistant adds a sensor for each camera by itself, and one for the cause of a low
    score if the model names causes.
    """

    def __init__(
        self,
        url: str,
        node: str = "grmp-edge",
        prefix: str = "grmp-edge",
        discovery: str = "homeassistant",
        interval_s: float = 1.0,
    ) -> None:
        """Connect in the background; a broker that is down is no error.

        Args:
            url: ``mqtt://user:password@host:1883`` or ``mqtts://``.
            node: name of this machine on the broker.
            prefix: first level of all topics, or several levels.
            discovery: Home Assistant's discovery prefix; empty: no discovery.
            interval_s: shortest time between two scores of a camera; no dashboard needs 15 a second.
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
        self._node, self._base, self._discovery = slug(node), f"{prefix}/{slug(node)}", discovery
        self._throttle = Throttle(interval_s)
        self._announced: dict[str, bytes] = {}  # discovery messages by topic
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
        camera = slug(record["camera"])
        kind = {"score": "score", "alert": "alert", "camera": "state"}[record["event"]]
        self._discover(record["camera"], "causes" in record)
        if kind != "alert" and not self._client.is_connected():
            reason, remedy = self._refused, "check its user and password"
            if not reason:
                reason, remedy = "not connected", "check that the broker is running"
            raise GrmpError(f"{self._name}: {reason}", remedy)
        payload = json.dumps(record).encode("ascii")
        # Alerts wait for a broker that is away; an old score is of no use.
        result = self._client.publish(
            f"{self._base}/{camera}/{kind}", payload, qos=1 if kind == "alert" else 0, retain=kind == "state"
        )
        if result.rc not in (0, 4):  # 4: no connection, so the alert is queued
            raise GrmpError(f"{self._name}: a message was refused (code {result.rc})")
        if kind == "alert":
            self._waiting.add(result.mid)
            self._unconfirmed()

    def _published(self, client: Any, userdata: Any, number: int, reason: Any, properties: Any) -> None:
        with self._numbers:
            self._confirmed.add(number)

    def _unconfirmed(self) -> int:
        """Number of alerts that the broker has not confirmed."""
        with self._numbers:
            self._waiting -= self._confirmed
            self._confirmed.clear()
        return len(self._waiting)

    def _discover(self, camera: str, causes: bool) -> None:
        name = slug(camera)
        sensors = {
            name: {
                "name": f"{camera} quality",
                "value_template": "{{ (value_json.value * 100) | round(1) }}",
                "unit_of_measurement": "%",
                "state_class": "measurement",
                "json_attributes_topic": f"{self._base}/{name}/score",
                "icon": "mdi:cctv",
            }
        }
        if causes:
            sensors[f"{name}_cause"] = {
                "name": f"{camera} cause",
                "value_template": "{{ value_json.cause | default('none') }}",
                "icon": "mdi:image-broken-variant",
            }
        for sensor, own in sensors.items():
            topic = f"{self._discovery}/sensor/{self._node}/{sensor}/config"
            with self._lock:
                if not self._discovery or topic in self._announced:
                    continue
                unique = f"{self._node}_{sensor}"
                self._announced[topic] = json.dumps(
                    {
                        **own,
                        "unique_id": unique,
                        "object_id": unique,
                        "state_topic": f"{self._base}/{name}/score",
                        "availability_topic": f"{self._base}/status",
                        "device": {
                            "identifiers": [self._node],
                            "name": self._node,
                            "sw_version": f"grmp-edge {__version__}",
                        },
                    }
                ).encode("ascii")
            if self._client.is_connected():
                self._announce(topic)

    def _announce(self, topic: str) -> None:
        self._client.publish(topic, self._announced[topic], qos=1, retain=True)

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if getattr(reason, "is_failure", False):
            self._refused = f"the broker refused the connection ({reason})"
            return
        self._refused = ""
        client.publish(f"{self._base}/status", b"online", qos=1, retain=True)
        with self._lock:
            topics = list(self._announced)
        for topic in topics:  # again: the broker may have lost its retained messages
            self._announce(topic)

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


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Following a redirect would send a GET without the event, and the token to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


class WebhookWriter(Writer):
    """POSTs events as JSON, with retries."""

    repeats = True

    def __init__(
        self,
        url: str,
        events: Sequence[str] = ("alert",),
        token: str = "",
        timeout_s: float = 5.0,
        attempts: int = 4,
    ) -> None:
        """Check the arguments; nothing is sent yet.

        Args:
            url: where to POST.
            events: of ``alert``, ``camera``, ``score`` and ``heartbeat`` (each camera's state every minute).
            token: sent as ``Authorization: Bearer``.
            timeout_s: of one attempt.
            attempts: with 1, 2, 4 ... seconds between them, so 7 seconds by default: enough for a receiver to
                restart. When the sink closes, each waiting event is tried once, until the first failure.
        """
        if urlsplit(url).scheme not in ("http", "https"):
            raise UsageError(f"{safe_name(url)}: not a web address", "write http:// or https://")
        if not set(events) <= {"alert", "camera", "score", "heartbeat"}:
            raise UsageError(f"webhook events {list(events)}", "use alert, camera, score, heartbeat")
        self._url, user, password = split_credentials(url)
        self._name = safe_name(url)
        self._events, self._timeout_s, self._attempts = frozenset(events), timeout_s, max(1, attempts)
        self._headers = {"Content-Type": "application/json", "User-Agent": f"grmp-edge/{__version__}"}
        if user:
            both = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
            self._headers["Authorization"] = f"Basic {both}"
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._hurry = threading.Event()
        self._gone = False  # the server failed while the sink was closing

    def wants(self, record: Record) -> bool:
        """The kinds of events configured."""
        beat = record["event"] == "camera" and record.get("repeated", False)
        return ("heartbeat" if beat else record["event"]) in self._events

    def write(self, message: Message) -> None:
        """POST one event; retry after transient failures: no connection, 429, 5xx."""
        if self._gone:
            raise GrmpError(f"{self._name}: no time left to send it")
        # The same key for each attempt, so that a receiver which answered too late can drop the duplicate.
        headers = {**self._headers, "Idempotency-Key": str(uuid.uuid4())}
        data = json.dumps(message.record).encode("ascii")
        reason, again = "", True
        for attempt in range(1, self._attempts + 1):
            reason, again = self._post(data, headers)
            if not reason:
                return
            if not again or attempt == self._attempts or self._hurry.wait(2.0 ** (attempt - 1)):
                break
        self._gone = self._hurry.is_set() and again
        tried = "1 attempt" if attempt == 1 else f"{attempt} attempts"
        raise GrmpError(f"{self._name}: {reason}", f"given up after {tried}")

    def _post(self, data: bytes, headers: dict[str, str]) -> tuple[str, bool]:
        """Why it was not delivered (empty: it was), and whether another attempt may succeed."""
        request = urllib.request.Request(self._url, data, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout_s):
                return "", False
        except urllib.error.HTTPError as error:
            error.close()
            return f"the server says {error.code}", error.code >= 500 or error.code == 429
        except (OSError, http.client.HTTPException) as error:
            return str(getattr(error, "reason", error)) or type(error).__name__, True

    def hurry(self) -> None:
        """Do not wait for further attempts."""
        self._hurry.set()
