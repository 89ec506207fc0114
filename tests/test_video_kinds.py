"""Videos of many kinds, made by the ffmpeg program: our frames against its own, pixel by pixel.

python tests/test_video_kinds.py      prints the table of differences
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from grmp_edge.runtime.video.decoder import VideoFile

UInt8Array = npt.NDArray[np.uint8]

pytestmark = pytest.mark.system

SIZE = "176x144"
SOURCE = ["-f", "lavfi", "-i", f"testsrc2=s={SIZE}:r=10:d=1.5"]
SOUND = ["-f", "lavfi", "-i", "sine=d=1.5"]
X264 = ["-c:v", "libx264", "-preset", "ultrafast"]
TAGS_709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
TAGS_2020 = ["-colorspace", "bt2020nc", "-color_primaries", "bt2020"]
INTERLACED = ["-flags", "+ildct+ilme", "-vf", "interlace=scan=tff"]

# name: (suffix, arguments of the ffmpeg program after the source)
KINDS: dict[str, tuple[str, list[str]]] = {
    "H.264": ("mp4", [*X264, "-pix_fmt", "yuv420p"]),
    "H.264, B frames": ("mkv", ["-c:v", "libx264", "-bf", "3", "-pix_fmt", "yuv420p"]),
    "H.264, open GOP": ("ts", ["-c:v", "libx264", "-g", "5", "-bf", "2", "-x264opts", "open-gop=1"]),
    "H.264, BT.709": ("mp4", [*X264, "-pix_fmt", "yuv420p", *TAGS_709]),
    "H.264, BT.601": ("mp4", [*X264, "-pix_fmt", "yuv420p", "-colorspace", "bt470bg"]),
    "H.264, full range": ("mp4", [*X264, "-vf", "scale=out_range=full", "-pix_fmt", "yuvj420p"]),
    "H.264, full range, BT.709": ("mp4", [*X264, "-pix_fmt", "yuvj420p", *TAGS_709]),
    "H.264, 4:2:2": ("mp4", [*X264, "-pix_fmt", "yuv422p"]),
    "H.264, 4:4:4": ("mp4", [*X264, "-pix_fmt", "yuv444p"]),
    "H.264, RGB": ("mkv", ["-c:v", "libx264rgb", "-preset", "ultrafast", "-pix_fmt", "rgb24"]),
    "H.264, grey": ("mp4", [*X264, "-pix_fmt", "gray"]),
    "H.264, 10 bits": ("mp4", [*X264, "-pix_fmt", "yuv420p10le"]),
    "H.264, interlaced": ("mp4", [*X264, "-pix_fmt", "yuv420p", *INTERLACED]),
    "H.264, interlaced, bottom field first": (
        "ts",
        [*X264, "-pix_fmt", "yuv420p", "-flags", "+ildct+ilme", "-vf", "interlace=scan=bff"],
    ),
    "H.264, odd size": ("mkv", [*X264, "-pix_fmt", "yuv444p", "-vf", "crop=175:143"]),
    "H.264, cropped in its header": ("mp4", [*X264, "-pix_fmt", "yuv420p", "-vf", "crop=170:130"]),
    "H.264, fragments": ("mp4", [*X264, "-movflags", "frag_keyframe+empty_moov", "-g", "5"]),
    "H.264, with sound": ("mp4", [*SOUND, *X264, "-c:a", "aac", "-pix_fmt", "yuv420p"]),
    "H.264, FLV": ("flv", [*X264, "-pix_fmt", "yuv420p"]),
    "H.264, rotated by 90": ("mp4", ["ROTATE", "90"]),
    "H.264, rotated by 180": ("mp4", ["ROTATE", "180"]),
    "H.264, rotated by 270": ("mp4", ["ROTATE", "270"]),
    "H.264, variable rate": (
        "mp4",
        [*X264, "-vf", "select='not(mod(n,4)*mod(n,3))'", "-fps_mode", "vfr", "-pix_fmt", "yuv420p"],
    ),
    "H.264, edit list": ("mp4", ["CUT"]),
    "HEVC": ("mp4", ["-c:v", "libx265", "-x265-params", "log-level=error", "-preset", "ultrafast"]),
    "HEVC, 10 bits, BT.2020": (
        "mkv",
        ["-c:v", "libx265", "-x265-params", "log-level=error", "-pix_fmt", "yuv420p10le", *TAGS_2020],
    ),
    "HEVC, 10 bits, HDR (PQ)": (
        "mp4",
        ["-c:v", "libx265", "-x265-params", "log-level=error", "-pix_fmt", "yuv420p10le", *TAGS_2020,
         "-color_trc", "smpte2084"],
    ),
    "HEVC, 4:2:2, 12 bits": (
        "mp4",
        ["-c:v", "libx265", "-x265-params", "log-level=error", "-pix_fmt", "yuv422p12le"],
    ),
    "AV1": ("mp4", ["-c:v", "libsvtav1", "-preset", "10"]),
    "AV1, 10 bits": ("webm", ["-c:v", "libaom-av1", "-cpu-used", "8", "-pix_fmt", "yuv420p10le"]),
    "VP8": ("webm", ["-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "10"]),
    "VP8, with alpha": ("webm", ["-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0"]),
    "VP9": ("webm", ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"]),
    "VP9, 4:4:4": ("webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "yuv444p", "-cpu-used", "8"]),
    "ProRes 422": ("mov", ["-c:v", "prores_ks", "-profile:v", "2"]),
    "ProRes 4444 with alpha": ("mov", ["-c:v", "prores_ks", "-profile:v", "4", "-pix_fmt", "yuva444p10le"]),
    "ProRes, interlaced": ("mov", ["-c:v", "prores_ks", *INTERLACED]),
    "DNxHR": ("mov", ["-c:v", "dnxhd", "-profile:v", "dnxhr_sq", "-s", "256x144", "-pix_fmt", "yuv422p"]),
    "MPEG-1": ("mpg", ["-c:v", "mpeg1video", "-r", "25"]),
    "MPEG-2": ("ts", ["-c:v", "mpeg2video", "-r", "25", "-bf", "2"]),
    "MPEG-2, interlaced": ("mpg", ["-c:v", "mpeg2video", "-r", "25", *INTERLACED]),
    "MPEG-2, 4:2:2": ("ts", ["-c:v", "mpeg2video", "-r", "25", "-pix_fmt", "yuv422p"]),
    "MPEG-4": ("avi", ["-c:v", "mpeg4"]),
    "MPEG-4, B frames": ("avi", ["-c:v", "mpeg4", "-bf", "2"]),
    "MPEG-4, MP4": ("mp4", ["-c:v", "mpeg4", "-bf", "1"]),
    "DV": ("avi", ["-c:v", "dvvideo", "-s", "720x576", "-r", "25", "-pix_fmt", "yuv420p"]),
    "MJPEG": ("avi", ["-c:v", "mjpeg", "-pix_fmt", "yuvj422p"]),
    "MJPEG, bare": ("mjpeg", ["-c:v", "mjpeg", "-f", "mjpeg"]),
    "H.263": ("3gp", ["-c:v", "h263"]),
    "Sorenson": ("flv", ["-c:v", "flv1"]),
    "WMV 2": ("wmv", ["-c:v", "wmv2"]),
    "Theora": ("ogv", ["-c:v", "libtheora"]),
    "FFV1, 16 bits": ("mkv", ["-c:v", "ffv1", "-pix_fmt", "yuv444p16le"]),
    "FFV1, grey, 12 bits": ("mkv", ["-c:v", "ffv1", "-pix_fmt", "gray12le"]),
    "HuffYUV": ("avi", ["-c:v", "huffyuv", "-pix_fmt", "yuv422p"]),
    "uncompressed BGR": ("avi", ["-c:v", "rawvideo", "-pix_fmt", "bgr24"]),
    "uncompressed YUV 4:2:2": ("mov", ["-c:v", "rawvideo", "-pix_fmt", "uyvy422"]),
    "PNG": ("mov", ["-c:v", "png", "-pix_fmt", "rgb24"]),
    "palette": ("mov", ["-c:v", "rawvideo", "-pix_fmt", "pal8"]),
    "two video tracks": ("mkv", ["TRACKS"]),
    "with a cover": ("mp4", ["COVER"]),
    "time stamps that jump": ("ts", ["JUMP"]),
    "the same again behind it": ("ts", ["AGAIN"]),
    "a size that changes": ("ts", ["SIZES"]),
}  # fmt: skip


def ffmpeg(*arguments: object) -> None:
    run = subprocess.run(
        ["ffmpeg", "-v", "error", "-y", *map(str, arguments)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def make(name: str, folder: Path) -> Path:
    """The video of a kind."""
    suffix, arguments = KINDS[name]
    path = folder / f"video.{suffix}"
    plain = [*X264, "-pix_fmt", "yuv420p"]
    match arguments:
        case ["ROTATE", angle]:
            ffmpeg(*SOURCE, *plain, folder / "plain.mp4")
            ffmpeg("-i", folder / "plain.mp4", "-c", "copy", "-metadata:s:v", f"rotate={angle}", path)
        case ["CUT"]:
            ffmpeg(*SOURCE, *plain, "-g", "20", "-bf", "2", folder / "plain.mp4")
            ffmpeg("-ss", "0.75", "-i", folder / "plain.mp4", "-c", "copy", path)
        case ["TRACKS"]:
            other = ["-f", "lavfi", "-i", "color=red:s=320x240:r=10:d=1"]
            ffmpeg(*SOURCE, *other, "-map", "0", "-map", "1", *plain, "-disposition", "0", path)
        case ["COVER"]:
            ffmpeg("-f", "lavfi", "-i", "color=blue:s=640x480", "-frames:v", "1", folder / "cover.png")
            both = ["-map", "1", "-map", "0", "-c:v:0", "png", "-disposition:v:0", "attached_pic"]
            ffmpeg(*SOURCE, "-i", folder / "cover.png", *both, "-c:v:1", "libx264", path)
        case ["JUMP"] | ["AGAIN"]:
            offsets = (0, 50_000) if arguments == ["JUMP"] else (30, 0)
            for part, offset in enumerate(offsets):
                ffmpeg(*SOURCE, *plain, "-output_ts_offset", offset, folder / f"{part}.ts")
            path.write_bytes(b"".join((folder / f"{part}.ts").read_bytes() for part in (0, 1)))
        case ["SIZES"]:
            for part, size in enumerate((SIZE, "320x180")):
                ffmpeg(*SOURCE, *plain, "-s", size, folder / f"{part}.ts")
            path.write_bytes(b"".join((folder / f"{part}.ts").read_bytes() for part in (0, 1)))
        case _:
            ffmpeg(*SOURCE, *arguments, path)
    return path


def reference(path: Path) -> list[UInt8Array]:
    """What the ffmpeg program makes of it, RGB; its frames have one size."""
    pictures = ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    run = subprocess.run(["ffmpeg", "-v", "quiet", "-i", str(path), *pictures], capture_output=True)
    frames, rest = [], run.stdout
    while rest:
        magic, size, levels, rest = rest.split(b"\n", 3)
        assert (magic, levels) == (b"P6", b"255")
        width, height = map(int, size.split())
        frames.append(np.frombuffer(rest[: 3 * width * height], np.uint8).reshape(height, width, 3))
        rest = rest[3 * width * height :]
    return frames


def compare(path: Path) -> dict[str, Any]:
    """How far our frames are from the ffmpeg program's."""
    video = VideoFile(path)
    times, differences, sizes = [], [], set()
    theirs = reference(path)
    try:
        for raw in video.frames():
            image = raw.convert()[:, :, ::-1]
            times.append(raw.time_s)
            sizes.add(image.shape)
            if raw.index < len(theirs) and theirs[raw.index].shape == image.shape:
                difference = np.abs(image.astype(int) - theirs[raw.index])
                differences.append(float(difference.mean()))
    finally:
        video.close()
    return {
        "frames": len(times), "of": len(theirs), "compared": len(differences), "sizes": sizes,
        "times": times, "errors": video.errors, "damaged": video.damaged, "mean": max(differences),
    }  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_of_the_ffmpeg_program(name: str, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.fail("apt-get install ffmpeg")
    result = compare(make(name, tmp_path))
    assert result["frames"] == result["of"] > 0
    assert (result["errors"], result["damaged"]) == ([], [])
    assert result["mean"] < 1.0  # of 255 levels, of the worst frame
    times = result["times"]
    assert times[0] == 0.0 and all(a < b for a, b in itertools.pairwise(times))
    assert times[-1] < 4.0
    if name != "a size that changes":
        assert result["compared"] == result["frames"]
    if "rotated" in name:
        assert result["sizes"] == {(144, 176, 3) if "180" in name else (176, 144, 3)}


def probed(path: Path) -> list[float]:
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-of", "json", "-show_entries",
               "frame=best_effort_timestamp_time", str(path)]  # fmt: skip
    run = subprocess.run(command, capture_output=True, check=True)
    return [float(frame["best_effort_timestamp_time"]) for frame in json.loads(run.stdout)["frames"]]


@pytest.mark.parametrize("name", ["H.264, variable rate", "H.264, B frames", "MPEG-2, interlaced", "VP9"])
def test_times_are_those_of_the_container(name: str, tmp_path: Path) -> None:
    path = make(name, tmp_path)
    theirs = np.array(probed(path))
    np.testing.assert_allclose(compare(path)["times"], theirs - theirs[0], atol=1e-3)


if __name__ == "__main__":
    print("| kind | frames, of | worst frame's mean difference (levels) | |\n|---|---|---|---|")
    for kind in sys.argv[1:] or KINDS:
        with tempfile.TemporaryDirectory() as made:
            try:
                row = compare(make(kind, Path(made)))
            except Exception as error:  # one kind must not hide the others
                print(f"| {kind} | | | {type(error).__name__}: {str(error)[:200]!r} |")
                continue
            notes = "; ".join(row["errors"]) + f" damaged {row['damaged']}" * bool(row["damaged"])
            if row["compared"] != row["frames"]:
                notes += f" compared {row['compared']}"
            print(f"| {kind} | {row['frames']}, {row['of']} | {row['mean']:.3f} | {notes} |", flush=True)
