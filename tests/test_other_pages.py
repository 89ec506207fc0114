"""What a page of another origin can make a real browser ask of the server: Debian's Chromium."""

from __future__ import annotations

import json

import pytest
from conftest import until
from helpers_browser import browser
from test_connections import serving

from grmp_edge.runtime.web.connections import ConnectionLimits

pytestmark = pytest.mark.system

# Each asks for a path of its own: of all the ways without the server's consent.
ATTACKS = """
const at = %s;
const form = (method, path, type) => {
  const frame = document.createElement("iframe");
  frame.name = path;
  const form = document.createElement("form");
  Object.assign(form, {method, action: at + path, target: frame.name, enctype: type});
  form.append(Object.assign(document.createElement("input"), {name: "a", value: "b"}));
  document.body.append(frame, form);
  form.submit();
};
fetch(at + "/fetch-post", {method: "POST", mode: "no-cors", body: "x"}).catch(() => 0);
fetch(at + "/fetch-get", {mode: "no-cors", credentials: "include"}).catch(() => 0);
fetch(at + "/fetch-cors", {method: "POST", body: "x"}).catch(() => 0);
navigator.sendBeacon(at + "/beacon", "x");
new Image().src = at + "/image";
form("POST", "/form-post", "text/plain");
form("GET", "/form-get", "text/plain");
new EventSource(at + "/events").onerror = event => event.target.close();
document.body.append(Object.assign(document.createElement("script"), {src: at + "/script"}));
"""
PATHS = (
    "fetch-post",
    "fetch-get",
    "fetch-cors",
    "beacon",
    "image",
    "form-post",
    "form-get",
    "events",
    "script",
)


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "localhost"]
)  # the same site at another port, and another site
def test_pages_of_other_origins(name: str) -> None:
    asked: dict[str, int] = {}
    with (
        serving(ConnectionLimits(), answered=asked.setdefault) as (host, port),
        serving(ConnectionLimits()) as (_, other),
        browser() as page,
    ):
        at = f"http://{host}:{port}"
        page.go(f"http://{name}:{other}/")
        page.value(ATTACKS % json.dumps(at) + "1")
        until(lambda: {"/" + path for path in PATHS} <= set(asked))
        assert {asked["/" + path] for path in PATHS} == {403}

        page.value(f"location.href = {json.dumps(at + '/link')}")  # a reader who clicks
        until(lambda: "/link" in asked)
        page.until(f"location.href.startsWith({json.dumps(at)})")
        page.value("fetch('/own', {method: 'POST', body: 'x'}).then(() => 1)")
        assert (asked["/link"], asked["/own"]) == (200, 200)
