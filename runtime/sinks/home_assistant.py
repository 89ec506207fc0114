"""Home Assistant's MQTT discovery: one message makes a camera a device with all its entities."""

from __future__ import annotations

import json
import re
from typing import Any

from grmp_edge import __version__
from grmp_edge.redact import slug

__all__ = ["Discovery"]


class Discovery:
    """The discovery messages of this machine and its cameras, for Home Assistant 2024.11 and newer."""

    def __init__(self, prefix: str, node: str, base: str, expire_after_s: int) -> None:
        """``prefix`` is Home Assistant's (empty: no discovery), ``base`` the first levels of our topics."""
        self._prefix, self._node, self._base, self._expire_after_s = prefix, node, base, expire_after_s

    @property
    def birth(self) -> str:
        """The topic on which Home Assistant says ``online`` when it has started; empty: none."""
        return f"{self._prefix}/status" if self._prefix else ""

    def messages(self, camera: str, causes: bool) -> list[tuple[str, bytes]]:
        """Topics and payloads that announce a camera, to be retained.

        ``causes``: the model names causes. An empty payload removes what older versions announced.
        """
        if not self._prefix:
            return []
        name = slug(camera)
        old = [f"{self._prefix}/sensor/{self._node}/{name}{part}/config" for part in ("", "_cause")]
        return [
            *((topic, b"") for topic in old),
            (f"{self._prefix}/device/{self._node}/config", _json(self._machine())),
            (f"{self._prefix}/device/{self._node}_{name}/config", _json(self._camera(camera, causes))),
        ]

    def _machine(self) -> dict[str, Any]:
        running = {
            "platform": "binary_sensor", "name": "Watch", "device_class": "connectivity",
            "entity_category": "diagnostic", "state_topic": f"{self._base}/status",
            "payload_on": "online", "payload_off": "offline",
        }  # fmt: skip
        return {
            "device": {"identifiers": [self._node], "name": self._node, **_MAKER},
            "origin": _ORIGIN,
            "components": {"watch": self._named(running, self._node, "watch")},
        }

    def _camera(self, camera: str, causes: bool) -> dict[str, Any]:
        name = slug(camera)
        topic = f"{self._base}/{name}"
        status = {"topic": f"{self._base}/status"}
        running = {
            "topic": f"{topic}/state",
            "value_template": "{{ 'online' if value_json.state == 'running' else 'offline' }}",
        }
        # What a score says is unknown while the camera is lost; its state and its alerts are not.
        with_frames: dict[str, Any] = {
            "state_topic": f"{topic}/score", "availability": [status, running], "availability_mode": "all"
        }  # fmt: skip
        if self._expire_after_s:
            with_frames["expire_after"] = self._expire_after_s
        always = {"state_topic": f"{topic}/state", "availability": [status]}
        entities: dict[str, dict[str, Any]] = {
            "score": {
                "platform": "sensor", "name": "Quality", "icon": "mdi:cctv", "unit_of_measurement": "%",
                "state_class": "measurement", "suggested_display_precision": 1,
                "value_template": "{{ (value_json.value * 100) | round(2) }}", **with_frames,
            },
            "problem": {
                "platform": "binary_sensor", "name": "Problem", "device_class": "problem",
                "value_template": "{{ 'ON' if value_json.alerts else 'OFF' }}",
                "json_attributes_topic": f"{topic}/state",
                "json_attributes_template": "{{ {'alerts': value_json.alerts, "
                "'severity': value_json.severity, 'detail': value_json.alert_detail} | tojson }}", **always,
            },
            "alert": {
                "platform": "sensor", "name": "Alert", "icon": "mdi:alert-outline",
                "value_template": "{{ value_json.alerts | join(', ') or 'none' }}", **always,
            },
            "image": {
                "platform": "image", "name": "Last alert", "content_type": "image/jpeg",
                "image_topic": f"{topic}/image", "availability": [status],
            },
            "connectivity": {
                "platform": "binary_sensor", "name": "Connection", "device_class": "connectivity",
                "entity_category": "diagnostic",
                "value_template": "{{ 'ON' if value_json.state == 'running' else 'OFF' }}", **always,
            },
            "state": {
                "platform": "sensor", "name": "State", "icon": "mdi:information-outline",
                "entity_category": "diagnostic", "enabled_by_default": False,
                "value_template": "{{ value_json.state }}{{ '' if value_json.picture == 'ok' else ', ' ~ "
                "value_json.picture }}", **always,
            },
            "age": {
                "platform": "sensor", "name": "Age of the picture", "device_class": "duration",
                "unit_of_measurement": "ms", "state_class": "measurement", "suggested_display_precision": 0,
                "entity_category": "diagnostic", "enabled_by_default": False,
                "value_template": "{{ value_json.age_ms }}", **with_frames,
            },
        }  # fmt: skip
        if causes:
            entities["cause"] = {
                "platform": "sensor", "name": "Cause", "icon": "mdi:image-broken-variant",
                "value_template": "{{ value_json.cause | default('none') }}", **with_frames,
            }  # fmt: skip
        return {
            "device": {
                "identifiers": [f"{self._node}_{name}"], "name": camera, "via_device": self._node, **_MAKER
            },
            "origin": _ORIGIN,
            "components": {
                key: self._named(entity, f"{self._node}_{name}", key) for key, entity in entities.items()
            },
        }  # fmt: skip

    def _named(self, entity: dict[str, Any], device: str, key: str) -> dict[str, Any]:
        plain = re.sub(r"[^a-z0-9]+", "_", f"{device}_{key}".lower()).strip("_")
        return {
            **entity,
            "unique_id": device if key == "score" else f"{device}_{key}",  # as older versions had it
            "default_entity_id": f"{entity['platform']}.{plain}",
        }


_MAKER = {"manufacturer": "grmp-edge", "model": "Image quality", "sw_version": __version__}
_ORIGIN = {"name": "grmp-edge", "sw_version": __version__}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
