"""Errors that a user can correct."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend. The command line prints its one line and exits with code 2."""
