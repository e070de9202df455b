"""Commands that README and docs print can be run as printed: options and paths exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.cli import app
from tests.architecture.test_tree import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
# Files of the reader's own, in examples.
READERS_OWN = ("recipe.yaml", "my_rows.jsonl", "my_rows.json", "alpaca_en_demo.json", "FILE")


def blocks(page: Path) -> Iterator[str]:
    """Code blocks that a reader may paste: indented by four spaces, or fenced as a shell's."""
    text = page.read_text()
    for fenced in re.finditer(
        r"^```(?:bash|sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        yield fenced[1]
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for indented in re.finditer(r"(?:^    .*\n?)+", text, re.MULTILINE):
        yield re.sub(r"^    ", "", indented[0], flags=re.MULTILINE)


def commands(page: Path) -> Iterator[str]:
    """Command lines of a page, comments cut off, in code blocks and between backticks."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:loraforge|make|python -m bench\.) ?[^`]+)`", page.read_text())
    for line in lines:
        for part in re.split(r"&&|;", re.sub(r"(^|\s)#.*", "", line)):
            words = part.strip()
            if re.match(r"(\S*/)?(loraforge|make|python)\b", words):
                yield words


PRINTED = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]


def test_pages_print_commands() -> None:
    assert len([line for page, line in PRINTED if page == "README.md"]) >= 10


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The click command that the words name, and what is left of them."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(("page", "line"), PRINTED)
def test_a_printed_command_exists_with_its_options_and_files(page: str, line: str) -> None:
    words = shlex.split(line)
    program = words[0].rsplit("/", 1)[-1]
    if program == "make":
        assert all(word in TARGETS or "=" in word for word in words[1:]), line
    elif program == "loraforge":
        command, rest = command_of(words[1:])
        known = {name for option in command.params for name in option.opts} | {"--help"}
        used = [word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
        assert set(used) <= known | {"--install-completion", "--version"}, line
        files = [word for word in rest if re.search(r"\.(ya?ml)$", word)]
        assert all((ROOT / f).exists() or f.split("/")[-1] in READERS_OWN for f in files), line
    elif "-m" in words:
        module = words[words.index("-m") + 1]
        if module.startswith(("bench.", "tests.", "pipelines.", "jobs.")):
            path = ROOT.joinpath(*module.split("."))
            assert path.is_dir() or path.with_suffix(".py").exists(), line


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_read_printed_commands_as_they_are_meant(shell: str) -> None:
    """Brackets, braces and parentheses outside quotes are patterns or syntax to a shell."""
    wrong = [line for _, line in PRINTED if re.search(r"[\[\](){}*?<>|]", without_quotes(line))]
    assert not wrong
    if shutil.which(shell):
        for _, line in PRINTED:
            done = subprocess.run([shell, "-n", "-c", line], capture_output=True, check=False)
            assert done.returncode == 0, line


def without_quotes(line: str) -> str:
    """The line without its quoted parts."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


def test_readme_links_every_page_of_docs() -> None:
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGES[0].read_text())}
    pages = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md")}
    assert not pages - links
