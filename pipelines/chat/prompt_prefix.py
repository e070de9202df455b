"""Whether training ids begin with the generation prompt that serving would send, found for every row at little cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipelines.chat.encoder import Encoder
from pipelines.chat.rendered import RenderedBatch
from pipelines.chat.template import TemplateError
from pipelines.core.conversation import Conversation


class PromptPrefixCheck:
    """Checks rendered conversations. `prompt_ids` makes the prompt of messages and tools.

    A text is cut at its control tokens, so of a prompt whose plan knows its fixed end only the ids from the last control
    token on can differ, and these are the same for all. Where the end has none, prompts are encoded together; a
    conversation without a plan has its prompt rendered.
    """

    def __init__(self, encoder: Encoder, prompt_ids: Callable[..., np.ndarray]) -> None:
        self._encoder = encoder
        self._prompt_ids = prompt_ids
        self._ends: dict[str, np.ndarray] = {}

    def check(
        self, conversations: Sequence[Conversation], batch: RenderedBatch, rows: Sequence[int]
    ) -> list[bool | None]:
        """Of each row: does it begin with its prompt, whose last token is masked? None when there is nothing to answer."""
        found: dict[int, bool | None] = {}
        whole: dict[int, str] = {}
        counts = batch.masks.prompts.tolist()
        for i in rows:
            placed = batch.placed[i]
            text = placed.prompt if placed else None
            if placed is None or text is None:
                found[i] = self._rendered(conversations[i], batch, i)
            elif counts[i] >= 0 and len(end := self._end(text)):
                found[i] = _stands(batch, i, end, counts[i])
            else:
                whole[i] = placed.text.encode()[: placed.places.prompt].decode()
        encoded = self._encoder.encode(list(whole.values()))
        for k, i in enumerate(whole):
            prompt = encoded.ids[encoded.offsets[k] : encoded.offsets[k + 1]]
            found[i] = _stands(batch, i, prompt, len(prompt))
        return [found[i] for i in rows]

    def _end(self, text: str) -> np.ndarray:
        """Ids of a prompt's fixed end from its last control token on; none if it has none."""
        if text not in self._ends:
            cuts = [match.start() for match in self._encoder.controls.pattern.finditer(text)]
            self._ends[text] = self._encoder.encode_reference(text[cuts[-1] :] if cuts else "")
        return self._ends[text]

    def _rendered(self, conversation: Conversation, batch: RenderedBatch, i: int) -> bool | None:
        messages: list[dict[str, Any]] = conversation.messages()
        last = max(k for k, message in enumerate(messages) if message["role"] == "assistant")
        try:
            prompt = self._prompt_ids(messages[:last], conversation.tools)
        except TemplateError:  # nothing is before the first answer: there is no prompt to answer
            return None
        return _stands(batch, i, prompt, len(prompt))


def _stands(batch: RenderedBatch, i: int, ids: np.ndarray, end: int) -> bool:
    """Whether these ids stand in conversation `i` before its token number `end`, the last of them masked."""
    start = int(batch.offsets[i])
    if end < len(ids) or start + end > batch.offsets[i + 1]:
        return False
    return batch.ids[start + end - len(ids) : start + end].tobytes() == ids.tobytes() and not (
        end and batch.weights[start + end - 1]
    )
