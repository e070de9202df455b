"""The command line: commands, graphs of stages, and what they need of a cluster."""

from pathlib import Path

CODE = Path(__file__).resolve().parent.parent
"""The folder that holds the packages; a checkout when it has a `.git`."""
