"""What a person sees: bars on a terminal, one line a bar in a log, text exactly as it was given."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jobs.console import ConsoleProgress


def console(terminal: bool, width: int = 60) -> tuple[ConsoleProgress, io.StringIO]:
    out = io.StringIO()
    return ConsoleProgress(Console(file=out, force_terminal=terminal, width=width, highlight=False)), out


def test_a_note_is_never_cut_wrapped_or_taken_for_markup() -> None:
    progress, out = console(terminal=False)
    text = "train: [bold]not markup[/bold] /a/long/path/" + "x" * 200
    progress.note(text)
    assert out.getvalue() == text + "\n"


def test_in_a_log_a_bar_is_one_line_when_it_ends_with_count_rate_and_the_last_text() -> None:
    progress, out = console(terminal=False)
    with progress.bar("train steps", 1500) as advance:
        advance(1000, "loss 2.0")
        assert out.getvalue() == ""
        advance(500, "loss 1.0")
        advance(0)
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().startswith("  train steps: 1,500 (") and out.getvalue().endswith("/s) loss 1.0\n")
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_a_bar_shows_how_far_of_how_much_and_goes_away() -> None:
    progress, out = console(terminal=True, width=100)
    with progress.bar("train steps", 60) as advance:
        advance(12, "loss 0.5")
    drawn = out.getvalue()
    assert "12 of 60" in drawn and "loss 0.5" in drawn
    assert drawn.rstrip().splitlines()[-1].endswith("/s) loss 0.5")


def test_a_bar_that_breaks_off_is_closed_and_the_error_passes() -> None:
    progress, out = console(terminal=True)
    with pytest.raises(ZeroDivisionError), progress.bar("rows") as advance:
        advance(3)
        raise ZeroDivisionError
    assert out.getvalue().endswith("\x1b[?25h\x1b[2K") or "\x1b[?25h" in out.getvalue(), "the cursor comes back"
