"""Sinks over the network: webhooks with retry, and notification services."""

from __future__ import annotations

import base64
import http.client
import importlib
import json
import logging
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from grmp_edge import __version__
from grmp_edge.errors import GrmpError, MissingDependencyError, UsageError
from grmp_edge.redact import safe_name, split_credentials
from grmp_edge.runtime.live.alert import Severity
from grmp_edge.runtime.sinks.queue import AlertRecord, Message, Record, Writer, jpeg

__all__ = ["AppriseWriter", "WebhookWriter"]


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


class AppriseWriter(Writer):
    """Sends alerts to people through apprise: mail, Telegram, Slack, PagerDuty, ntfy and a hundred others."""

    takes_image = True
    repeats = True

    def __init__(self, url: str | Sequence[str], least: Severity = "notice") -> None:
        """Check the addresses; nothing is sent yet.

        Args:
            url: one or several, as apprise writes them: ``mailto://user:password@example.com``, ``tgram://...``.
            least: ``critical``, ``warning`` or ``notice``; milder alerts are not sent.
        """
        try:
            apprise = importlib.import_module("apprise")
            self._memory = importlib.import_module("apprise.attachment.memory").AttachMemory
        except ImportError:
            raise MissingDependencyError("apprise", "apprise", "sending notifications") from None
        logging.getLogger("apprise").addHandler(logging.NullHandler())  # its lines would show addresses
        if least not in _SEVERITIES:
            raise UsageError(f"apprise least {least!r}", f"use {', '.join(_SEVERITIES)}")
        self._least = _SEVERITIES.index(least)
        self._types = apprise.NotifyType
        self._apprise = apprise.Apprise()
        for one in [url] if isinstance(url, str) else url:
            if not self._apprise.add(one):
                kind = one.partition("://")[0] if "://" in one else "it"  # the rest holds passwords
                raise UsageError(f"{kind}: not an address of apprise", "see apprise's list of services")

    def wants(self, record: Record) -> bool:
        """Alerts that are severe enough."""
        return record["event"] == "alert" and _SEVERITIES.index(record["severity"]) <= self._least

    def write(self, message: Message) -> None:
        """Send one alert; apprise itself tries again what may pass."""
        record = message.record
        if record["event"] != "alert":
            return
        kind = record["kind"].replace("_", " ")
        title = f"{record['camera']}: {kind}{'' if record['raised'] else ' is over'}"
        severity = {
            "critical": self._types.FAILURE,
            "warning": self._types.WARNING,
            "notice": self._types.INFO,
        }
        picture = None
        if record["raised"] and message.image is not None:
            picture = self._memory(jpeg(message.image), name="picture.jpg", mimetype="image/jpeg")
        sent = self._apprise.notify(
            body=_body(record),
            title=title,
            notify_type=severity[record["severity"]] if record["raised"] else self._types.SUCCESS,
            attach=picture,
        )
        if not sent:
            raise GrmpError("apprise: not every service took an alert", "check their addresses and passwords")


_SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "notice")


def _body(record: AlertRecord) -> str:
    """An alert in a few lines."""
    lines = [f"{record['severity']}, {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record['at']))}"]
    if "value" in record:
        limit = f", limit {record['limit']:.2f}" if "limit" in record else ""
        lines.append(f"score {record['value']:.2f}{limit}")
    for key in ("cause", "detail"):
        if record.get(key):
            lines.append(str(record.get(key)))
    if record.get("repeated"):
        lines.append("sent again")
    return "\n".join(lines)
