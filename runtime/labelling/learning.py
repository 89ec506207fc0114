"""From the labels to a bundle, as the commands do it, in a process of its own; and what changed by it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from grmp_edge.default_bundle import DEFAULT_BUNDLE, DEFAULT_NAME
from grmp_edge.errors import UsageError
from grmp_edge.metrics import srcc
from grmp_edge.runtime.labelling.answers import LABELS, Label
from grmp_edge.runtime.scorer import Scorer

__all__ = ["Learning", "Phase", "commands"]

Float64Array = npt.NDArray[np.float64]
Phase = Literal["idle", "train", "export", "compare", "look", "done", "failed"]
_LEAST = 8  # labels; fewer rank nothing
_LINES = 6  # of what the commands say that the page shows
_WORST = 8


def commands(folder: Path, before: Path, bundle: Path, torch: bool) -> list[list[str]]:
    """The arguments of ``grmp-edge`` that make a bundle of the labels.

    Args:
        folder: of the frames; a checkpoint goes into the first folder of its ``runs`` that is not there.
        before: the bundle to start from where there is no torch.
        bundle: the one to write.
        torch: whether it is installed.
    """
    data = ["--data", str(folder / LABELS), "--mos-range", "1,5"]
    if not torch:
        start = DEFAULT_NAME if before == DEFAULT_BUNDLE else str(before)
        return [["calibrate", start, *data, "-o", str(bundle)]]
    run = next(run for number in count(1) if not (run := folder / "runs" / str(number)).exists())
    return [
        ["train", "finetune", *data, "--test-fraction", "0", "-o", str(run)],
        ["export", str(run), "-o", str(bundle)],
    ]


class Learning:
    """Trains, exports and compares, one run at a time. Safe on several threads."""

    def __init__(
        self, folder: Path, before: Path, bundle: Path, look: Callable[[], None] = lambda: None
    ) -> None:
        """``before`` is the bundle to compare with, ``bundle`` the one to write; ``look`` is called then."""
        self.folder, self._before, self.bundle, self._look = folder, before, bundle, look
        self._lock = threading.Lock()
        self._phase: Phase = "idle"
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._result: dict[str, Any] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._ending = False

    def start(self, labels: Sequence[Label]) -> None:
        """Begin a run, unless one is going on.

        Raises:
            UsageError: too few labels, or all alike.
        """
        if len(labels) < _LEAST:
            raise UsageError(
                f"{len(labels)} labels are too few to train", f"label {_LEAST} or more; 50 will do"
            )
        if len({round(label.mos, 3) for label in labels}) < 2:
            raise UsageError("all labels are equal", "label pictures of different quality")
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._phase, self._result = "train", None
            self._lines.clear()
            self._thread = threading.Thread(
                target=self._run, args=(list(labels),), name="learning", daemon=True
            )
            self._thread.start()

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        return {"phase": self._phase, "lines": list(self._lines), "result": self._result}

    def close(self) -> None:
        """End a run; the bundle stays as it was unless it was complete."""
        self._ending = True
        process, thread = self._process, self._thread
        if process is not None:
            process.terminate()
        if thread is not None:
            thread.join(20.0)

    def _run(self, labels: list[Label]) -> None:
        lines = commands(self.folder, self._before, self.bundle, find_spec("torch") is not None)
        try:
            told: dict[str, Any] = {}
            before = self._scores(self._before, labels)  # now, for it may be the one that is replaced
            for line in lines:
                self._phase = "export" if line[0] == "export" else "train"
                told |= self._command(line)
            self._phase = "compare"
            # Each label judged by heads that did not see it; what training began from saw none.
            honest = told.get("calibrated") or (told.get("metrics") or {}).get("cross_validation") or {}
            start = told.get("start") or {"srcc": (told.get("head") or {}).get("start")}
            self._result = _compare(labels, before, self._scores(self.bundle, labels)) | {
                "bundle": str(self.bundle),
                "id": told.get("model") or told.get("id"),
                "honest": honest.get("srcc"),
                "interval": honest.get("srcc_interval"),
                "honest_before": start.get("srcc"),
                "commands": [f"grmp-edge {shlex.join(line)}" for line in lines],
            }
            self._phase = "look"
            self._look()
            self._phase = "done"
        except Exception as error:  # whatever it is, the page must not wait for ever
            self._lines.append(str(error) or type(error).__name__)
            self._phase = "failed"

    def _command(self, arguments: list[str]) -> dict[str, Any]:
        process = subprocess.Popen(
            [sys.executable, "-m", "grmp_edge", *arguments, "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        )  # fmt: skip
        self._process = process
        if self._ending:
            process.terminate()
        assert process.stdout is not None and process.stderr is not None
        told: list[str] = []
        reader = threading.Thread(target=lambda out=process.stdout: told.append(out.read()), daemon=True)
        reader.start()
        with process:
            for line in process.stderr:
                if line.strip():
                    self._lines.append(line.strip()[:300])
            reader.join()
        self._process = None
        if process.returncode:
            reason = self._lines[-1] if self._lines else f"status {process.returncode}"
            raise UsageError(f"grmp-edge {arguments[0]} failed: {reason.removeprefix('error: ')}")
        result: dict[str, Any] = json.loads(told[0].strip().splitlines()[-1])
        return result

    def _scores(self, bundle: Path, labels: Sequence[Label]) -> Float64Array:
        with Scorer.open(bundle) as scorer:
            return np.array([scorer.score(self.folder / label.image).value for label in labels])


def _compare(labels: Sequence[Label], before: Float64Array, after: Float64Array) -> dict[str, Any]:
    """Scores of the labelled pictures before and after, and where the new ones disagree most."""
    mos = np.array([label.mos for label in labels])
    said = 1 + 4 * after
    rows = [
        {
            "image": label.image,
            "mos": round(label.mos, 2),
            "before": round(float(before[at]), 3),
            "after": round(float(after[at]), 3),
            "off": round(float(said[at] - mos[at]), 2),
        }
        for at, label in enumerate(labels)
    ]
    return {
        "labels": len(labels),
        "srcc_before": _shown(srcc(before, mos)),
        "srcc_after": _shown(srcc(after, mos)),
        "worst": sorted(rows, key=lambda row: -abs(float(str(row["off"]))))[:_WORST],
    }


def _shown(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None
