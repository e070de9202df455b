"""The field's own words: private terms and riddles of earlier versions do not come back."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.test_tree import ROOT, tracked

# Variables and parameters must name the thing that they hold.
VAGUE_NAMES = {"found", "held", "kept", "whole", "said", "odd", "one", "what", "told", "knob"}

# Identifiers of earlier versions; CONTRIBUTING.md has the terms that replaced them.
OLD_NAMES = {
    "Abilities", "Absence", "Controls", "Following", "Inspected", "Layouter", "LostRows", "Notice",
    "RowAdapters", "Snapshot", "Widths", "WorkerPlan", "by_digest", "clear_way", "explaining",
    "held_in", "lay_out", "least_of_ranks", "mistakes", "newest_sound", "of_rank_0", "placed",
    "probe_abilities", "sealed", "trained_in", "typed_in",
    "without_stop", "wrongly",
}  # fmt: skip

OLD_PHRASES = (
    r"\bshall\b",
    r"\bstands? in (the|a|its|no|one)\b",
    r"\blies? in (the|a|its|no|one)\b",
    r"\bis said\b",
    r"\bsays so\b",
    r"\bgo(es)? on from\b",
    r"\bmakes? anew\b",
    r"\banew\b",
    r"\bwhat of\b",
    r"\bof which\b.*\bof which\b",
    r"\bin a line\b",
    r"\bmend(s|ed|ing)?\b",
    r"\balike\b",
    r"\bbeside\b",
    r"\baside\b",
    r"\bapart\b",
    r"\bno (JSON|loss|answer|version) is\b",
)
PHRASE = re.compile("|".join(OLD_PHRASES), re.IGNORECASE)


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path != Path(__file__)]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of comments and docstrings of code, and of all lines of Markdown."""
    text = path.read_text()
    if path.suffix == ".md":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type == tokenize.STRING and token.string.startswith(('"""', 'r"""')):
            yield from enumerate(token.string.splitlines(), token.start[0])


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every variable, parameter, attribute, function, class and import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr.removeprefix("_")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name.removeprefix("_")
        elif isinstance(node, ast.alias):
            yield node.lineno, node.name.rsplit(".", 1)[-1]


def show(path: Path, line: int, text: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {text.strip()}"


def test_no_variable_has_a_vague_name() -> None:
    wrong = [
        show(path, node.lineno, node.id if isinstance(node, ast.Name) else node.arg)
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if (
            isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Store)
            and node.id in VAGUE_NAMES
        )
        or (isinstance(node, ast.arg) and node.arg in VAGUE_NAMES)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_identifier_of_an_earlier_version_is_back() -> None:
    wrong = [
        show(path, line, name)
        for path in python_files()
        for line, name in names(ast.parse(path.read_text()))
        if name in OLD_NAMES
    ]
    assert not wrong, "\n".join(wrong)


def test_prose_has_no_phrase_of_the_private_dialect() -> None:
    files = [path for path in tracked() if path.suffix in (".py", ".md") and path != Path(__file__)]
    wrong = [
        show(path, line, text)
        for path in files
        for line, text in prose(path)
        if PHRASE.search(text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("suffix", [".py", ".sh"])
def test_lines_have_at_most_100_columns(suffix: str) -> None:
    wrong = [
        show(path, number, line[:60])
        for path in tracked()
        if path.suffix == suffix
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 100
    ]
    assert not wrong, "\n".join(wrong)
