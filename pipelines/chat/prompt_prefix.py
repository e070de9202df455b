"""Check that a conversation's training ids begin with the generation prompt that serving sends.

If they do not, the model is trained on another prompt than the one that it gets in serving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines.chat.rendered import RenderedBatch
from pipelines.chat.template import TemplateError
from pipelines.core.conversation import Conversation


def begins_with_prompt(
    conversation: Conversation, batch: RenderedBatch, i: int, prompt_ids: Callable[..., np.ndarray]
) -> bool | None:
    """True if conversation `i` of the batch begins with the generation prompt of its last answer.

    The prompt's last token must also be outside the loss; the loss weights of its other tokens are
    not checked. `prompt_ids(messages, tools)` renders a prompt. Returns None if it raises
    TemplateError, for example because no message precedes the answer.
    """
    messages: list[dict[str, Any]] = conversation.messages()
    last = max(k for k, message in enumerate(messages) if message["role"] == "assistant")
    try:
        prompt = prompt_ids(messages[:last], conversation.tools)
    except TemplateError:
        return None
    return has_masked_ids_before(batch, i, prompt, len(prompt))


def has_masked_ids_before(batch: RenderedBatch, i: int, ids: np.ndarray, end: int) -> bool:
    """True if conversation `i` has `ids` directly before its token `end`, the last one masked.

    `ids` is a prompt or only its tail; `end` is the number of tokens of the complete prompt.
    Masked means that the token is outside the loss.
    """
    start = int(batch.offsets[i])
    if end < len(ids) or start + end > batch.offsets[i + 1]:
        return False
    same = batch.ids[start + end - len(ids) : start + end].tobytes() == ids.tobytes()
    return same and not (end and batch.weights[start + end - 1])
