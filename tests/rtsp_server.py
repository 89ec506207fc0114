"""A real RTSP server for the tests: H.264 whose picture carries the monotonic time it was made at.

Run by the system's Python (it needs GStreamer's bindings, and nothing else):
    python3 rtsp_server.py PORT [WIDTH] [HEIGHT] [FPS] [B_FRAMES] [ADDRESS]
RTSP_USER and RTSP_PASSWORD in its environment let that user in alone, by digest; RTSP_CERTIFICATE is for rtsps://.
Prints "ready" when it listens. The lowest 32 rows are 48 columns of blocks, the bits of time.monotonic() in
milliseconds, highest first; the 32 above are the frame's number, counted for each viewer; above them is a
random texture that moves. SIGUSR1 changes the size to half as
wide and back, within the running stream.
"""

import os
import signal
import sys
import time
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
gi.require_version("GstRtsp", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

BITS = 48
ROWS = 32


def drawn(value: int, width: int) -> bytes:
    """One row with a number in it."""
    block = width // BITS
    bits = b"".join((b"\xeb" if value >> (BITS - 1 - bit) & 1 else b"\x10") * block for bit in range(BITS))
    return bits + b"\x10" * (width - len(bits))


def picture(width: int, height: int, texture: bytes, count: int) -> bytes:
    """One I420 frame as bytes."""
    start = count * 8 % 4096
    luma = texture[start : start + width * (height - 2 * ROWS)]
    luma += drawn(count, width) * ROWS + drawn(round(time.monotonic() * 1000), width) * ROWS
    return luma + b"\x80" * (width * height // 2)


class Factory(GstRtspServer.RTSPMediaFactory):  # type: ignore[misc]
    """Makes the pipeline of each viewer."""

    def __init__(self, width: int, height: int, fps: int, b_frames: int) -> None:
        super().__init__()
        self.width, self.height, self.fps, self.b_frames = width, height, fps, b_frames
        cell = os.urandom(4096 // 16)
        line = b"".join(bytes([40 + value * 160 // 255]) * 16 for value in cell)
        self.texture = line * (width * height // len(line) + 3)

    def caps(self) -> str:
        """What the pictures are now."""
        return f"video/x-raw,format=I420,width={self.width},height={self.height},framerate={self.fps}/1"

    def do_create_element(self, url: object) -> Any:
        """The pipeline of one viewer."""
        speed = f"bframes={self.b_frames} rc-lookahead=0 sync-lookahead=0" if self.b_frames else ""
        return Gst.parse_launch(
            f"( appsrc name=source is-live=true do-timestamp=true format=time caps={self.caps()} "
            f"! x264enc {speed or 'tune=zerolatency'} speed-preset=ultrafast "
            f"key-int-max={self.fps} bitrate=2000 "
            "! rtph264pay name=pay0 pt=96 config-interval=1 )"
        )

    def do_configure(self, media: Any) -> None:
        """Feed the viewer's pipeline by the clock."""
        source = media.get_element().get_child_by_name("source")
        count, size = [0], [(self.width, self.height)]

        def push() -> bool:
            if size[0] != (self.width, self.height):
                size[0] = (self.width, self.height)
                source.set_property("caps", Gst.Caps.from_string(self.caps()))
            data = picture(self.width, self.height, self.texture, count[0])
            count[0] += 1
            return bool(source.emit("push-buffer", Gst.Buffer.new_wrapped(data)) == Gst.FlowReturn.OK)

        timer = GLib.timeout_add(round(1000 / self.fps), push)
        media.connect("unprepared", lambda _: GLib.source_remove(timer) if timer else None)


def guard(server: Any, factory: Any, user: str, password: str, certificate: str) -> None:
    """Let one user in, by digest; with a certificate (PEM, its key in it), over TLS."""
    role, access = "viewer", GstRtspServer.RTSPPermissions()
    for name in (
        GstRtspServer.RTSP_PERM_MEDIA_FACTORY_ACCESS,
        GstRtspServer.RTSP_PERM_MEDIA_FACTORY_CONSTRUCT,
    ):
        access.add_permission_for_role(role, name, True)
    factory.set_permissions(access)
    token = GstRtspServer.RTSPToken()
    token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, role)
    auth = GstRtspServer.RTSPAuth()
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    auth.add_digest(user, password, token)
    if certificate:
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(certificate))
    server.set_auth(auth)


def main() -> None:
    """Serve rtsp://ADDRESS:PORT/live until killed."""
    port, *rest = sys.argv[1:]
    address = rest.pop() if len(rest) == 5 else "127.0.0.1"
    width, height, fps, b_frames = (*map(int, rest), *(384, 288, 15, 0)[len(rest) :])
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address(address)
    server.set_service(port)
    factory = Factory(width, height, fps, b_frames)
    if user := os.environ.get("RTSP_USER"):
        guard(server, factory, user, os.environ["RTSP_PASSWORD"], os.environ.get("RTSP_CERTIFICATE", ""))
    server.get_mount_points().add_factory("/live", factory)
    if server.attach(None) == 0:
        sys.exit(f"cannot listen on {port}")

    def resize() -> bool:
        factory.width = width if factory.width != width else width // 2
        return True

    GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGUSR1, resize)
    print("ready", flush=True)
    GLib.MainLoop().run()


main()
