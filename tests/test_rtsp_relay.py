"""The relay before FFmpeg: what it passes on, bit by bit, and that frames come earlier by it."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest
from helpers_live import free_port, made_at, rtsp_server, scores, take

from grmp_edge.bundle import Bundle
from grmp_edge.runtime.live.config import CameraConfig
from grmp_edge.runtime.live.events import CameraState
from grmp_edge.runtime.live.live import Live
from grmp_edge.runtime.scorer import Scorer
from grmp_edge.runtime.video.rtsp import RtspRelay, _Connection, with_delimiters

SDP = b"v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 %b/90000\r\nm=audio 0 RTP/AVP 0\r\n"
DESCRIBE = b"RTSP/1.0 200 OK\r\nCSeq: 3\r\nContent-Length: %d\r\n\r\n%b"


def rtp(
    number: int, stamp: int, payload: bytes, marker: bool = False, kind: int = 96, channel: int = 0
) -> bytes:
    """An interleaved RTP packet, written down from RFC 3550 5.1 and RFC 2326 10.12."""
    head = bytes([0x80, kind | (0x80 if marker else 0)]) + number.to_bytes(2, "big")
    packet = head + stamp.to_bytes(4, "big") + b"SSRC" + payload
    return b"$" + bytes([channel]) + len(packet).to_bytes(2, "big") + packet


def greeting(name: bytes = b"H264") -> bytes:
    body = SDP % name
    return DESCRIBE % (len(body), body)


@pytest.mark.parametrize(("name", "delimiter"), [(b"H264", b"\x09\xf0"), (b"h265", b"\x46\x01\x50")])
def test_a_delimiter_behind_each_frame_and_no_gap_in_the_numbers(name: bytes, delimiter: bytes) -> None:
    sound, rtcp = rtp(7, 1, b"s" * 160, True, 0, 2), b"$\x01\x00\x04\x80\xc8\x00\x00"
    sent = [
        greeting(name),
        rtp(65533, 4294963000, b"a" * 900), rtp(65534, 4294963000, b"b" * 30, marker=True),
        sound, rtcp,
        rtp(65535, 4294966000, b"c", marker=True),
        rtp(0, 1704, b"d" * 900), rtp(1, 1704, b"e", marker=True),
    ]  # fmt: skip
    expected = [
        greeting(name),
        rtp(65533, 4294963000, b"a" * 900), rtp(65534, 4294963000, b"b" * 30, marker=True),
        rtp(65535, 4294963000, delimiter),  # how far it is to the next is not known yet
        sound, rtcp,
        rtp(0, 4294966000, b"c", marker=True), rtp(1, 1704, delimiter),  # 3000 on, past the end of 32 bits
        rtp(2, 1704, b"d" * 900), rtp(3, 1704, b"e", marker=True), rtp(4, 4704, delimiter),
    ]  # fmt: skip
    stream = b"".join(sent)
    for size in (len(stream), 1000, 7, 1):  # cut by the network anywhere
        state, data, out = _Connection(trial=0), bytearray(), b""
        for start in range(0, len(stream), size):
            data += stream[start : start + size]
            out += with_delimiters(data, state)
        assert out == b"".join(expected)
        assert not data


A, B, C, D = 900, 3900, 6900, 9900
UNSOUND = {
    "a frame without a marker": [(A, True), (B, False), (C, False), (C, True), (D, True)],
    "a marker amid a frame": [(A, True), (B, True), (B, True), (C, True), (D, True)],
    "time stamps that go back": [(A, True), (C, True), (B, True), (D, True)],
}


@pytest.mark.parametrize("name", UNSOUND)
def test_a_camera_whose_marker_bits_mean_nothing_is_left_as_it_is(name: str) -> None:
    state = _Connection(trial=0)
    with_delimiters(bytearray(greeting()), state)
    added = 0
    for number, (stamp, marker) in enumerate(UNSOUND[name]):
        found = with_delimiters(bytearray(rtp(number, stamp, b"p", marker)), state)
        if number >= 2:  # where it shows; numbers still go on without a gap
            assert found == rtp(number + added, stamp, b"p", marker)
        else:
            added += len(found) > len(rtp(number, stamp, b"p", marker))
    assert added >= 1


def test_marker_bits_are_tried_before_they_are_relied_on() -> None:
    state = _Connection(trial=2)
    with_delimiters(bytearray(greeting()), state)
    sizes = []
    for number, stamp in enumerate((A, B, C, D)):
        packet = rtp(number, stamp, b"p", True)
        sizes.append(len(with_delimiters(bytearray(packet), state)) - len(packet))
    assert sizes[:2] == [0, 0]
    assert sizes[2] == sizes[3] > 0


def test_a_camera_that_sends_its_packets_beside_the_connection_is_opened_without_a_relay() -> None:
    reply = b"RTSP/1.0 200 OK\r\nCSeq: 4\r\nTransport: RTP/AVP;unicast;client_port=5000-5001\r\n\r\n"
    config = CameraConfig("rtsp://u:p@127.0.0.1:1/beside", "gate")
    assert RtspRelay.helps(config)
    with socket.create_server(("127.0.0.1", 0)) as camera:
        config = replace(config, source=f"rtsp://u:p@127.0.0.1:{camera.getsockname()[1]}/beside")
        relay = RtspRelay(config)
        relay.connect()
        try:
            client = socket.create_connection(("127.0.0.1", urlsplit(relay.url).port or 0), 5)
            with client, camera.accept()[0] as peer:
                peer.sendall(reply)
                client.settimeout(5)
                assert client.recv(1 << 16) == reply
                assert client.recv(1 << 16) == b""  # ended, so that it is opened again
        finally:
            relay.close()
    assert not RtspRelay.helps(config)


def test_which_cameras_it_is_for() -> None:
    def helps(source: str, **settings: object) -> bool:
        return RtspRelay.helps(CameraConfig(source, **settings))  # type: ignore[arg-type]

    assert helps("rtsp://host/a")
    assert not helps("rtsps://host/a")
    assert not helps("rtsp://host/a", policy="every")
    assert helps("rtsp://host/a", policy="every", low_delay=True)
    assert not helps("rtsp://host/a", low_delay=False)


def test_other_codecs_pass_as_they_are() -> None:
    stream = greeting(b"JPEG") + rtp(1, 1, b"a", marker=True)
    assert with_delimiters(bytearray(stream), _Connection()) == stream


def test_what_is_no_rtsp_is_refused() -> None:
    with pytest.raises(ValueError, match="does not speak RTSP"):
        with_delimiters(bytearray(b"x" * 100_000), _Connection())
    with pytest.raises(ValueError, match="without an end"):
        with_delimiters(bytearray(b"RTSP/1.0 200 OK\r\nContent-Length: 999999999\r\n\r\n"), _Connection())


def test_the_address_keeps_its_user_and_path() -> None:
    for source, user, path in (
        ("rtsp://me:p%40ss@10.255.255.1:8554/live?channel=2", "me:p%40ss", "/live?channel=2"),
        ("rtsp://me:a/b:c@host/live", "me:a%2Fb%3Ac", "/live"),  # as typed; escaped by the program
    ):
        relay = RtspRelay(CameraConfig(source))
        try:
            assert relay.url.startswith(f"rtsp://{user}@127.0.0.1:")
            assert relay.url.endswith(path)
        finally:
            relay.close()


@pytest.mark.system
def test_a_frame_does_not_wait_for_the_next(tiny_bundle: Bundle) -> None:
    """At two frames a second the wait is 500 ms, which no load on the machine can hide."""
    ages = {}
    port = free_port()
    with rtsp_server(port, 384, 288, 2), Scorer.open(tiny_bundle, threads=1) as scorer:
        for low_delay in (False, True):
            camera = CameraConfig(f"rtsp://u:p@127.0.0.1:{port}/live", "gate", low_delay=low_delay)
            found: list[float] = []
            with Live(scorer, [camera]) as live:

                def enough(seen: list[object], found: list[float] = found) -> bool:
                    if len(scores(seen)) > len(found):  # type: ignore[arg-type]
                        found.append(time.monotonic() - made_at(scores(seen)[-1].image))  # type: ignore[arg-type]
                    return len(found) >= 11

                events = take(live, enough, 60.0)  # type: ignore[arg-type]
                assert live.status()[0].stats.state is CameraState.RUNNING
                assert live.status()[0].stats.damaged == 0
            ages[low_delay] = float(np.median(found[6:]))
            numbers = [event.score.frame for event in scores(events)]
            assert numbers == sorted(set(numbers))  # type: ignore[type-var]
    assert ages[False] >= 0.5
    assert ages[True] < 0.4
