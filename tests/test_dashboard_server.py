"""``serve`` with cameras and ``watch --http``, as processes: events, JSON, pictures, metrics, login."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import encode, make_image, until
from helpers_dashboard import NAME, ask, running, write_video
from helpers_live import free_port, http_cameras
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from grmp_edge.bundle import Bundle
from grmp_edge.cli.serve import _where
from grmp_edge.errors import UsageError
from grmp_edge.runtime.live.events import CameraState


def streams(tmp_path: Path, base: str) -> tuple[Path, tuple[float, float]]:
    """A file with a looping file, an MJPEG server, and one that is not there and has a password."""
    scores = write_video(tmp_path / "v.avi")
    path = tmp_path / "streams.toml"
    path.write_text(
        f'[[camera]]\nname = "{NAME}"\nsource = "file:{tmp_path / "v.avi"}"\n'
        f'[[camera]]\nname = "web"\nsource = "{base}/mjpeg"\nalert = {{ below = 0.999, for_s = 0 }}\n'
        f'[[camera]]\nsource = "rtsp://me:SECRET@127.0.0.1:{free_port()}/x"\n'
        f'[[sink]]\nkind = "jsonl"\npath = "{tmp_path / "a.jsonl"}"\n'
    )
    return path, scores


def test_serve_with_cameras(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with http_cameras() as base:
        path, (low, high) = streams(tmp_path, base)
        with running("serve", tiny_bundle, "--port", "0", "--streams", path) as served:
            client, texts = served.client, []
            found: list[dict[str, Any]] = []
            seconds = 0  # told of both that run
            for message in served.messages():
                found.append(message)
                if len(message["points"]) == 2:
                    seconds += 1
                if seconds == 3:
                    break
            texts.append(json.dumps(found))
            first, last = found[0], found[-1]
            assert [camera["name"] for camera in first["cameras"]][:2] == [NAME, "web"]
            video, web, dead = last["cameras"]
            assert (video["state"], web["state"]) == ("running", "running")
            assert dead["state"] in ("not_started", "restarting") and dead["score"] is None
            assert last["model"] == tiny_bundle.id and last["login"] is False
            assert low - 0.01 <= video["score"] <= high + 0.01
            for at, mean, lowest in last["points"][video["id"]]:
                assert abs(at - last["at"]) < 60
                assert low - 0.01 <= lowest <= mean <= high + 0.01
            assert web["limits"] == {"low": 0.999} and web["alerts"] == ["low"]
            events = [event for message in found for event in message.get("events", [])]
            assert [event["number"] for event in events] == list(range(1, len(events) + 1))
            alerts = [event for event in events if event["event"] == "alert"]
            assert {alert["camera"]: alert["kind"] for alert in alerts}.get(
                dead["name"], "offline"
            ) == "offline"
            (alert,) = [alert for alert in alerts if alert["camera"] == "web"]
            assert (alert["camera"], alert["raised"], alert["limit"]) == ("web", True, 0.999)

            assert list(served.cameras()) == [NAME, "web", dead["name"]]
            until(lambda: "SECRET" not in dead["name"] and served.cameras()[dead["name"]]["detail"] != "")
            history = client.get(f"/v1/cameras/{video['id']}/history").json()
            assert history["camera"] == NAME and history["step_s"] == 1
            times = [at for at, _, _ in history["points"]]
            assert times == sorted(set(times)) and len(times) >= 2
            # What the messages told bit by bit is the history: no second twice, none left out.
            told = [point for message in found for point in message["points"].get(video["id"], [])]
            assert told == [point for point in history["points"] if told[0][0] <= point[0] <= told[-1][0]]
            since = client.get(f"/v1/cameras/{video['id']}/history?since={times[0]}").json()
            assert since["points"][: len(times) - 1] == history["points"][1:]
            by_name = httpx.URL(served.at).copy_with(path=f"/v1/cameras/{dead['name']}/history")
            assert client.get(by_name).json()["points"] == []
            minutes = client.get(f"/v1/cameras/web/history?step=60&since={times[-1]}").json()
            assert minutes["points"] == []
            for wrong, status in (
                ("x/history", 404), ("web/history?step=7", 422), ("web/history?since=nan", 422),
                ("x/thumbnail.jpg", 404), ("web/nothing", 404),
            ):  # fmt: skip
                assert client.get(f"/v1/cameras/{wrong}").status_code == status

            answer = client.get(f"/v1/cameras/{video['id']}/thumbnail.jpg")
            assert answer.headers["content-type"] == "image/jpeg"
            assert answer.headers["cache-control"] == "no-store"
            assert Image.open(io.BytesIO(answer.content)).size == (320, 180)
            tag = {"If-None-Match": answer.headers["etag"]}
            assert client.get(f"/v1/cameras/{NAME.replace('/', '%2F')}/thumbnail.jpg").status_code == 200
            until(
                lambda: client.get(f"/v1/cameras/{video['id']}/thumbnail.jpg", headers=tag).status_code == 200
            )

            check_metrics(client, texts, video["id"])
            assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
            png = encode(make_image(seed=1), "PNG")
            assert client.post("/score?camera=web", content=png).status_code == 200
            texts += [client.get(at).text for at in ("/", "/v1/cameras", "/metrics", "/static/dashboard.js")]
            assert "SECRET" not in "".join(texts)

            with client.stream("GET", "/v1/events") as stream:  # somebody follows when it is to end
                lines = stream.iter_lines()
                assert next(lines).startswith("retry:")
                served.process.send_signal(signal.SIGTERM)
                assert served.process.wait(30) == 0
                # The answer has an end, or httpx would complain.
                assert next(line for line in lines if line).startswith("data: ") and list(lines)[-1] == ""
            rest = served.process.stderr.read()
            assert rest.startswith("memory: 0 of 3 cameras known") and rest.count("\n") == 1
        assert (tmp_path / "a.jsonl").read_text().count('"kind": "low"') == 1


def check_metrics(client: httpx.Client, texts: list[str], video: str) -> None:
    text = client.get("/metrics").text
    texts.append(text)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    ours = {name: family for name, family in families.items() if name.startswith("grmp_edge_")}
    assert all(family.documentation for family in ours.values())
    values: dict[tuple[str, str, str], float] = {}
    for family in ours.values():
        for sample in family.samples:
            other = [value for key, value in sorted(sample.labels.items()) if key != "camera"]
            values[sample.name, sample.labels.get("camera", ""), ",".join(other)] = sample.value
    kinds = {"frames": "counter", "scored": "counter", "dropped": "counter", "reconnects": "counter",
             "alerts": "counter", "score": "gauge", "state": "gauge", "age_seconds": "histogram",
             "inference_seconds": "histogram"}  # fmt: skip
    assert {name: families[f"grmp_edge_camera_{name}"].type for name in kinds} == kinds
    names = {sample.labels["camera"] for sample in families["grmp_edge_camera_frames"].samples}
    assert len(names) == 3 and {NAME, "web"} < names
    for name in names:
        of = {state: values["grmp_edge_camera_state", name, state.value] for state in CameraState}
        assert sorted(of.values()) == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert values["grmp_edge_camera_state", NAME, "running"] == 1.0
    after = {camera["id"]: camera for camera in client.get("/v1/cameras").json()["cameras"]}[video]
    for name, key in (("frames", "frames"), ("scored", "scored")):
        assert 20 < values[f"grmp_edge_camera_{name}_total", NAME, ""] <= after[key]
    reasons = {reason for name, camera, reason in values if name == "grmp_edge_camera_dropped_total"}
    assert reasons == set(after["dropped"])
    for name in ("age", "inference"):
        metric = f"grmp_edge_camera_{name}_seconds"
        count = values[f"{metric}_count", NAME, ""]
        assert 20 < count <= after["scored"]
        assert values[f"{metric}_bucket", NAME, "+Inf"] == count
        assert 0 < values[f"{metric}_sum", NAME, ""] / count < 10
    assert values["grmp_edge_camera_alerts_total", "web", "low"] == 1.0
    assert values["grmp_edge_camera_alerts_total", NAME, "low"] == 0.0
    assert values["grmp_edge_camera_alert", "web", "low"] == 1.0
    assert 0 < values["grmp_edge_camera_score", "web", ""] < 1
    stamp = values["grmp_edge_camera_last_frame_timestamp_seconds", "web", ""]
    assert abs(time.time() - stamp) < 60
    assert values["grmp_edge_sink_lost_total", "", "jsonl"] == 0.0
    assert values["grmp_edge_sink_written_total", "", "jsonl"] > 20
    assert values["grmp_edge_sink_written_total", "", "dashboard"] > 20


def test_watch_serves_the_same(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi")
    with running("watch", tiny_bundle, f"file:{tmp_path / 'v.avi'}", "--http", "0", "--json") as served:
        until(lambda: served.client.get("/readyz").status_code == 200)
        message = next(served.messages())
        (camera,) = message["cameras"]
        assert camera["name"] == f"file:{tmp_path / 'v.avi'}"
        assert served.client.get(f"/v1/cameras/{camera['id']}/thumbnail.jpg").status_code == 200
        assert served.client.post("/score", content=b"x").status_code == 404
        page = served.client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        for file in ("dashboard.js", "chart.js", "words.js", "dashboard.css", "favicon.svg"):
            answer = served.client.get(f"/static/{file}")
            assert answer.status_code == 200 and "nosniff" in answer.headers["x-content-type-options"]
            again = served.client.get(f"/static/{file}", headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304
        for wrong in ("..%2fserve.py", "serve.py", "%2e%2e/serve.py"):
            assert served.client.get(f"/static/{wrong}").status_code == 404
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(30) == 0
        assert served.process.stderr.read() == ""


def test_not_ready_without_a_camera(tiny_bundle: Bundle) -> None:
    dead = f"rtsp://127.0.0.1:{free_port()}/x"
    with running("watch", tiny_bundle, dead, "--http", "127.0.0.1:0", "--json") as served:
        until(lambda: served.cameras()[dead]["state"] == "restarting")
        assert served.client.get("/healthz").status_code == 200
        assert served.client.get("/readyz").status_code == 503
        answer = served.client.get("/v1/cameras/" + dead.replace("/", "%2F") + "/thumbnail.jpg")
        assert answer.status_code == 404 and "no picture" in answer.json()["detail"]


def test_serving_goes_on_without_cameras(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi")
    (tmp_path / "streams.toml").write_text(
        f'[[camera]]\nsource = "file:{tmp_path / "v.avi"}"\nloop = false\n'
        f'[[camera]]\nsource = "file:{tmp_path / "no.avi"}"\n'
    )
    options = ("--port", "0", "--streams", tmp_path / "streams.toml")
    with running("serve", tiny_bundle, *options) as served:
        assert "no such file" in served.process.stderr.readline()
        assert "no camera gives frames any more" in served.process.stderr.readline()
        assert {camera["state"] for camera in served.cameras().values()} == {"stopped", "error"}
        assert served.client.get("/readyz").status_code == 503
        assert served.client.get("/v2/health/ready").status_code == 200  # the model is
        png = encode(make_image(seed=1), "PNG")
        assert served.client.post("/score", content=png).status_code == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(30) == 0
        assert served.process.stderr.read() == ""


def test_a_token_and_the_login(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi")
    source = f"file:{tmp_path / 'v.avi'}"
    with running(
        "serve", tiny_bundle, source, "--host", "0.0.0.0", "--port", "0", token="s3cret-s3cret-s3cret"
    ) as served:
        client = served.client
        assert client.get("/").status_code == client.get("/static/dashboard.js").status_code == 200
        assert client.get("/readyz").status_code in (200, 503)
        for path in ("/v1/cameras", "/v1/events", "/metrics", "/v1/cameras/x/thumbnail.jpg", "/v1/session"):
            assert client.get(path).status_code == 401
        bearer = {"Authorization": "Bearer s3cret-s3cret-s3cret"}
        assert client.get("/v1/cameras", headers=bearer).status_code == 200
        for body, status in (
            ({"token": "s3cre"}, 401), ({"token": 5}, 422), ([], 422), ({"token": "x" * 5000}, 413),
        ):  # fmt: skip
            assert client.post("/v1/login", json=body).status_code == status
        form = {"Content-Type": "text/plain"}  # what a form of another site could send
        assert (
            client.post("/v1/login", content='{"token": "s3cret-s3cret-s3cret"}', headers=form).status_code
            == 422
        )
        assert not client.cookies
        answer = client.post("/v1/login", json={"token": "s3cret-s3cret-s3cret"})
        assert answer.status_code == 204 and "HttpOnly" in answer.headers["set-cookie"]
        assert client.get("/v1/cameras").status_code == 200
        assert next(served.messages())["login"] is True
        png = encode(make_image(seed=1), "PNG")
        assert client.post("/score", content=png).status_code == 401  # the cookie only reads
        assert client.post("/score", content=png, headers=bearer).status_code == 200
        assert client.post("/v1/logout").status_code == 204
        assert client.get("/v1/cameras").status_code == 401


def test_addresses_that_are_none(tiny_bundle: Bundle) -> None:
    assert _where("8080") == _where("127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert _where("[::1]:1") == ("::1", 1)
    for where in ("here", "::1:80", "localhost:", "localhost:http", "", "\u0661"):
        with pytest.raises(UsageError, match="no address"):
            _where(where)
    done = subprocess.run(
        [sys.executable, "-m", "grmp_edge", "watch", str(tiny_bundle.path), "0", "--http", "0.0.0.0:0"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "GRMP_EDGE_TOKEN": ""},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "GRMP_EDGE_TOKEN" in line


def test_a_silent_page_does_not_slow_the_cameras(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi")
    with running("serve", tiny_bundle, f"file:{tmp_path / 'v.avi'}", "--port", "0") as served:
        silent = [ask(int(served.at.rpartition(":")[2]), room=4096) for _ in range(15)]
        heard = served.messages()  # one that reads is told each second all the same
        before = next(heard)["cameras"][0]["scored"]
        for _ in range(3):
            after = next(heard)["cameras"][0]
        assert after["scored"] - before >= 15  # of some 60 that the file has
        assert served.client.get("/v1/events").status_code == 503
        for client in silent:
            client.close()
        heard.close()  # type: ignore[attr-defined]
        until(lambda: "grmp_edge_dashboard_clients 0.0" in served.client.get("/metrics").text)
