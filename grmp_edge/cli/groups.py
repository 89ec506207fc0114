"""Groups of options as dataclasses, and the help that lists options in sections.

A command takes one dataclass per group: ``def export(run: RunOptions)``. ``grouped`` flattens the fields into
the command's own options, so that each option is declared once, whichever commands have it. The section in
which --help lists an option is typer's ``rich_help_panel``; drawing it with rich would double the time of
--help, so it is printed as plain text.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["PERFORMANCE", "Group", "add_command", "grouped", "new_group", "option"]

PERFORMANCE = "Performance"  # the section that comes last


def option(names: str, help_text: str, section: str | None = None, **settings: Any) -> Any:
    """Declare an option.

    Args:
        names: as on the command line, separated by spaces: ``--output -o``, ``--loop/--no-loop``.
        help_text: its line of --help.
        section: of --help; None: "Options".
        settings: more of typer's, such as ``min`` or ``metavar``.
    """
    return typer.Option(*names.split(), help=help_text, rich_help_panel=section, **settings)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option per field of each parameter that is a dataclass.

    Raises:
        TypeError: two groups declare the same option differently.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    flat: dict[str, inspect.Parameter] = {}

    def add(name: str, default: Any, annotation: Any) -> None:
        parameter = inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        if flat.setdefault(name, parameter) != parameter:
            raise TypeError(f"{command.__name__}: the option {name!r} is declared twice")

    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            add(name, parameter.default, kind)
            continue
        assert isinstance(kind, type)
        groups[name] = kind
        annotations = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            missing = field.default is dataclasses.MISSING
            add(field.name, inspect.Parameter.empty if missing else field.default, annotations[field.name])

    @functools.wraps(command)
    def run(**options: Any) -> None:
        values = {name: value for name, value in options.items() if name in hints}
        for name, kind in groups.items():
            values[name] = kind(**{field.name: options[field.name] for field in dataclasses.fields(kind)})
        command(**values)

    run.__signature__ = inspect.Signature(list(flat.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in flat.items()}
    return run


class _Command(TyperCommand):
    """Help with its options in sections, and an example at the end."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_sections(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_example(self, formatter)


class Group(TyperGroup):
    """A group of commands with the same help, listed in the order in which they were added."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in sections, then the commands."""
        _write_sections(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example as it is to be pasted."""
        _write_example(self, formatter)


def _write_sections(command: Any, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            section = getattr(parameter, "rich_help_panel", None) or usual
            sections.setdefault(section, []).append(record)
    for section, records in sorted(sections.items(), key=lambda item: item[0] == PERFORMANCE):
        with formatter.section(section):
            formatter.write_dl(records)


def _write_example(command: Any, formatter: Any) -> None:
    if command.epilog:
        with formatter.section("Example"):
            for line in command.epilog.splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def add_command(
    app: typer.Typer, command: Callable[..., None], example: str, name: str | None = None
) -> None:
    """Add a command, its groups flattened; its --help ends with ``example``, lines that can be pasted."""
    app.command(name, cls=_Command, epilog=example)(grouped(command))


def new_group(name: str, summary: str) -> typer.Typer:
    """An app for a command with subcommands.

    Args:
        name: the word on the command line.
        summary: its help.
    """
    return typer.Typer(name=name, help=summary, cls=Group, rich_markup_mode=None, add_completion=False)
