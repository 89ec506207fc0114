"""What ``evaluate`` writes and prints: one table and one plot of all that was tested."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Tables"]


@dataclass
class Tables:
    """The results so far; written again whenever a split is finished."""

    output: Path
    data: str  # the set's name
    preset: str
    seed: int
    test_fraction: float
    what: str = "hand-crafted metrics"
    models: list[dict[str, Any]] = field(default_factory=list)
    baselines: list[dict[str, Any]] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)  # further fields of results.json

    @property
    def title(self) -> str:
        """Of table and plot."""
        from grmp_edge.train.data.named_sets import READERS

        kind, colon, _ = self.data.partition(":")
        name = kind if colon and kind in READERS else Path(self.data).name
        return f"{name}: {self.what}, preset {self.preset}"

    def result(self) -> dict[str, Any]:
        """The content of results.json."""
        from grmp_edge.train.evaluate.protocol import summarize

        splits = [*self.models, *self.baselines]
        return {
            "data": self.data,
            "preset": self.preset,
            **self.said,
            "seed": self.seed,
            "leaks": self.leaks,
            "splits": splits,
            "rows": summarize(splits),
        }

    def write(self) -> None:
        """Write table.md, table.csv, plot.svg and results.json, each by a rename."""
        from grmp_edge.files import replace_file
        from grmp_edge.train.evaluate.plot import plot_svg
        from grmp_edge.train.evaluate.protocol import csv_table, markdown_table

        result = self.result()
        remarks = [
            f"{self.title}, seed {self.seed}; test part {self.test_fraction:.0%} of the set; RMSE on a scale "
            "of 0 to 1",
            *(remark for part in ("model", "baselines") for remark in self.remarks.get(part, ())),
            *(f"not an honest figure: {leak}" for leak in self.leaks),
        ]
        for file, text in (
            ("results.json", json.dumps(result, indent=2) + "\n"),
            ("table.md", markdown_table(result["rows"], remarks)),
            ("table.csv", csv_table(result["rows"])),
            ("plot.svg", plot_svg(result["splits"], self.title)),
        ):
            with replace_file(self.output / file) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def finish(self, as_json: bool) -> None:
        """Write for the last time, and print the table, or all of it as JSON."""
        from grmp_edge.train.evaluate.protocol import text_table

        self.write()
        result = self.result()
        if as_json:
            print(json.dumps(result))
        else:
            print(self.title)
            print(text_table(result["rows"]))
            for leak in self.leaks:
                print(f"not an honest figure: {leak}")
        print(
            f"written: {self.output}/table.md, table.csv, plot.svg, results.json\n"
            "next: grmp-edge train --data ... (one model of these settings), then grmp-edge export",
            file=sys.stderr,
        )
