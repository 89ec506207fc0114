"""Users and passwords of any characters: taken as typed, sent as RFCs ask, and never shown."""

from __future__ import annotations

import base64
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, unquote, urlsplit

import pytest
from conftest import encode, make_image
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from grmp_edge import redact
from grmp_edge.cli.live_plan import CameraOptions, plan_streams
from grmp_edge.errors import SourceError, UsageError
from grmp_edge.redact import has_password, safe_name, scrub, slug, split_credentials
from grmp_edge.runtime.sources.http import fetch_picture
from grmp_edge.runtime.sources.sources import Failure, read_sources
from grmp_edge.runtime.video.config import CaptureConfig
from grmp_edge.runtime.video.rtsp import escaped

# What people type, and all of which has been printed once: blanks, quotes, and all that parts an address.
_TYPED = "abzXY019 /#?@!'\"%:&=+;,.$*()[]{}<>|\\^`~_-äß€中"
# A password is looked for in what is shown, so it begins with what nothing else holds; here a private sign.
_MARK = "\N{SNOWMAN}"

passwords = st.text(_TYPED, min_size=2, max_size=20).map(lambda text: _MARK + text + _MARK)
users = st.text("abcXYZ019.-_ äß!'\"", min_size=1, max_size=10)
hosts = st.sampled_from(["cam", "10.0.0.5", "gate-1.example.org", "[fe80::1]", "localhost"])
ports = st.sampled_from(["", ":554", ":8080"])
paths = st.sampled_from(["", "/", "/live", "/Streaming/Channels/101", "/a/b.jpg?channel=1", "/x?id=2&auth=3"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(users, passwords, hosts, ports, paths, st.sampled_from(["rtsp", "rtsps", "http", "https", "mqtt"]))
@example("admin", f"{_MARK}Secret!1", "cam", "", "/live", "rtsp")
@example("admin", f"{_MARK}a/b@c#d?e", "10.0.0.5", ":554", "/live", "rtsp")
def test_no_password_is_shown(user: str, password: str, host: str, port: str, path: str, scheme: str) -> None:
    """Neither as it is typed nor as it is escaped, in a name or in another program's message."""
    redact._known.clear()  # of the examples before
    for written in (password, quote(password, safe="")):
        source = f"{scheme}://{user}:{written}@{host}{port}{path}"
        shown = safe_name(source)
        label = CaptureConfig(source).label
        assert _MARK not in shown + label and quote(_MARK) not in shown + label
        assert f"{host}{port}" in shown
        split_credentials(source)
        for text in (
            f"cannot open {source}: timed out",
            f"'{escaped(source)}' [rtsp @ 0x55]: 401",
            f"bad: {written}",
        ):
            found = scrub(text)
            assert _MARK not in found and quote(_MARK) not in found, found


@settings(max_examples=200, deadline=None, derandomize=True)
@given(users, st.text(_TYPED, min_size=1, max_size=20), hosts, ports, paths)
def test_it_is_taken_as_typed(user: str, password: str, host: str, port: str, path: str) -> None:
    """Where a reading by RFC 3986 does not say otherwise; what is escaped is taken in any case."""
    found = split_credentials(f"rtsp://{quote(user)}:{quote(password, safe='')}@{host}{port}{path}")
    assert found == (f"rtsp://{host}{port}{path}", user, password)
    # "admin:12/..." is a host and a port, and "a@b/..." ends at the slash, by the RFC.
    assume(not re.search("%[0-9a-fA-F]{2}", user + password))
    assume(not re.search(r"^[0-9]*[/?#]|@[\w.~-]*(:[0-9]*)?[/?#]|@\[", password))
    assert split_credentials(f"rtsp://{user}:{password}@{host}{port}{path}") == found


@settings(max_examples=200, deadline=None, derandomize=True)
@given(users, st.text(_TYPED, min_size=1, max_size=20), hosts, ports, paths)
def test_what_ffmpeg_gets_is_an_address_by_the_rfc(
    user: str, password: str, host: str, port: str, path: str
) -> None:
    parts = urlsplit(escaped(f"rtsp://{quote(user)}:{quote(password, safe='')}@{host}{port}{path}"))
    assert (unquote(parts.username or ""), unquote(parts.password or "")) == (user, password)
    assert parts.hostname == host.strip("[]") and re.fullmatch(r"[!-~]*", parts.netloc)


@pytest.mark.parametrize(
    "address",
    ["http://cam/a@b.jpg", "http://[fe80::1]:80/a@b.jpg", "rtsp://10.0.0.5:554/live?channel=1", "https://cam",
     "file:/data/a b.mp4", "http://cam:8080/x.jpg"],
)  # fmt: skip
def test_addresses_without_a_password_stay_as_they_are(address: str) -> None:
    assert safe_name(address) == address
    assert split_credentials(address) == (address, "", "")
    assert not has_password(address)


@pytest.mark.parametrize("written", ["adm:{}@10.0.0.5/x", "rtsp:/adm:{}@cam", "adm:{}@[fe80::1]:554/live"])
def test_an_address_whose_scheme_is_missing_or_mistyped(written: str) -> None:
    source = written.format(f"{_MARK}S3/c:r@t{_MARK}")
    labels = [CaptureConfig(source).label, CaptureConfig("0", f"rtsp://{source}").label]
    assert _MARK not in "".join([safe_name(source), *labels])
    with pytest.raises(SourceError) as refused:
        plan_streams([source], None)
    (failure,) = read_sources([source])
    assert isinstance(failure, Failure) and _MARK not in f"{refused.value} {failure.source} {failure.error}"
    for name in ("file:/a/b:c@d.mp4", "photos/12:30@noon.jpg", "gate:1"):
        assert safe_name(name) == name


def test_the_name_of_a_file_that_is_not_utf8_can_be_written() -> None:
    """Into topics, metrics, pages and names of files."""
    label = CaptureConfig("file:\udcff/ü.mp4").label
    assert label == r"file:\udcff/ü.mp4" and slug("\udcff").isascii()
    assert slug("a" * 180) == "a" * 180 and slug("b" + "a" * 200) != slug("c" + "a" * 200)
    assert len(slug("a" * 5000)) < 200


def test_which_addresses_hold_a_password() -> None:
    assert has_password("rtsp://admin:Secret!1@cam/live")
    assert has_password("gst:rtspsrc location=rtsp://cam user-pw=x ! appsink")
    for harmless in (
        "rtsp://viewer:${GATE}@cam/live",
        "rtsp://viewer@cam/live",
        "0",
        "gst:videotestsrc ! appsink",
    ):
        assert not has_password(harmless)


class _Server(http.server.BaseHTTPRequestHandler):
    """Basic, or digest by RFC 7616 with MD5 or SHA-256, for one user, whose password it knows."""

    user = password = method = ""

    def do_GET(self) -> None:
        if not self._allowed():
            self.send_response(401)
            challenge = {"Basic": 'Basic realm="cam"'}.get(
                self.method,
                f'Digest realm="cam", qop="auth", nonce="abc", algorithm={self.method}, opaque="x"',
            )
            self.send_header("WWW-Authenticate", challenge)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE)

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization", "")
        if self.method == "Basic":
            expected = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            return given == f"Basic {expected}"
        fields = {
            key: re.sub(r"\\(.)", r"\1", quoted or plain)
            for key, quoted, plain in re.findall(r'(\w+)=(?:"((?:\\.|[^"\\])*)"|([^\s,]+))', given)
        }
        if not fields or fields["username"].encode("latin-1") != self.user.encode():
            return False
        digest = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}[self.method]

        def hashed(text: str) -> str:
            return digest(text.encode()).hexdigest()

        one = hashed(f"{self.user}:cam:{self.password}")
        two = hashed(f"GET:{fields['uri']}")
        chain = f"{one}:{fields['nonce']}:{fields['nc']}:{fields['cnonce']}:{fields['qop']}:{two}"
        return fields["response"] == hashed(chain)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def guarded(method: str, user: str, password: str) -> Iterator[int]:
    handler = type("Handler", (_Server,), {"user": user, "password": password, "method": method})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


PICTURE = encode(make_image(), "JPEG")
HARD = [
    "plain",
    "Secret!1",
    "a/b#c?d",
    'quo"te',
    "it's a blank",
    "p@ss",
    "100%",
    "pä€ß",
    "back\\slash",
    "a:b:c",
]


@pytest.mark.parametrize("method", ["Basic", "MD5", "SHA-256"])
def test_a_real_server_takes_what_was_typed(method: str) -> None:
    for number, password in enumerate(HARD):
        user = ["admin", 'ad"min', "Jörg S."][number % 3]
        with guarded(method, user, password) as port:
            typed = f"http://{user}:{password}@127.0.0.1:{port}/snap.jpg"
            assert fetch_picture(typed) == PICTURE, (user, password)
            with pytest.raises(SourceError, match="check its user and password") as refused:
                fetch_picture(f"http://{user}:wrong{password}@127.0.0.1:{port}/snap.jpg")
            assert password not in str(refused.value)


def test_the_command_line_takes_variables_and_warns_of_passwords(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATE", "Se/cret!1")
    written = "rtsp://viewer:${GATE}@cam/live"
    (camera,) = plan_streams([written], None, CameraOptions(memory="none")).cameras
    assert camera.source == "rtsp://viewer:Se/cret!1@cam/live" and camera.label == "rtsp://cam/live"
    assert capsys.readouterr().err == ""
    plan_streams([camera.source], None, CameraOptions(memory="none"))
    warned = capsys.readouterr().err
    assert warned.startswith("warning: rtsp://cam/live: other users of this machine see its password")
    assert "--streams" in warned and "cret" not in warned
    monkeypatch.delenv("GATE")
    with pytest.raises(UsageError, match=r"\$\{GATE\} is not set in the environment; export GATE"):
        plan_streams([written], None)
