"""The code of the documentation: every fenced block, and how it is executed.

The blocks of a page are executed in its order, in one process and an empty folder, like the cells
of a notebook: ``bash`` line by line, ``python`` with the names of the blocks before it. A block
that begins with ``# some/path.ext`` is written to that file; ``text`` is no code. Comments right
before a block change that, where a reader of the source sees it::

    <!-- not run: why -->            not executed, but parsed; its configuration is composed
    <!-- in tests: OLD -> NEW -->    with NEW in the place of OLD
    <!-- in tests: WORDS -->         with WORDS behind every `lfads` command
    <!-- prints: TEXT -->            TEXT is in what it prints
    <!-- fails: TEXT -->             its last command fails, and TEXT is in what it prints
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import NamedTuple

import yaml

from lfads_torch.cli import build_parser, main
from lfads_torch.runs.compose import compose_config

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted(ROOT.glob("docs/**/*.md")),
    )
    if "_build" not in path.parts
}
EXECUTED = ("bash", "python", "yaml")
NO_CODE = ("text",)

# Primary configuration of a command, and the groups that are added to it.
_PRIMARY: dict[str, tuple[str, dict[str, str] | None]] = {
    "train": ("single", None),
    "pbt": ("pbt", {"search": "pbt"}),
    "search": ("search", {"search": "random"}),
}

_BLOCK = re.compile(
    r"(?P<notes>(?:^<!--(?:(?!-->).)*-->\n)*)^```(?P<language>[\w{}-]*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NOTE = re.compile(r"<!-- (not run|in tests|prints|fails): (.*?) -->", re.DOTALL)
_FILE = re.compile(r"# (\S+\.\w+)\n")


class Block(NamedTuple):
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    in_tests: tuple[str, ...] = ()
    prints: tuple[str, ...] = ()
    fails: tuple[str, ...] = ()

    @property
    def file(self) -> str | None:
        """The file that the block is the text of."""
        match = _FILE.match(self.text)
        return match[1] if match else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page that is not a directive."""
    text = PAGES[page].read_text(encoding="utf-8")
    page_blocks = []
    for match in _BLOCK.finditer(text):
        language, code = match["language"], match["text"]
        if language == "{code-cell}":  # without its options, such as tags
            language, code = "python", re.sub(r"\A(:[\w-]+:.*\n)+", "", code)
        if language.startswith("{"):
            continue
        notes: dict[str, list[str]] = {}
        for kind, what in _NOTE.findall(match["notes"]):
            notes.setdefault(kind, []).append(" ".join(what.split()))
        page_blocks.append(
            Block(
                page,
                text.count("\n", 0, match.start("language")) + 1,
                language,
                code,
                next(iter(notes.get("not run", [])), None),
                *(tuple(notes.get(kind, ())) for kind in ("in tests", "prints", "fails")),
            )
        )
    return page_blocks


def execute(block: Block, names: dict[str, object]) -> None:
    """Execute a block in the working directory."""
    text, more = _as_tested(block)
    if block.file:
        target = Path(block.file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return
    output = io.StringIO()
    statuses = []
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        if block.language == "python":
            exec(compile(text, str(block), "exec"), names)
        else:
            statuses = [_run(command, more, block) for command in commands(text)]
    printed = " ".join(output.getvalue().split())
    expected = [0] * len(statuses)
    if block.fails:
        expected[-1:] = [2]
    assert statuses == expected, f"{block}: exit {statuses}\n{output.getvalue()}"
    for what in (*block.prints, *block.fails):
        assert what in printed, f"{block} does not print {what!r}\n{output.getvalue()}"


def _run(command: list[str], more: list[str], block: Block) -> int:
    program, *arguments = command
    assert program == "lfads", f"{block}: {program} is not executed; say `not run: why`"
    return main([*_expanded(arguments), *more])


def check_only(block: Block) -> None:
    """See to it that a block which is not executed could be."""
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    else:
        for command in commands(block.text):
            if "lfads" in command:
                _check_command(command[command.index("lfads") + 1 :])


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def _as_tested(block: Block) -> tuple[str, list[str]]:
    text, more = block.text, []
    for note in block.in_tests:
        old, arrow, new = note.partition(" -> ")
        if arrow:
            assert old in text, f"{block} has no {old!r} to replace"
            text = text.replace(old, new)
        else:
            more += shlex.split(note)
    return text, more


def _expanded(arguments: list[str]) -> Iterator[str]:
    """What a shell makes of ``*`` in names of files, which patterns of ours are told in quotes."""
    for text in arguments:
        paths = sorted(glob(text)) if "*" in text and "=" not in text else []
        yield from paths or [text]


def _check_command(arguments: list[str]) -> None:
    options, rest = build_parser().parse_known_args([a for a in arguments if a != "..."])
    assert options.command, arguments
    if not hasattr(options, "overrides"):
        assert not rest, f"{arguments}: {rest}"
        return
    # A data file stands for itself; where a page is not run, it need not be there.
    overrides = [
        text if "=" in text else f"datamodule.datafile_pattern={text}"
        for text in (*options.overrides, *rest)
    ]
    assert all("=" in text for text in overrides), f"{arguments}: {overrides}"
    if options.command not in _PRIMARY or options.resume:
        return
    if not any("datamodule" in text for text in overrides):
        overrides.append("datamodule.datafile_pattern=my_data.h5")
    primary, groups = _PRIMARY[options.command]
    compose_config(options.config or primary, overrides, groups=groups)
