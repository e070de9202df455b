"""What a person sees: bars on a terminal, one line a bar in a log, text exactly as it was given."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jobs.console import ConsoleProgress


def console(terminal: bool, width: int = 60) -> tuple[ConsoleProgress, io.StringIO]:
    out = io.StringIO()
    return ConsoleProgress(
        Console(file=out, force_terminal=terminal, width=width, highlight=False)
    ), out


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
    assert out.getvalue().startswith("  train steps: 1,500 (") and out.getvalue().endswith(
        "/s) loss 1.0\n"
    )
    assert "\x1b" not in out.getvalue()


def test_in_a_log_a_long_bar_says_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 59.0, 60.0, 60.0, 119.0, 121.0, 121.0, 130.0])
    monkeypatch.setattr("jobs.console.time.monotonic", lambda: next(now))
    progress, out = console(terminal=False)
    with progress.bar("train steps", 1500) as advance:
        for step in range(4):
            advance(100, f"loss {step}")
    assert out.getvalue().splitlines() == [
        "  train steps: 200 of 1,500 loss 1",
        "  train steps: 400 of 1,500 loss 3",
        "  train steps: 400 (3.1/s) loss 3",
    ]


def test_on_a_narrow_terminal_the_text_is_broken_not_cut() -> None:
    progress, out = console(terminal=True, width=60)
    printed = (
        "loss 0.5123  1:02:05 left  12,100 tokens/s  lr 2.00e-04  grad 1.25  MFU 61% of "
        "790 TFLOP/s measured"
    )
    with progress.bar("train steps", 9000) as advance:
        advance(1200, printed)
    frame = out.getvalue().split("\x1b[?25h")[0]
    assert (
        "train steps" in frame
        and "1,200 of 9,000" in frame
        and "\n  loss 0.5123" in frame.replace("\r", "")
    )
    assert "measured" in frame and "…" not in frame


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
    assert out.getvalue().endswith("\x1b[?25h\x1b[2K") or "\x1b[?25h" in out.getvalue(), (
        "the cursor comes back"
    )
