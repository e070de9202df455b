"""The columns and cells of the table of supported bases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["yes", "no", "refused", "not run", "silent", "broken"]

COLUMNS = {
    "loads": "loads",
    "packed": "trains packed",
    "alone": "trains alone",
    "nf4": "quantizes to nf4",
    "fp8": "quantizes to fp8",
    "merges": "merges",
    "evaluates": "evaluates",
    "served": "served by transformers",
    "vllm": "served by vLLM",
}
"""The columns of the table, by their names in JSON."""


@dataclass(frozen=True)
class Cell:
    """What became of one use of a base.

    - yes: the result equals that of transformers and PEFT, within rounding.
    - refused: a line says why, and what to do.
    - no: not built yet. not run: nothing was tried.
    - silent: the product goes through with another result; broken: it ends in an error that is no
      line for a user. Both are faults of the product.
    """

    verdict: Verdict
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict

    @property
    def is_fault(self) -> bool:
        return self.verdict in ("silent", "broken")


YES = Cell("yes")
NOT_BUILT = Cell("no")
