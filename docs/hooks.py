"""What mkdocs adds to the written pages: references made from the code, and pages of other folders."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Pages of the site that lie elsewhere in the repository, by their names on the site.
_ELSEWHERE = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "model-card.md": "train/weights/README.md",
    "security.md": "SECURITY.md",
    "tests.md": "tests/README.md",
}


def on_config(config: Any) -> Any:
    """Pages that may lie elsewhere or come later are left out of the navigation while they do not exist."""
    made = {"commands.md", "settings.md", "exit-codes.md"}
    made |= {name for name, path in _ELSEWHERE.items() if (ROOT / path).is_file()}

    def present(entries: list[Any]) -> list[Any]:
        entries_there: list[Any] = []
        for entry in entries:
            ((title, target),) = entry.items()
            if isinstance(target, list):
                entries_there.append({title: present(target)})
            elif target in made or (ROOT / "docs" / target).is_file():
                entries_there.append(entry)
        return entries_there

    config.nav = present(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    pages = {"commands.md": commands(), "settings.md": settings(), "exit-codes.md": exit_codes()}
    for name, path in _ELSEWHERE.items():
        if (ROOT / path).is_file():
            text = (ROOT / path).read_text(encoding="utf-8")
            pages[name] = re.sub(r"\]\(docs/", "](", text)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to pages of other folders lead to them on the site; other links out of docs/ become text."""

    def link(match: re.Match[str]) -> str:
        text, target = match[1], match[2].removeprefix("../")
        names = [name for name, path in _ELSEWHERE.items() if path == target]
        return f"[{text}]({names[0]})" if names and names[0] in files.src_uris else text

    markdown = re.sub(r"\[([^\]]+)\]\((\.\./[^)]+)\)", link, markdown)
    return re.sub(r"\[([^\]]+)\]\(((?:train|runtime|tests|deploy|export)/[^)]+)\)", link, markdown)


def commands() -> str:
    """Every command and option, by typer's own generator of documentation."""
    import typer
    from typer.cli import get_docs_for_click

    from grmp_edge.cli import app

    root: Any = typer.main.get_command(app)
    text = get_docs_for_click(obj=root, ctx=typer.Context(root, info_name="grmp-edge"), name="grmp-edge")
    for command in _below(root):
        if command.epilog:
            text = text.replace(
                f"\n\n{command.epilog}\n", f"\n\n```console\n{_prompts(command.epilog)}\n```\n", 1
            )
        # Summaries are cut as for 80 columns.
        short, whole = command.get_short_help_str(), command.get_short_help_str(limit=200)
        text = text.replace(f"`: {short}\n", f"`: {whole}\n")
    return text.replace("# `grmp-edge`\n", "# Commands\n", 1)


def _below(command: Any) -> Iterator[Any]:
    yield command
    for child in getattr(command, "commands", {}).values():
        yield from _below(child)


def _prompts(lines: str) -> str:
    return "\n".join(f"$ {line}" for line in lines.splitlines())


def settings() -> str:
    """The tables of a streams.toml: each setting with its type, its default, and the reason beside it."""
    from grmp_edge.runtime.live.alert import AlertRule
    from grmp_edge.runtime.live.config import CameraConfig, LiveConfig

    tables = {
        "`[[camera]]` and `[defaults]`": CameraConfig,
        "`alert` of a camera": AlertRule,
        "`[live]`": LiveConfig,
    }
    text = (
        "# Settings of a streams.toml\n\nMade from the code. An example, and the kinds of `[[sink]]`: "
        "[live cameras](live.md#streamstoml). Times are in seconds.\n"
    )
    for title, kind in tables.items():
        text += f"\n## {title}\n\n| setting | type | default | |\n|---|---|---|---|\n"
        reasons = _reasons(kind)
        for field in dataclasses.fields(kind):
            default = field.default if field.default is not dataclasses.MISSING else "-"
            shown = "-" if default is None else str(default)
            shown = shown.lower() if isinstance(default, bool) else shown
            typed = str(field.type).replace(" | ", " or ").replace("None", "unset")
            text += f"| `{field.name}` | {typed} | {shown or '-'} | {reasons.get(field.name, '')} |\n"
    return text


def _reasons(kind: type) -> dict[str, str]:
    """The comments of a dataclass's fields, before them or behind them."""
    reasons: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        before: list[str] = []
        for line in inspect.getsource(parent).splitlines():
            code, _, comment = line.partition("  # ") if not line.strip().startswith("#") else ("", "", "")
            field = re.match(r"    (\w+): ", code or line)
            if line.strip().startswith("# "):
                before.append(line.strip()[2:])
            elif field:
                reasons[field[1]] = " ".join([*before, comment]).strip().replace("|", "\\|")
                before = []
            else:
                before = []
    return reasons


def exit_codes() -> str:
    """What each exit code of a command means, from the errors themselves."""
    from grmp_edge import errors

    kinds = [kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)]
    by_code: dict[int, list[str]] = {}
    for kind in kinds:
        by_code.setdefault(kind.exit_code, []).append(
            f"`{kind.__name__}`: {inspect.getdoc(kind) or ''}".replace("\n", " ")
        )
    text = (
        "# Exit codes\n\n| code | meaning |\n|---|---|\n| 0 | all that was asked for was done |\n"
        "| 1 | something could not be done, or some pictures could not be scored; stderr names each |\n"
        "| 2 | the options or settings do not fit together; nothing was begun |\n"
        "| 3 | a graph or an engine does not score as its reference does; nothing was written |\n"
        "| 130 | interrupted by Ctrl-C (a watch ends with 0) |\n| 141 | the reader of a pipe has gone |\n\n"
        "An error is one line on stderr: what, where, what to do. `grmp-edge --debug COMMAND` shows the "
        "traceback.\n\n## Errors in Python\n\nAll are `grmp_edge.errors.GrmpError`, with `message`, `remedy` "
        "and `exit_code`.\n"
    )
    for code, lines in sorted(by_code.items()):
        text += f"\nExit code {code}:\n\n" + "".join(f"- {line}\n" for line in lines)
    return text


def on_post_page(output: str, **_: Any) -> str:
    """Searching from a folder needs a script that the theme would fetch; it is among our files."""
    return output.replace("https://unpkg.com/iframe-worker/shim", "assets/iframe-worker.js")


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for pages without a text of their own, such as 404.html."""
    return on_post_page(output_content)
