"""The files that ``evaluate`` writes: one table and one plot of all that was tested. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from grmp_edge.errors import MissingDependencyError
from grmp_edge.files import replace_file
from grmp_edge.train.data.named_sets import READERS
from grmp_edge.train.evaluate.plot import plot_svg
from grmp_edge.train.evaluate.protocol import INTERVAL, SplitResult, csv_table, markdown_table, summarize

__all__ = ["Tables"]


@dataclass
class Tables:
    """The results so far; written again after every split.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """

    output: Path
    data: str  # the set's name
    preset: str
    seed: int
    test_fraction: float
    what: str = "hand-crafted metrics"  # is tested, for the title
    models: list[SplitResult] = field(default_factory=list)
    baselines: list[SplitResult] = field(default_factory=list)
    remarks: dict[Literal["models", "baselines"], list[str]] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # of training: further fields of results.json

    def __post_init__(self) -> None:
        if find_spec("matplotlib") is None:  # now, not after the first split
            raise MissingDependencyError("matplotlib", "train", "the protocol's plot")

    @property
    def title(self) -> str:
        """Of table and plot."""
        kind, colon, _ = self.data.partition(":")
        name = kind if colon and kind in READERS else Path(self.data).name
        return f"{name}: {self.what}, preset {self.preset}"

    def result(self) -> dict[str, Any]:
        """The content of results.json."""
        splits = [*self.models, *self.baselines]
        return {
            "data": self.data,
            "preset": self.preset,
            **self.settings,
            "seed": self.seed,
            "leaks": self.leaks,
            "splits": splits,
            "rows": summarize(splits),
        }

    def write(self) -> None:
        """Write table.md, table.csv, plot.svg and results.json, each by a rename."""
        result = self.result()
        remarks = [
            f"{self.title}, seed {self.seed}; test part {self.test_fraction:.0%} of the set; RMSE on a scale "
            "of 0 to 1",
            INTERVAL,
            *self.remarks.get("models", ()),
            *self.remarks.get("baselines", ()),
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
