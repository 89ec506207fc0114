"""A real RTSP server for the tests: H.264 whose picture carries the monotonic time it was made at.

Run by the system's Python (it needs GStreamer's bindings, and nothing else):
    python3 rtsp_server.py PORT [WIDTH] [HEIGHT] [FPS]
Prints "ready" when it listens. The lowest 32 rows are 48 columns of blocks, the bits of time.monotonic() in
milliseconds, highest first; above them is a random texture that moves.
"""

import os
import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

BITS = 48
ROWS = 32


def picture(width, height, texture, count):
    """One I420 frame as bytes."""
    stamp = round(time.monotonic() * 1000)
    block = width // BITS
    bits = b"".join((b"\xeb" if stamp >> (BITS - 1 - bit) & 1 else b"\x10") * block for bit in range(BITS))
    bits += b"\x10" * (width - len(bits))
    start = count * 8 % 4096
    luma = texture[start : start + width * (height - ROWS)] + bits * ROWS
    return luma + b"\x80" * (width * height // 2)


class Factory(GstRtspServer.RTSPMediaFactory):
    """Makes the pipeline of each viewer."""

    def __init__(self, width, height, fps):
        super().__init__()
        self.width, self.height, self.fps = width, height, fps
        cell = os.urandom(4096 // 16)
        line = b"".join(bytes([40 + value * 160 // 255]) * 16 for value in cell)
        self.texture = line * (width * height // len(line) + 3)

    def do_create_element(self, url):
        """The pipeline of one viewer."""
        return Gst.parse_launch(
            f"( appsrc name=source is-live=true do-timestamp=true format=time caps=video/x-raw,format=I420,"
            f"width={self.width},height={self.height},framerate={self.fps}/1 "
            f"! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={self.fps} bitrate=2000 "
            "! rtph264pay name=pay0 pt=96 config-interval=1 )"
        )

    def do_configure(self, media):
        """Feed the viewer's pipeline by the clock."""
        source = media.get_element().get_child_by_name("source")
        count = [0]

        def push():
            data = picture(self.width, self.height, self.texture, count[0])
            count[0] += 1
            return source.emit("push-buffer", Gst.Buffer.new_wrapped(data)) == Gst.FlowReturn.OK

        timer = GLib.timeout_add(round(1000 / self.fps), push)
        media.connect("unprepared", lambda _: GLib.source_remove(timer) if timer else None)


def main():
    """Serve rtsp://127.0.0.1:PORT/live until killed."""
    port, *rest = sys.argv[1:]
    width, height, fps = (*map(int, rest), *(384, 288, 15)[len(rest) :])
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/live", Factory(width, height, fps))
    if server.attach(None) == 0:
        sys.exit(f"cannot listen on {port}")
    print("ready", flush=True)
    GLib.MainLoop().run()


main()
