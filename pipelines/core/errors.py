"""Errors that a user can correct, and how an error's text becomes part of a message."""

from __future__ import annotations


class UserError(ValueError):
    """A user error: the command line prints its message in one line and exits with code 2."""


class RetryError(UserError):
    """An error that may pass: the same command can succeed later. Exit code 1."""


def one_line(error: object, limit: int | None = None) -> str:
    """The text of an error with its line breaks and runs of spaces as single spaces.

    Longer texts are cut at `limit` characters. An error without a text gives the name of its type.
    """
    return " ".join(str(error).split())[:limit] or type(error).__name__
