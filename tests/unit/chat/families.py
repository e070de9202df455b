"""Random conversations, and how a family's template writes their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from pipelines.core.conversation import Conversation, Turn

ALPHABET = "aeint 42 .,:<|>[]/{}\"'\n\t_☃é東👍 "
texts = st.text(ALPHABET, max_size=24)
answers = texts.filter(lambda text: text.strip())


@dataclass(frozen=True)
class Family:
    """How a template writes an answer: its text as rendered, then the stop."""

    stop: str
    write: Callable[[str], str] = str
    system: bool = True
    assistant_first: bool = False


@st.composite
def conversations(draw, family: Family) -> Conversation:
    turns = [Turn("system", draw(answers))] if family.system and draw(st.booleans()) else []
    if family.assistant_first and draw(st.booleans()):
        turns = [Turn("assistant", draw(answers))]
    for _ in range(draw(st.integers(0 if turns and turns[0].role == "assistant" else 1, 3))):
        turns.append(Turn("user", draw(texts)))
        turns.append(
            Turn(
                "assistant",
                draw(answers),
                draw(st.booleans()),
                draw(st.sampled_from([0.0, 0.5, 1.0])),
            )
        )
    return Conversation(tuple(turns))


def texts_of(parts: list[str]) -> st.SearchStrategy[str]:
    """At most nine of these parts, one after the other."""
    return st.lists(st.sampled_from(parts), max_size=9).map("".join)
