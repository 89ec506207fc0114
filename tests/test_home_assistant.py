"""What is announced to Home Assistant, beside the schema that it publishes (2026.11)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_sinks import LOST, score_event

from grmp_edge.runtime.sinks.home_assistant import Discovery
from grmp_edge.runtime.sinks.queue import to_record

# Of homeassistant/components/mqtt: schemas.py, sensor.py, binary_sensor.py, image.py. Whatever is not named
# there is dropped in silence, as object_id has been since 2026.4.
COMMON = {
    "platform", "name", "unique_id", "default_entity_id", "icon", "entity_category", "enabled_by_default",
    "availability", "availability_mode", "json_attributes_topic", "json_attributes_template",
}  # fmt: skip
STATE = {"state_topic", "value_template", "device_class", "expire_after"}
ALLOWED = {
    "sensor": COMMON | STATE | {"unit_of_measurement", "state_class", "suggested_display_precision"},
    "binary_sensor": COMMON | STATE | {"payload_on", "payload_off"},
    "image": COMMON | {"image_topic", "content_type"},
}
CLASSES = {"sensor": {"duration"}, "binary_sensor": {"problem", "connectivity"}}


def announced(camera: str, causes: bool = True, prefix: str = "homeassistant") -> dict[str, Any]:
    messages = Discovery(prefix, "edge1", "grmp-edge/edge1", 600).messages(camera, causes)
    return {topic: json.loads(payload) for topic, payload in messages if payload}


def test_a_camera_is_a_device_in_one_message() -> None:
    devices = announced("Gate 1")
    assert list(devices) == [
        "homeassistant/device/edge1/config",
        "homeassistant/device/edge1_Gate_1-a2ae10/config",
    ]
    for config in devices.values():
        assert set(config) == {"device", "origin", "components"}
        assert config["device"]["identifiers"] and config["origin"]["name"]
        for key, entity in config["components"].items():
            platform = entity["platform"]
            assert set(entity) <= ALLOWED[platform], key
            assert entity["unique_id"]
            domain, _, name = entity["default_entity_id"].partition(".")
            assert domain == platform
            assert name == name.lower() and name.replace("_", "").isalnum()
            if "device_class" in entity:
                assert entity["device_class"] in CLASSES[platform]
            assert ("state_topic" in entity) != (platform == "image")
    camera = list(devices.values())[1]
    assert camera["device"]["name"] == "Gate 1" and camera["device"]["via_device"] == "edge1"
    score = camera["components"]["score"]
    assert (score["expire_after"], score["availability_mode"]) == (600, "all")
    ids = [entity["unique_id"] for config in devices.values() for entity in config["components"].values()]
    assert len(set(ids)) == len(ids)
    assert "cause" not in list(announced("gate", causes=False).values())[1]["components"]
    assert announced("gate", prefix="") == {}


def test_what_the_templates_say() -> None:
    jinja2 = pytest.importorskip("jinja2")

    def render(entity: dict[str, Any], value: Any, key: str = "value_template") -> str:
        return str(jinja2.Template(entity[key]).render(value_json=value))

    parts = list(announced("gate").values())[1]["components"]
    assert render(parts["score"], to_record(score_event(3))) == "50.3"
    assert render(parts["cause"], to_record(score_event(3))) == "none"
    assert render(parts["age"], to_record(score_event(3))) == "12.5"
    ok = {"state": "running", "picture": "ok", "alerts": [], "severity": "none", "alert_detail": ""}
    bad = {**ok, "alerts": ["covered", "low"], "severity": "critical", "picture": "frozen"}
    assert [render(parts["problem"], state) for state in (ok, bad)] == ["OFF", "ON"]
    assert [render(parts["alert"], state) for state in (ok, bad)] == ["none", "covered, low"]
    assert [render(parts["state"], state) for state in (ok, bad)] == ["running", "running, frozen"]
    lost = to_record(LOST)
    assert [render(parts["connectivity"], state) for state in (ok, lost)] == ["ON", "OFF"]
    available = parts["score"]["availability"][1]
    assert [render(available, state) for state in (ok, lost)] == ["online", "offline"]
    told = json.loads(render(parts["problem"], bad, "json_attributes_template"))
    assert told == {"alerts": ["covered", "low"], "severity": "critical", "detail": ""}
