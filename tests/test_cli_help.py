"""The help of every command, and the option groups that it is made from."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from grmp_edge import __version__
from grmp_edge.cli import app
from grmp_edge.cli.groups import grouped

ROOT: Any = typer.main.get_command(app)


def commands(command: Any = ROOT, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command and group by its words."""
    below: dict[tuple[str, ...], Any] = {path: command}
    for name, child in getattr(command, "commands", {}).items():
        below |= commands(child, (*path, name))
    return below


def help_of(*words: str, width: int = 80) -> str:
    shown = CliRunner().invoke(app, [*words, "--help"], terminal_width=width)
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def section(text: str, title: str) -> str:
    """The lines of one section of a help text."""
    return text.split(f"\n{title}:\n")[1].split("\n\n")[0]


@pytest.mark.parametrize(
    "words", [words for words in commands() if words not in (("data",), ("memory",))], ids=" ".join
)
def test_each_example_is_a_valid_command_line(words: tuple[str, ...]) -> None:
    lines = [line.strip() for line in section(help_of(*words), "Example").splitlines()]
    assert lines[-1].startswith(" ".join(("grmp-edge", *words)))
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "grmp-edge"
        command: Any = ROOT
        context: Any = ROOT.make_context(program, list(arguments))
        while context._protected_args:  # as far as the last subcommand; nothing runs
            words_left: list[str] = [*context._protected_args, *context.args]
            name, *rest = words_left
            command = command.commands[name]
            context = command.make_context(name, rest, parent=context)
            if not hasattr(command, "commands"):
                break


def test_commands_are_listed_in_the_order_of_use() -> None:
    listed = [line.split()[0] for line in section(help_of(), "Commands").splitlines()]
    assert listed == (
        [
            "data",
            "collect",
            "label",
            "train",
            "evaluate",
            "export",
            "calibrate",
            "score",
            "watch",
            "check",
            "serve",
            "memory",
            "bench",
            "build",
            "doctor",
            "import-reference",
        ]
    )
    assert set(listed) == set(ROOT.commands)
    for line in section(help_of(), "Commands").splitlines():
        assert not line.endswith("...")  # each summary fits into 80 columns
        name, summary = line.split(maxsplit=1)
        assert summary == inspect.cleandoc(ROOT.commands[name].help).splitlines()[0]


@pytest.mark.parametrize("words", [("train",), ("train", "finetune"), ("evaluate",)])
def test_long_help_comes_in_sections(words: tuple[str, ...]) -> None:
    text = help_of(*words)
    assert "--data" in section(text, "Options") and "--preset" in section(text, "Options")
    assert "--lambda" in section(text, "Settings of the method")
    assert "--device" in section(text, "Performance")
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings.index("Options:") < headings.index("Settings of the method:")
    assert headings.index("Settings of the method:") < headings.index("Performance:")


def test_help_is_as_wide_as_the_terminal() -> None:
    assert max(map(len, help_of("evaluate", width=80).splitlines())) <= 80
    assert max(map(len, help_of("evaluate", width=160).splitlines())) > 120


def test_version_and_completion() -> None:
    runner = CliRunner()
    for option in ("-V", "--version"):
        assert runner.invoke(app, [option]).stdout == f"grmp-edge {__version__}\n"
    assert "--install-completion" in help_of() and "--show-completion" in help_of()


def test_choices_are_those_of_the_modules_that_own_them() -> None:
    from grmp_edge.bundle import PRECISIONS
    from grmp_edge.cli.options import Precision
    from grmp_edge.cli.training_options import PresetName, RunOptions, TrainPrecision, TuningOptions
    from grmp_edge.runtime.choose import AUTO
    from grmp_edge.train.finetune.qgr import Projection
    from grmp_edge.train.presets import PRESETS
    from grmp_edge.train.session.curves import CurveKind
    from grmp_edge.train.session.precision import Precision as Training

    assert get_args(Precision) == (AUTO, *PRECISIONS)
    assert get_args(PresetName) == tuple(PRESETS)
    assert TrainPrecision == Training
    assert get_type_hints(RunOptions)["curves"] == CurveKind
    assert get_type_hints(TuningOptions)["projection"] == Projection


@dataclass(frozen=True)
class Colours:
    """A group of options."""

    colour: Annotated[str, typer.Option("--colour", help="Which.")] = "red"
    seed: Annotated[int, typer.Option("--seed", help="Seed.")] = 0


@dataclass(frozen=True)
class OtherSeed:
    """A group that declares an option of Colours with another default."""

    seed: Annotated[int, typer.Option("--seed", help="Seed.")] = 1


def test_groups_become_options_and_objects() -> None:
    calls: list[object] = []

    def paint(*, colours: Colours, size: Annotated[int, typer.Option("--size")] = 3) -> None:
        calls.append((colours, size))

    small = typer.Typer()
    small.command()(grouped(paint))
    assert CliRunner().invoke(small, ["--colour", "blue", "--size", "4"]).exit_code == 0
    assert calls == [(Colours("blue", 0), 4)]


def test_an_option_declared_twice_differently_is_refused() -> None:
    def paint(*, colours: Colours, other: OtherSeed) -> None: ...

    with pytest.raises(TypeError, match="paint: the option 'seed' is declared twice"):
        grouped(paint)
