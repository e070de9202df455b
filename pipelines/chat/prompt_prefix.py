"""Whether the training ids of a conversation begin with the generation prompt that serving sends.

If they do not, the model is trained to continue another prompt than the one that it will get.
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
    """Whether conversation `i` of the batch begins with the prompt of its last answer, masked.

    `prompt_ids` renders the prompt of messages and tools. None where the template refuses to: there
    is no message before the first answer.
    """
    messages: list[dict[str, Any]] = conversation.messages()
    last = max(k for k, message in enumerate(messages) if message["role"] == "assistant")
    try:
        prompt = prompt_ids(messages[:last], conversation.tools)
    except TemplateError:
        return None
    return has_prompt(batch, i, prompt, len(prompt))


def has_prompt(batch: RenderedBatch, i: int, ids: np.ndarray, end: int) -> bool:
    """Whether conversation `i` has these ids just before its token `end`, the last of them masked.

    Where only a prompt's tail is compared, `end` is the number of tokens of the complete prompt.
    """
    start = int(batch.offsets[i])
    if end < len(ids) or start + end > batch.offsets[i + 1]:
        return False
    same = batch.ids[start + end - len(ids) : start + end].tobytes() == ids.tobytes()
    return same and not (end and batch.weights[start + end - 1])
