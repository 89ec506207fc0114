"""From the labels to a bundle, as the commands do it, in a process of its own; and what changed by it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grmp_edge.errors import GrmpError, UsageError
from grmp_edge.metrics import srcc
from grmp_edge.runtime.labelling.answers import LABELS, Label
from grmp_edge.runtime.scorer import Scorer

__all__ = ["Learning", "Phase", "commands"]

Phase = Literal["idle", "train", "export", "compare", "done", "failed"]
_LEAST = 8  # labels; fewer rank nothing
_LINES = 6  # of what the commands say that the page shows
_WORST = 8


def commands(folder: Path, run: Path, bundle: Path) -> list[list[str]]:
    """The arguments of ``grmp-edge`` that make a bundle of the labels."""
    return [
        [
            "train", "finetune", "--data", str(folder / LABELS), "--mos-range", "1,5", "--test-fraction", "0",
            "-o", str(run),
        ],
        ["export", str(run), "-o", str(bundle)],
    ]  # fmt: skip


class Learning:
    """Trains, exports and compares, one run at a time. Safe on several threads."""

    def __init__(self, folder: Path, before: Path, bundle: Path) -> None:
        """``before`` is the bundle to compare with, ``bundle`` the one to write."""
        self.folder, self._before, self.bundle = folder, before, bundle
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
            UsageError: too few labels, all alike, or torch is not installed.
        """
        if len(labels) < _LEAST:
            raise UsageError(
                f"{len(labels)} labels are too few to train", f"label {_LEAST} or more; 50 will do"
            )
        if len({round(label.mos, 3) for label in labels}) < 2:
            raise UsageError("all labels are equal", "label pictures of different quality")
        if find_spec("torch") is None:
            raise UsageError(
                "training needs torch, which is not installed here",
                f"take {self.folder} to a machine that has it: pip install 'grmp-edge[cpu,train,export]'",
            )
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
        runs = self.folder / "runs"
        number = 1 + sum(1 for _ in runs.glob("*")) if runs.is_dir() else 1
        while (run := runs / str(number)).exists():
            number += 1
        try:
            trained = exported = None
            for phase, command in zip(
                ("train", "export"), commands(self.folder, run, self.bundle), strict=True
            ):
                self._phase = "train" if phase == "train" else "export"
                output = self._command(command)
                trained, exported = (output, None) if trained is None else (trained, output)
            self._phase = "compare"
            result = self._compare(labels)
            head, metrics = ((trained or {}).get(name) or {} for name in ("head", "metrics"))
            honest = metrics.get("cross_validation") or {}
            result |= {
                "bundle": str(self.bundle),
                "id": (exported or {}).get("id"),
                # Each label judged by heads that did not see it; what training began from saw none.
                "honest": honest.get("srcc"),
                "interval": honest.get("srcc_interval"),
                "honest_before": head.get("start"),
                "commands": [f"grmp-edge {' '.join(c)}" for c in commands(self.folder, run, self.bundle)],
            }
            self._result, self._phase = result, "done"
        except (GrmpError, OSError, ValueError) as error:
            self._lines.append(str(error))
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

    def _compare(self, labels: list[Label]) -> dict[str, Any]:
        """Scores of the labelled pictures before and after, and where the new ones disagree most."""
        paths = [self.folder / label.image for label in labels]
        mos = np.array([label.mos for label in labels])
        values = []
        for bundle in (self._before, self.bundle):
            with Scorer.open(bundle) as scorer:
                values.append(np.array([scorer.score(path).value for path in paths]))
        before, after = values
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
