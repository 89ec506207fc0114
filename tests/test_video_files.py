"""Video files that once were read wrong: each made here, with what is right."""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from conftest import make_image, write_clip

from grmp_edge.errors import SourceError
from grmp_edge.runtime.video import decoder
from grmp_edge.runtime.video.decoder import FrameClock
from grmp_edge.runtime.video.files import Frame, Sampling, read_video
from grmp_edge.runtime.video.opencv_file import OpenCvFile

av = pytest.importorskip("av")

UInt8Array = npt.NDArray[np.uint8]
HEIGHT, WIDTH = 96, 128


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> UInt8Array:
    """Smooth enough that codecs keep it, and different from its neighbours."""
    small = make_image(4, 6, seed)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def encode(
    path: Path, pictures: list[UInt8Array], codec: str = "libx264", gop: int = 5, rate: int = 10,
    start: int = 0, options: dict[str, str] | None = None, interlaced: bool = False,
    container: dict[str, str] | None = None, stamps: list[int] | None = None, pix_fmt: str = "yuv420p",
) -> Path:  # fmt: skip
    """A video by PyAV; ``start`` is the first time stamp in frames."""
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w", container_options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.gop_size = gop
        stream.codec_context.max_b_frames = 0
        stream.options = options or {}
        graph = av.filter.Graph()
        nodes = [graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, rate))]
        nodes += [graph.add("format", pix_fmt)]
        nodes += [graph.add("setfield", "tff" if interlaced else "prog"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        for index, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.time_base = Fraction(1, rate)
            frame.pts = 0
            graph.push(frame)
            frame = graph.pull()
            frame.pts = start + (stamps[index] if stamps else index)
            frame.time_base = Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def read(path: Path, sampling: Sampling | None = None) -> list[Frame]:
    return list(read_video(path, sampling))


def index_of(frame: Frame) -> int:
    assert frame.index is not None
    return frame.index


def off(image: UInt8Array, seed: int) -> float:
    """Mean difference in levels to the picture that was encoded."""
    return float(np.abs(image.astype(int) - picture(seed, *image.shape[:2])).mean())


@pytest.fixture
def pictures() -> list[UInt8Array]:
    return [picture(seed) for seed in range(10)]


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg2video", "ts"), ("libx264", "mp4")])
def test_interlaced(codec: str, suffix: str, tmp_path: Path, pictures: list[UInt8Array]) -> None:
    options = {"flags": "+ildct+ilme", "b": "4M", "x264-params": "tff=1"}
    options = options if codec == "libx264" else {key: options[key] for key in ("flags", "b")}
    path = encode(tmp_path / f"i.{suffix}", pictures, codec, rate=25, options=options, interlaced=True)
    with av.open(str(path)) as video:
        assert next(video.decode(video=0)).interlaced_frame
    frames = read(path)
    assert len(frames) == 10
    assert max(off(frame.rgb(), index_of(frame)) for frame in frames) < 4
    if cv2.__version__.startswith("5."):  # which says that it gave them, and did not
        with pytest.raises(SourceError, match=r"i\.\w+: OpenCV .* gives its first frame twice"):
            OpenCvFile(path)


def test_an_edit_list(tmp_path: Path, pictures: list[UInt8Array]) -> None:
    """Cut without encoding again: packets before the beginning are there, and not shown."""
    path = encode(tmp_path / "cut.mp4", pictures, start=-3, container={"avoid_negative_ts": "disabled"})
    assert path.read_bytes().count(b"elst") == 1
    frames = read(path)
    assert [off(frame.rgb(), seed) < 4 for frame, seed in zip(frames, range(3, 10), strict=True)] == [
        True
    ] * 7
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(7) / 10)


def test_time_stamps_that_jump(tmp_path: Path, pictures: list[UInt8Array]) -> None:
    parts = [encode(tmp_path / f"{at}.ts", pictures, start=at) for at in (0, 900_000)]
    path = tmp_path / "jump.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = read(path)
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(20) / 10)
    assert len(read(path, Sampling(fps=5.0))) == 10


def test_time_stamps_that_restart_with_another_size(tmp_path: Path, pictures: list[UInt8Array]) -> None:
    small = [picture(seed, 48, 64) for seed in range(10)]
    first = encode(tmp_path / "a.ts", pictures, start=50)
    second = encode(tmp_path / "b.ts", small)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    frames = read(path)
    assert [frame.image.shape[:2] for frame in frames] == [(HEIGHT, WIDTH)] * 10 + [(48, 64)] * 10
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(20) / 10)
    assert [frame.index for frame in read(path, Sampling(fps=2.0))] == [0, 5, 10, 15]


def test_a_variable_frame_rate(tmp_path: Path, pictures: list[UInt8Array]) -> None:
    stamps = [0, 1, 2, 10, 11, 40, 41, 42, 400, 401]
    for suffix in ("mp4", "mkv"):
        path = encode(tmp_path / f"vfr.{suffix}", pictures, stamps=stamps)
        assert [frame.time_s for frame in read(path)] == pytest.approx(np.array(stamps) / 10, abs=2e-3)


def test_a_header_that_promises_double(tmp_path: Path) -> None:
    path = tmp_path / "twice.avi"
    write_clip(path, 6, "MJPG")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = data.index(mark) + offset
        assert struct.unpack_from("<I", data, at)[0] == 6
        struct.pack_into("<I", data, at, 12)
    path.write_bytes(data)
    assert len(read(path)) == 6


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [("libsvtav1", "mp4", "yuv420p"), ("libx265", "mkv", "yuv420p10le"), ("prores_ks", "mov", "yuv422p10le"),
     ("libvpx-vp9", "webm", "yuv420p"), ("ffv1", "mkv", "yuv444p16le"), ("mjpeg", "avi", "yuvj422p")],
)  # fmt: skip
def test_codecs(codec: str, suffix: str, pix_fmt: str, tmp_path: Path, pictures: list[UInt8Array]) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = encode(tmp_path / f"v.{suffix}", pictures, codec, pix_fmt=pix_fmt, options=options)
    frames = read(path)
    assert len(frames) == 10
    assert max(off(frame.rgb(), index_of(frame)) for frame in frames) < 6


def test_a_missing_decoder_is_named(
    tmp_path: Path, pictures: list[UInt8Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "v.mp4", pictures)
    real = av.open

    class NoDecoder:
        def __init__(self, stream: object) -> None:
            self.disposition, self.width, self.height = stream.disposition, 1, 1  # type: ignore[attr-defined]
            self.codec_context, self.codec_tag = None, "av01"

    class Container:
        def __init__(self, *arguments: object, **options: object) -> None:
            self.real = real(*arguments, **options)
            self.streams = type(
                "Streams", (), {"video": [NoDecoder(self.real.streams.video[0])], "audio": []}
            )
            self.close = self.real.close

    monkeypatch.setattr(av, "open", Container)
    with pytest.raises(SourceError, match=r"no decoder .* \(codec tag 'av01'\); the file may be sound"):
        read(path)


def sound(path: Path, cover: bool = False) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        image = out.add_stream("mjpeg", rate=1) if cover else None
        if image is not None:
            image.width, image.height, image.pix_fmt = 64, 48, "yuvj420p"
            image.disposition = av.stream.Disposition.attached_pic
        if image is not None:
            frame = av.VideoFrame.from_ndarray(make_image(48, 64), "rgb24")
            out.mux(image.encode(frame.reformat(format="yuvj420p")))
        for at in range(0, 44100, 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 44100, at
            out.mux(stream.encode(silence))
        out.mux(stream.encode(None))
    return path


def test_sound_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="it holds only sound, no picture"):
        read(sound(tmp_path / "a.mp4"))
    with pytest.raises(SourceError, match="it holds sound and a cover picture, but no video"):
        read(sound(tmp_path / "b.mp4", cover=True))


def test_of_two_tracks_the_larger(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as out:
        streams = []
        for height, width in ((48, 64), (HEIGHT, WIDTH)):
            stream = out.add_stream("mjpeg", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
            stream.disposition = av.stream.Disposition(0)
            streams.append(stream)
        for index in range(4):
            for stream in streams:
                image = picture(index, stream.height, stream.width)
                frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuvj420p")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                out.mux(stream.encode(frame))
    assert [frame.image.shape[:2] for frame in read(path)] == [(HEIGHT, WIDTH)] * 4


Corner = tuple[int, int, int, int]
MATRICES: dict[str, tuple[Corner, Callable[[Any], Any]]] = {
    # The first four of (a, b, u, c, d, v, x, y, w), and what numpy does for them:
    "upright": ((1, 0, 0, 1), lambda image: image),
    "90": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "180": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "270": ((0, -1, 1, 0), lambda image: np.rot90(image)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside down, mirrored": ((1, 0, 0, -1), lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    "transposed, 180": ((0, -1, -1, 0), lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_rotation_matrix(name: str, tmp_path: Path, pictures: list[UInt8Array]) -> None:
    """ISO 14496-12, 8.3.2: (x, y) is shown at (a x + c y, b x + d y)."""
    (a, b, c, d), turn = MATRICES[name]
    path = encode(tmp_path / "turned.mp4", pictures[:2])
    plain = [frame.rgb() for frame in read(path)]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    for before, after in zip(plain, read(path), strict=True):
        np.testing.assert_array_equal(after.rgb(), turn(before))


def damaged(path: Path, places: list[float]) -> None:
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 8
    for place in places:
        at = begin + round((len(data) - begin) * place)
        data[at : at + 40] = bytes(value ^ 0x5A for value in data[at : at + 40])
    path.write_bytes(data)


def test_damaged_frames_are_named_and_left_out(tmp_path: Path) -> None:
    noise = [make_image(HEIGHT, WIDTH, seed) for seed in range(20)]
    options = {"x264-params": "scenecut=0"}
    path = encode(tmp_path / "bad.mp4", noise, options=options, container={"movflags": "faststart"})
    whole = [frame.rgb() for frame in read(path)]
    assert len(whole) == 20
    damaged(path, [0.6])
    taken: list[Frame] = []
    with pytest.raises(SourceError, match=r"bad\.mp4: cut short or damaged, .*left out \(\d+") as error:
        taken.extend(read_video(path))
    assert 15 <= len(taken) < 20
    for frame in taken:  # not one of them is anything but whole
        np.testing.assert_array_equal(frame.rgb(), whole[index_of(frame)])
    left_out = sorted(set(range(20)) - {frame.index for frame in taken})
    assert f"left out ({left_out[0]}" in str(error.value)
    assert left_out[-1] % 5 == 4  # up to the next key frame


def test_a_file_cut_short(tmp_path: Path, pictures: list[UInt8Array]) -> None:
    path = encode(tmp_path / "cut.mp4", pictures, gop=3, container={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    taken: list[int] = []
    with pytest.raises(SourceError, match="cut short or damaged"):
        taken.extend(index_of(frame) for frame in read_video(path))
    assert 4 <= len(taken) < 10


def test_a_growing_file_gives_what_is_there(tmp_path: Path, pictures: list[UInt8Array]) -> None:
    """Matroska and MPEG-TS written live; whole clusters and packets."""
    path = encode(tmp_path / "live.mkv", pictures, container={"live": "1"})
    assert len(read(path)) == 10
    path = encode(tmp_path / "live.ts", pictures)
    assert len(read(path)) == 10


def test_errors_that_pyav_keeps_to_itself(tmp_path: Path) -> None:
    """With several frames decoded at once: none may be lost, and none scored twice."""
    noise = [make_image(HEIGHT, WIDTH, seed) for seed in range(40)]
    path = encode(tmp_path / "v.mp4", noise, gop=10, container={"movflags": "faststart"})
    told = 0
    for index in range(1, 8):
        broken = tmp_path / f"{index}.mp4"
        broken.write_bytes(path.read_bytes())
        damaged(broken, [index / 8])
        video = decoder.VideoFile(broken)
        indexes = [raw.index for raw in video.frames()]
        video.close()
        assert indexes == list(range(video.count))
        told += bool(video.errors or video.damaged)
    assert told >= 5  # damage may also make another picture that is as valid


def test_without_pyav(tmp_path: Path, pictures: list[UInt8Array], monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "v.mp4", pictures)
    expected = [frame.rgb() for frame in read(path)]
    monkeypatch.setattr("grmp_edge.runtime.video.files.has_pyav", lambda: False)
    for frame, image in zip(read_video(path), expected, strict=True):
        assert np.abs(frame.rgb().astype(int) - image).mean() < 2
        assert frame.time_s == pytest.approx(index_of(frame) / 10, abs=1e-3)
    still = encode(tmp_path / "still.avi", [picture(1)] * 4, "rawvideo", pix_fmt="bgr24")
    with pytest.raises(SourceError, match=r"gives its first frame twice; install PyAV"):
        list(read_video(still))


def test_frames_do_not_wait_for_the_collector(tmp_path: Path, pictures: list[UInt8Array]) -> None:
    """One of 1080p is 3 MB, and Python looks for circles rarely: cameras would hold hundreds of them."""
    path = encode(tmp_path / "v.mp4", pictures)
    gc.collect()
    gc.disable()
    try:
        assert len(read(path)) == 10
        assert not [one for one in gc.get_objects() if type(one) is av.VideoFrame]
    finally:
        gc.enable()


def test_a_clock_runs_on() -> None:
    clock = FrameClock(0.1, max_step_s=10.0)
    stamps = [5.0, 5.1, 5.3, 900.0, 900.1, 0.0, 0.1, 0.1, None, 0.2]
    times = [clock.step(stamp) for stamp in stamps]
    assert times == pytest.approx([0.0, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert [FrameClock(None).step(None) for _ in range(1)] == [0.0]
    free = FrameClock(None)
    assert [free.step(stamp) for stamp in (0.0, 0.5, None, None)] == pytest.approx([0.0, 0.5, 1.0, 1.5])
