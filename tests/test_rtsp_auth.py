"""RTSP servers that ask for a password: a real one by digest, plain and over TLS, and others by SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_live import free_port, rtsp_server

from grmp_edge.errors import SourceError
from grmp_edge.runtime.video.capture import open_capture
from grmp_edge.runtime.video.config import CaptureConfig
from grmp_edge.runtime.video.rtsp_login import Login

PASSWORD = "Se/cr!t 1@#\"ä%?'"


class Guard:
    """A camera's door: asks for what it is told to, and lets those in who answer by RFC 7616 with SHA-256.

    Whoever is let in gets to the server behind it; without one, he is told that there is nothing (404).
    """

    def __init__(self, challenges: list[str], behind: int | None = None) -> None:
        self._challenges, self._behind = challenges, behind
        self.tries: list[str] = []  # the Authorization headers, in their order
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._guard, args=(self._door.accept()[0],), daemon=True).start()

    def _guard(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            stack.enter_context(client)
            server = None
            if self._behind is not None:
                server = stack.enter_context(socket.create_connection(("127.0.0.1", self._behind)))
                threading.Thread(target=self._back, args=(server, client), daemon=True).start()
            data = b""
            while piece := client.recv(1 << 16):
                data += piece
                while data[:1] == b"$" and len(data) >= 4 + int.from_bytes(data[2:4], "big"):
                    data = data[4 + int.from_bytes(data[2:4], "big") :]  # what the reader reports: dropped
                while data[:1] != b"$" and b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    self._answer(head, client, server)

    def _answer(self, head: bytes, client: socket.socket, server: socket.socket | None) -> None:
        request = head.decode("latin-1")
        number = re.search(r"(?i)cseq: *(\d+)", request)
        assert number is not None
        if not self._allowed(request):
            lines = [f"RTSP/1.0 401 Unauthorized\r\nCSeq: {number[1]}"]
            lines += [f"WWW-Authenticate: {challenge}" for challenge in self._challenges]
            client.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        elif server is None:
            client.sendall(f"RTSP/1.0 404 Not Found\r\nCSeq: {number[1]}\r\n\r\n".encode())
        else:
            server.sendall(re.sub(rb"(?i)\r\nauthorization:[^\r]*", b"", head) + b"\r\n\r\n")

    @staticmethod
    def _back(server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := server.recv(1 << 16):
                client.sendall(piece)

    def _allowed(self, request: str) -> bool:
        found = re.search(r"(?im)^authorization: *(digest [^\r\n]*)", request)
        if found is None:
            return request.startswith("OPTIONS") and self._behind is not None
        self.tries.append(found[1])
        fields = {
            key: re.sub(r"\\(.)", r"\1", quoted or plain)
            for key, quoted, plain in re.findall(r'(\w+)=(?:"((?:\\.|[^"\\])*)"|([^\s,]+))', found[1])
        }

        def hashed(text: str) -> str:
            return hashlib.sha256(text.encode()).hexdigest()

        method, uri, _ = request.split(" ", 2)
        one, two = hashed(f"admin:a cam:{PASSWORD}"), hashed(f"{method}:{uri}")
        middle = f":{fields['nc']}:{fields['cnonce']}:auth" if "qop" in fields else ""
        return fields["uri"] == uri and fields["response"] == hashed(f"{one}:abc{middle}:{two}")


@contextlib.contextmanager
def guard(*challenges: str, behind: int | None = None) -> Iterator[Guard]:
    with contextlib.closing(Guard(list(challenges), behind)) as made:
        yield made


BY_MD5 = 'Digest realm="a cam", nonce="m"'
BY_SHA = 'Digest realm="a cam", nonce="abc", algorithm=SHA-256, qop="auth"'
OLD_SHA = 'Digest realm="a cam", nonce="abc", algorithm="SHA-256", opaque="o"'


@pytest.mark.parametrize("low_delay", [True, False])
@pytest.mark.parametrize("offered", [[BY_SHA], [OLD_SHA], [BY_MD5, BY_SHA], ['Basic realm="a cam"', BY_SHA]])
def test_sha256_is_answered(offered: list[str], low_delay: bool) -> None:
    with guard(*offered) as door:
        right = f"rtsp://admin:{PASSWORD}@127.0.0.1:{door.port}/live"
        with pytest.raises(SourceError, match="404 Not Found"):  # so it was let in
            open_capture(CaptureConfig(right, low_delay=low_delay))
        door.tries.clear()
        wrong = f"rtsp://admin:no{PASSWORD}@127.0.0.1:{door.port}/live"
        with pytest.raises(SourceError, match=r"401 .*; check its user and password") as refused:
            open_capture(CaptureConfig(wrong, low_delay=low_delay))
        assert len(door.tries) == 1  # cameras lock out who tries often
    assert "cr!t" not in str(refused.value)


@pytest.mark.parametrize(
    ("user", "challenge", "remedy"),
    [
        ("a:x@", 'Digest realm="a", nonce="b", algorithm=SHA-512-256', "it asks for SHA-512-256, which"),
        ("a:x@", 'Bearer realm="a"', "it asks for Bearer, which FFmpeg cannot answer: set it to digest"),
        ("", BY_SHA, "it asks for a user and password: rtsp://USER:PASSWORD@"),
        ("", 'Basic realm="a"', "it asks for a user and password: rtsp://USER:PASSWORD@"),
    ],
)  # fmt: skip
def test_what_a_camera_asks_for_is_named(user: str, challenge: str, remedy: str) -> None:
    with guard(challenge) as door, pytest.raises(SourceError, match=f"; {remedy}"):
        open_capture(CaptureConfig(f"rtsp://{user}127.0.0.1:{door.port}/live"))


def test_the_example_of_the_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 7616, 3.9.1."""
    own = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
    monkeypatch.setattr(secrets, "token_hex", lambda _: own)
    login = Login("rtsp://Mufasa:Circle of Life@cam/live")
    asked = (
        b'RTSP/1.0 401 Unauthorized\r\nCSeq: 2\r\nWWW-Authenticate: Digest realm="http-auth@example.org", '
        b'qop="auth, auth-int", algorithm=SHA-256, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", '
        b'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"\r\n\r\n'
    )
    request = b"GET /dir/index.html RTSP/1.0\r\nAuthorization: x\r\n\r\n"
    assert login.request(request) == request
    shown = login.answer(asked)
    assert b"SHA-256" not in shown and shown.count(b"WWW-Authenticate: Digest realm=") == 1
    assert shown.startswith(b"RTSP/1.0 401 Unauthorized\r\nCSeq: 2\r\n") and shown.endswith(b"\r\n\r\n")
    answered = login.request(request)
    assert b'response="753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"' in answered
    assert answered.count(b"\r\n") == 3 and answered.endswith(b"\r\n\r\n")


@pytest.mark.system
@pytest.mark.parametrize("low_delay", [True, False])
def test_a_real_server_behind_sha256(low_delay: bool) -> None:
    port = free_port()
    with rtsp_server(port), guard(BY_MD5, BY_SHA, behind=port) as door:
        source = f"rtsp://admin:{PASSWORD}@127.0.0.1:{door.port}/live"
        with contextlib.closing(open_capture(CaptureConfig(source, low_delay=low_delay))) as capture:
            for _ in range(30):
                capture.grab()
            assert capture.retrieve().shape == (288, 384, 3)
        counts = [re.search("nc=([0-9a-f]{8})", text) for text in door.tries]
        assert [count and int(count[1], 16) for count in counts] == list(range(1, len(counts) + 1))
        assert len(counts) >= 3  # DESCRIBE, SETUP, PLAY


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["rtsp", "rtsps"])
def test_a_password_is_taken_as_typed_and_never_shown(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTSP_USER", "admin")
    monkeypatch.setenv("RTSP_PASSWORD", PASSWORD)
    if scheme == "rtsps":
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("no openssl to make a certificate with")
        certificate = tmp_path / "both.pem"
        make = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -batch"
        files = "-keyout both.pem -out cert.pem"
        subprocess.run(
            [openssl, *make.split(), *files.split()], cwd=tmp_path, check=True, capture_output=True
        )
        certificate.write_bytes(certificate.read_bytes() + (tmp_path / "cert.pem").read_bytes())
        monkeypatch.setenv("RTSP_CERTIFICATE", str(certificate))
    port = free_port()
    with rtsp_server(port):
        for low_delay in (True, False):
            source = f"{scheme}://admin:{PASSWORD}@127.0.0.1:{port}/live"
            config = CaptureConfig(source, low_delay=low_delay)
            assert config.label == f"{scheme}://127.0.0.1:{port}/live"
            capture = open_capture(config)
            capture.grab()
            assert capture.retrieve().shape == (288, 384, 3)
            capture.close()
        wrong = CaptureConfig(f"{scheme}://admin:no{PASSWORD}@127.0.0.1:{port}/live")
        with pytest.raises(SourceError, match="check its user and password") as refused:
            open_capture(wrong)
    assert "cr!t" not in str(refused.value) and str(refused.value).startswith(wrong.label)
