"""All alarms of one camera: its scores, its state, and what its picture shows. One alarm for each fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from grmp_edge.files import Closing
from grmp_edge.runtime.live.alert import SEVERITY, Alert, AlertKind, AlertRule, AlertTracker
from grmp_edge.runtime.live.change import slow_fall
from grmp_edge.runtime.live.memory import (
    ACCEPT,
    BEFORE,
    Memory,
    Usual,
    memory_file,
    read_json,
    write_json,
)
from grmp_edge.runtime.live.no_picture import Verdict
from grmp_edge.runtime.live.parts import Part, Parts, Place
from grmp_edge.score import Tile

if TYPE_CHECKING:
    from grmp_edge.runtime.live.tamper import Tamper

__all__ = ["NEW", "CameraAlarms", "Keeper"]

UInt8Array = npt.NDArray[np.uint8]

_SAVE_S = 900.0  # a crash loses the learning of a quarter of an hour
_CLOSE_S = 5.0
_TELL_S = 3600.0
_HOLD_S = 2.0  # a black or no-signal picture must last this long: some cameras send one at every switch
_BACK_S = 2.0  # and a good one this long to clear it
_FALLEN = 0.04  # least fall that a trend reports
_OTHER = "its memory is of another model"
NEW = "it is new"
_DAMAGED = "its file is damaged"
_OVER = 0.02  # the daily level within this of normal ends a trend


class CameraAlarms:
    """The alarms of one camera. Not thread-safe.

    ``now`` is in monotonic seconds, ``at`` in seconds since 1970.

    While a fault of the camera or its picture is raised, scores raise nothing: it is the same fault.
    """

    def __init__(
        self,
        rule: AlertRule,
        camera: str,
        model: str,
        folder: Path | None = None,
        tamper: Tamper | None = None,
        now: float | None = None,
        write: Callable[[Path, Mapping[str, object]], None] = write_json,
    ) -> None:
        """Read the camera's file in ``folder``, if there is one; None: nothing is kept on disk.

        ``model``: id of the bundle. Another bundle's memory is not used: its scores mean something else.
        ``write`` keeps the file; a busy disk must not hold up the caller.
        """
        self.rule, self._write = rule, write
        self.tracker = AlertTracker(rule)
        self.memory, self.parts = Memory(model), Parts()
        self.tamper = tamper
        self.camera = camera
        self.fresh = ""  # why nothing is remembered
        self.doubts: tuple[str, ...] = ()  # what is wrong with the limits, once its usual score is known
        self._path = None if folder is None else memory_file(folder, camera)
        self._fault: AlertKind | None = None  # of the camera or its picture, raised now
        self._from_picture = False  # found by `tamper`
        self._state: AlertKind | None = None  # what the camera's state asks for
        self._since = 0.0
        self._reported = False  # the camera has said anything since the start
        self._detail = ""
        self._trend: str | None = None  # what it says while it is raised
        self._part: Part | None = None  # that is raised
        self._judged = False  # `doubts` are known
        self._saved = time.monotonic() if now is None else now
        if self._path is not None:
            self._restore(self._saved)

    @property
    def raised(self) -> tuple[AlertKind, ...]:
        """The kinds of alarm raised now."""
        fault: tuple[AlertKind, ...] = () if self._fault is None else (self._fault,)
        slow: tuple[AlertKind, ...] = () if self._trend is None else ("trend",)
        part: tuple[AlertKind, ...] = () if self._part is None else ("part",)
        return fault + self.tracker.raised + slow + part

    @property
    def trend(self) -> str:
        """What a slow fall leads to, of the whole or a part, while it is raised."""
        trend, part = self._trend, self._part  # read once: the scoring thread may clear them
        return "; ".join(text for text in (trend or "", "" if part is None else part.detail) if text)

    @property
    def part(self) -> Place | None:
        """The part of the picture that is raised."""
        part = self._part
        return None if part is None else part.place

    def usual(self, at: float) -> Usual | None:
        """What its score should be now; None: not known yet."""
        return self.memory.usual(at)

    def baseline(self, at: float) -> float | None:
        """Its usual score, from the memory or else of the last minutes; None: not known, or not needed."""
        if self.rule.fall is None:
            return None
        usual = self.usual(at)
        return self.tracker.baseline if usual is None else usual.centre

    def limits(self, at: float) -> dict[str, float]:
        """The limits of its scores now, by kind of alarm."""
        limits = {} if self.rule.below is None else {"low": self.rule.below}
        drop = self.tracker.limit(self.usual(at))
        return limits if drop is None else {**limits, "drop": drop}

    def score(
        self, now: float, at: float, value: float, tiles: Iterable[Tile] = (), size: tuple[int, int] = (0, 0)
    ) -> list[Alert]:
        """Take a score, and those of the parts of the picture, whose ``size`` is (width, height)."""
        if self._fault is not None:
            self.tracker.interrupted()
            self.memory.add(at, value, learn=False)
            self.parts.add(at, (), size, learn=False)
            return []
        alerts = self.tracker.step(now, value, self.memory.usual(at))
        if not self._judged:
            self._judge()
        if self.memory.add(at, value, learn=not (self.tracker.raised or self._trend)):
            alerts += self._slow()
            self._judge()
        # A fault of the whole would be learned as one of no part.
        if self.parts.add(at, tiles, size, learn=not (self.tracker.raised or self._part)):
            alerts += self._slow_part()
        return self._done(now, alerts)

    def picture(self, now: float, at: float, image: UInt8Array) -> list[Alert]:
        """Look at a frame, uint8 (H, W, 3) BGR, for a camera that is covered, moved, blurred or blinded."""
        if self.tamper is None or (self._fault is not None and not self._from_picture):
            return []
        kind = self.tamper.step(now, at, image, learn="drop" not in self.raised)
        if kind == self._fault:
            return []
        alerts = []
        if self._fault is not None:
            alerts.append(Alert(self._fault, False))
        if kind is not None:
            alerts.append(Alert(kind, True, since_s=self.tamper.HOLD_S))
            self.tracker.interrupted()
        self._fault, self._from_picture = kind, kind is not None
        return self._done(now, alerts)

    def change(self, now: float, state: str, picture: Verdict, detail: str = "") -> list[Alert]:
        """Take the camera's state (``running``, ``restarting``, ...) and what its pictures show."""
        wanted: AlertKind | None = None
        if self.rule.states and state in ("restarting", "error"):
            wanted = "offline"
        elif self.rule.states and state == "running" and picture in ("black", "frozen", "no_signal"):
            wanted = picture
        if wanted != self._state:
            self._state, self._since = wanted, now
        self._detail, self._reported = detail, self._reported or state != "not_started"
        if state != "running" or picture != "ok":
            self.tracker.interrupted()
        return self.tick(now)

    def tick(self, now: float) -> list[Alert]:
        """Raise or clear what the camera's state has asked for long enough. Call it some times a second."""
        alerts: list[Alert] = []
        if self._state != self._fault and self._reported:
            lasted = now - self._since
            if self._state is None:
                if self._fault is not None and not self._from_picture and lasted >= _BACK_S:
                    alerts.append(Alert(self._fault, False, since_s=lasted))
                    self._fault = None
            elif self._fault is None or self._state == "offline" or not self._from_picture:
                needed = {"offline": self.rule.offline_s, "frozen": 0.0}.get(self._state, _HOLD_S)
                if lasted >= needed:
                    if self._fault is not None:  # the same camera, and no picture either way
                        alerts.append(Alert(self._fault, False, since_s=lasted))
                    alerts.append(Alert(self._state, True, since_s=lasted, detail=self._detail))
                    self._fault, self._from_picture = self._state, False
        return self._done(now, alerts)

    def accept(self, now: float) -> list[Alert]:
        """Make the present the normal: of its scores and its picture. Returns the alarms that this clears."""
        detail = "accepted as the new normal"
        alerts = self.tracker.accept()
        self.memory.accept()
        if self._trend is not None:
            self._trend = None
            alerts.append(Alert("trend", False, detail=detail))
        self.parts.accept()
        if self._part is not None:
            alerts.append(Alert("part", False, detail=detail, part=self._part.place))
            self._part = None
        if self.tamper is not None:
            self.tamper.accept()
            if self._fault is not None and self._from_picture:
                alerts.append(Alert(self._fault, False, detail=detail))
                self._fault, self._from_picture = None, False
        self.save(now)
        return alerts

    def new_model(self, now: float, model: str) -> list[Alert]:
        """Begin anew with what is usual: another bundle's scores follow. Returns the alarms this clears.

        What was known is kept beside it, and comes back with its model.
        """
        kinds = [kind for kind in self.raised if kind != self._fault]
        alerts = [Alert(kind, False, detail="another model scores now") for kind in kinds]
        earlier = self._earlier(model)
        if self._path is not None:
            self._write(self._path.with_suffix(BEFORE), self._known())
        self.tracker, self._trend, self._part = AlertTracker(self.rule), None, None
        self.memory, self.parts = earlier
        self._judged, self.doubts = False, ()
        self.fresh = "" if self.memory.days else _OTHER
        self.save(now)
        return alerts

    def requested(self) -> bool:
        """Whether somebody has asked, by a file, that the present be made the normal; answers once."""
        path = None if self._path is None else self._path.with_suffix(ACCEPT)
        if path is None or not path.exists():
            return False
        path.unlink(missing_ok=True)
        return True

    def again(self) -> list[Alert]:
        """All alarms that are raised, once more."""
        details = {
            "trend": self._trend or "",
            "part": "" if self._part is None else self._part.detail,
            str(self._fault): self._detail,
        }
        alerts = [Alert(kind, True, detail=details.get(kind, ""), repeated=True) for kind in self.raised]
        return [replace(alert, part=self.part) if alert.kind == "part" else alert for alert in alerts]

    def save(self, now: float) -> None:
        """Write its file; does nothing without a folder."""
        self._saved = now
        if self._path is None:
            return
        data: dict[str, object] = {
            **self._known(),
            "tracker": self.tracker.to_json(now),
            "fault": self._fault,
            "from_picture": self._from_picture,
            "trend": self._trend,
            "part": None if self._part is None else asdict(self._part),
            "raised": list(self.raised),
        }
        if self.tamper is not None:
            data["tamper"] = self.tamper.to_json()
        self._write(self._path, data)

    def _judge(self) -> None:
        """Whether the limits make sense for this camera, as soon as its usual score is known."""
        usual = self.memory.middle
        if usual is None:
            usual = self.tracker.baseline
        if usual is not None:
            self._judged, self.doubts = True, tuple(self.rule.doubts(usual))

    def _slow(self) -> list[Alert]:
        """The tests of a day's end."""
        levels, preset = self.memory.levels, self.rule.settings
        if not levels:
            return []
        now = levels[-1][1]
        if self._trend is not None and now >= -_OVER:
            self._trend = None
            return [Alert("trend", False)]
        usual = self.memory.middle
        if usual is None:
            return []
        left = usual / 2 if self.rule.below is None else max(0.0, usual - self.rule.below)
        detail = slow_fall(levels, left, preset.shift, preset.sure, _FALLEN)
        if self._trend is not None:  # known better each day; not worth another alert
            self._trend = detail or self._trend
            return []
        if not detail:
            return []
        self._trend = detail
        return [Alert("trend", True, usual + now, usual, detail=detail)]

    def _slow_part(self) -> list[Alert]:
        """The tests of a day's end for each part; what the whole has raised is no fault of a part."""
        if self._part is not None:
            part, over = self._part, self.parts.over(self._part)
            self._part = None if over else part
            return [Alert("part", False, part=part.place)] if over else []
        usual = self.memory.middle
        if usual is None or self._trend is not None or self.tracker.raised:
            return []
        self._part = found = self.parts.worst(usual, self.rule.settings)
        return [] if found is None else [Alert("part", True, detail=found.detail, part=found.place)]

    def _done(self, now: float, alerts: list[Alert]) -> list[Alert]:
        if alerts or now - self._saved >= _SAVE_S:
            self.save(now)
        return alerts

    def _known(self) -> dict[str, object]:
        return {
            "camera": self.camera,
            "memory": self.memory.to_json(),
            "parts": self.parts.to_json(),
            "at": round(time.time(), 1),
        }

    def _earlier(self, model: str) -> tuple[Memory, Parts]:
        """What was known of a model that was used before the last one; else nothing."""
        data = {} if self._path is None else read_json(self._path.with_suffix(BEFORE))
        memory = Memory.from_json(_table(data, "memory"), model)
        return (
            (Memory(model), Parts()) if memory is None else (memory, Parts.from_json(_table(data, "parts")))
        )

    def _restore(self, now: float) -> None:
        assert self._path is not None
        data, model = read_json(self._path), self.memory.model
        memory = Memory.from_json(_table(data, "memory"), model)
        if memory is None:
            self.memory, self.parts = self._earlier(model)
            if "memory" in data:
                self._write(self._path.with_suffix(BEFORE), data)
            if not self.memory.days:
                self.fresh = _OTHER if "memory" in data else _DAMAGED if self._path.exists() else NEW
        try:
            self._restore_faults(data, now)
            if memory is not None:
                self.memory, self.parts = memory, Parts.from_json(_table(data, "parts"))
                away = max(0.0, time.time() - float(cast("float", data.get("at", 0.0))))
                # A baseline of yesterday is no baseline; what the alert was, is.
                self.tracker.restore(_table(data, "tracker"), now - min(away, 300.0))
                self._trend = str(data["trend"]) if data.get("trend") else None
                self._part = Part(**cast("Any", _table(data, "part"))) if data.get("part") else None
                self._judge()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # edited, or not ours
            self.tracker, self._fault, self._from_picture = AlertTracker(self.rule), None, False
            self._trend = self._part = None
        if memory is None and "memory" in data:
            self.save(now)

    def _restore_faults(self, data: Mapping[str, object], now: float) -> None:
        """What has nothing to do with the model."""
        self._since = now
        if self.tamper is not None:
            self.tamper.restore(_table(data, "tamper"))
        fault = data.get("fault")
        if fault in SEVERITY:
            self._fault = cast("AlertKind", fault)
            self._from_picture = bool(data.get("from_picture")) and self.tamper is not None


def _table(data: Mapping[str, object], key: str) -> dict[str, object]:
    """A part of a file, if it is there and is a table."""
    inner = data.get(key)
    return inner if isinstance(inner, dict) else {}


class Keeper(Closing):
    """Writes files on a thread of its own, the newest version of each: a busy disk holds up nobody."""

    def __init__(self, tell: Callable[[str], object] = lambda _: None) -> None:
        """``tell`` is called with why a file cannot be written, at most once an hour."""
        self._tell, self._told = tell, float("-inf")
        self._waiting: dict[Path, Mapping[str, object]] = {}
        self._ready = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    def __call__(self, path: Path, data: Mapping[str, object]) -> None:
        """Write this later; returns at once."""
        with self._ready:
            self._waiting[path] = data
            self._ready.notify()

    def close(self) -> None:
        """Write what waits, within some seconds."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._waiting and not self._closing:
                    self._ready.wait()
                if not self._waiting:
                    return
                path = next(iter(self._waiting))
                data = self._waiting.pop(path)
            try:
                write_json(path, data)
            except OSError as error:  # a full disk: what is known stays in memory
                if time.monotonic() - self._told >= _TELL_S:
                    self._told = time.monotonic()
                    self._tell(f"what is usual cannot be kept: {path}: {error.strerror}")
