"""A real RTSP server that asks for a password, by digest, plain and over TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers_live import free_port, rtsp_server

from grmp_edge.errors import SourceError
from grmp_edge.runtime.video.capture import open_capture
from grmp_edge.runtime.video.config import CaptureConfig

pytestmark = pytest.mark.system

PASSWORD = "Se/cr!t 1@#\"ä%?'"


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
