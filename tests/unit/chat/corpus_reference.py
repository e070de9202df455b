"""transformers' own renders of the conversations of a renderer, and of serving's prompts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import numpy as np
from tokenizers import Tokenizer

from pipelines.chat import ROW_FAULTS, ChatRenderer, TemplateError
from pipelines.chat.fallbacks import apply_fallbacks
from pipelines.core.conversation import Conversation, Turn

Messages = Sequence[Mapping[str, Any]]
FIXED_DATE = datetime(2024, 7, 26)  # what templates print that print today's date


@dataclass(frozen=True)
class Reference:
    """transformers' tokenizer of a renderer. `ends` are the texts that end a turn."""

    renderer: ChatRenderer
    ends: Sequence[str]

    @functools.cached_property
    def tokenizer(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        spec = self.renderer.spec
        templates = {"default": spec.template, "tool_use": spec.tool_template or spec.template}
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(spec.tokenizer_json),
            chat_template=templates,
            **spec.named_tokens,
        )

    def render(self, messages: Messages, tools: Sequence[Any], prompt: bool = False) -> str | None:
        """transformers' render; None where the template refuses the messages."""
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.renderer.spec.arguments,
            )
        except (jinja2.TemplateError, *ROW_FAULTS):
            return None

    def prompts(self, conversation: Conversation) -> dict[int, str | None]:
        """The generation prompt before each assistant turn, None where the template refuses it."""
        prompts = {}
        for k, turn in enumerate(conversation.turns):
            if turn.role == "assistant":
                messages, tools, _ = self.as_rendered(conversation, k)
                prompts[k] = self.render(messages, tools, prompt=True)
        return prompts

    def as_rendered(
        self, conversation: Conversation, count: int | None = None
    ) -> tuple[list[dict[str, Any]], Sequence[Any], list[int]]:
        """The first `count` messages as the template gets them, in training and in serving."""
        messages = conversation.messages()[:count]
        out, tools, index = apply_fallbacks(
            messages, conversation.tools, self.renderer.capabilities
        )
        return [dict(message) for message in out], tools, index

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [T], and the characters of each token, int64 [T, 2]."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        return np.array(encoded["input_ids"], np.int32), offsets


def serving_faults(
    reference: Reference, conversation: Conversation, prompts: Mapping[int, str | None]
) -> Iterator[str]:
    """Where the server's prompt before an answer is not transformers'."""
    for k, expected in prompts.items():
        try:
            prompt = reference.renderer.prompt_ids(
                conversation.messages()[:k], conversation.tools
            ).tolist()
        except TemplateError as error:
            if expected is not None:
                yield f"serving refuses the prompt before turn {k}: {error}"
            continue
        if expected is None:
            yield f"serving renders a prompt before turn {k} that transformers refuses"
        elif prompt != reference.encode(expected)[0].tolist():
            yield f"serving's prompt before turn {k} is not transformers': {expected!r}"


def injection_faults(reference: Reference) -> Iterator[str]:
    """Tokens that the text of a user turn becomes: special ones, and those in the template."""
    renderer = reference.renderer
    source = str(renderer.spec.template)
    added = reference.tokenizer.added_tokens_decoder.items()
    written = {i: t.content for i, t in added if t.special or t.content in source}
    spelled = "x " + " y ".join(written.values())
    clean, injected = (
        Conversation((Turn("user", text), Turn("assistant", "fine"))) for text in ("x", spelled)
    )
    batch = renderer.render_batch([clean, injected])
    if batch.errors:
        yield f"text that spells tokens is refused: {batch.errors}"
        return
    ids = [[i for i in batch[row].input_ids.tolist() if i in written] for row in (0, 1)]
    if ids[0] != ids[1]:
        yield f"text of a user turn becomes tokens: {ids[1]}, not {ids[0]}"
