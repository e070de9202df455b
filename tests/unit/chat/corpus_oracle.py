"""Which tokens of a conversation must have a loss, found without the product's spans.

The rule: transformers' own render of the conversation must begin with its own render of the
messages before an answer as a generation prompt. Then everything from the end of that prompt to the
text that ends the turn is what the model writes in serving, and nothing else of the row has a loss.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
import numpy as np
from tokenizers import Tokenizer

from pipelines.chat import ROW_FAULTS, ChatRenderer, RenderedBatch, TemplateError
from pipelines.chat.fallbacks import apply_fallbacks
from pipelines.core.conversation import Conversation, Turn

FIXED_DATE = datetime(2024, 7, 26)  # what templates print that print today's date
_THOUGHT_ENDS = ("</think>", "[/THINK]", "</seed:think>", "<channel|>")
Messages = Sequence[Mapping[str, Any]]


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

    def prompt_before(self, conversation: Conversation, turn: int) -> str | None:
        messages, tools, _ = self.as_rendered(conversation, turn)
        return self.render(messages, tools, prompt=True)

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


class _Answer(NamedTuple):
    """An answer of a render: where serving's prompt before it ends, -1 if the render does not begin
    with that prompt; the characters of its text and calls; and where the text that ends it ends,
    -1 if none follows.
    """

    prompt_end: int
    first: int
    last: int
    end: int


class Check:
    """One conversation of a batch against the rule. `silent` names what is wrong and not told."""

    def __init__(
        self,
        reference: Reference,
        conversation: Conversation,
        batch: RenderedBatch,
        i: int,
        counted: Sequence[str],
    ) -> None:
        """`counted`: the names of the product's checks that this row fails."""
        self.reference, self.conversation = reference, conversation
        self.ids, self.weights = batch[i].input_ids, batch[i].loss_weights
        self.refused = batch.errors.get(i, "")
        self.counted = tuple(counted)
        self.silent = [] if self.refused else list(self._faults())

    @property
    def _asks_thoughts(self) -> bool:
        return True in self.reference.renderer.spec.arguments.values()

    @property
    def outcome(self) -> str:
        if self.refused:
            return "refused"
        return ",".join(self.counted) or "trained"

    def _faults(self) -> Iterator[str]:
        messages, tools, index = self.reference.as_rendered(self.conversation)
        text = self.reference.render(messages, tools)
        if text is None:
            yield "transformers refuses the conversation, the product trains it"
            return
        ids, offsets = self.reference.encode(text)
        if ids.tolist() != self.ids[: len(ids)].tolist():
            spelled = self.reference.tokenizer.decode(self.ids)
            yield f"not transformers' ids: {spelled!r}, not {text!r}"
            return
        yield from self._hidden(messages, tools, text)
        allowed = np.zeros(len(ids), bool)
        last = 0
        for k, (turn, at) in enumerate(zip(self.conversation.turns, index, strict=True)):
            if turn.role != "assistant":
                continue
            prompt = self.reference.prompt_before(self.conversation, k)
            answer = self._locate(text, messages, at, prompt, last)
            last = max(last, answer.last)
            inside = self._tokens_of(answer, text, offsets)
            weight = turn.weight if turn.train else 0.0
            allowed |= inside & (weight > 0)
            yield from self._answer_faults(text, offsets, answer, inside, weight, k)
        added = self.ids[len(ids) :]  # an end that the template leaves out
        ends = self.reference.tokenizer.convert_tokens_to_ids(list(self.reference.ends))
        if not set(added.tolist()) <= set(ends):
            yield f"tokens behind the render: {added.tolist()}"
        outside = ~allowed & (self.weights[: len(ids)] > 0)
        if outside.any() and not self.counted:
            yield f"trained outside of the answers: {self._spell(outside, text, offsets)}"

    def _answer_faults(
        self,
        text: str,
        offsets: np.ndarray,
        answer: _Answer,
        inside: np.ndarray,
        weight: float,
        k: int,
    ) -> Iterator[str]:
        weights = self.weights[: len(offsets)]
        content = (offsets[:, 0] < answer.last) & (offsets[:, 1] > answer.first)
        is_trained = bool((weights[content] > 0).any())
        if not weight:
            if is_trained:
                yield f"turn {k} is trained though it must not be"
            return
        if self.counted:
            return
        if answer.prompt_end < 0:
            if is_trained:
                yield f"turn {k} is trained behind another prompt than serving's, not counted"
            return
        prompt, _ = self.reference.encode(text[: answer.prompt_end])
        if prompt.tolist() != self.ids[: len(prompt)].tolist():
            yield f"turn {k}: the row's ids do not begin with the prompt's, not counted"
        if answer.end < 0 and len(self.ids) == len(offsets):
            yield f"turn {k} has no end, not counted"
        written = text[answer.prompt_end : answer.first]
        closes_thought = any(mark in written for mark in _THOUGHT_ENDS)
        if closes_thought and not self.conversation.turns[k].reasoning and not self._asks_thoughts:
            yield f"turn {k} trains an empty thought that no argument asks for: {written!r}"
        missing = inside & (weights == 0)
        if missing.any():
            yield f"turn {k}: not trained: {self._spell(missing, text, offsets)}"
        if (inside & (weights > 0) & (weights != weight)).any():
            yield f"turn {k} does not have the weight {weight}"

    def _locate(
        self, text: str, messages: Messages, at: int, prompt: str | None, start: int
    ) -> _Answer:
        message = messages[at]
        prompt_end = len(prompt) if prompt is not None and text.startswith(prompt) else -1
        start = max(start, prompt_end)
        words = [str(message.get("content") or "").strip()]
        for call in message.get("tool_calls", ()):
            words += [call["function"]["name"], *map(str, call["function"]["arguments"].values())]
        places = [(text.find(word, start), len(word)) for word in words if word]
        places = [(first, first + size) for first, size in places if first >= 0]
        if not places:
            return _Answer(prompt_end, start, start, -1)
        first, last = min(places)[0], max(end for _, end in places)
        ends = [(text.find(end, last), end) for end in self.reference.ends if end in text[last:]]
        following = [str(other["content"]).strip() for other in messages[at + 1 : at + 2]]
        next_text = min(
            (text.find(word, start) for word in following if word in text[start:]),
            default=len(text),
        )
        if following and following[0] and next_text < last:  # a result inside of the answer
            return _Answer(-1, first, last, -1)
        position, end = min(ends, default=(-1, ""))
        if position < 0 or position > next_text:
            return _Answer(prompt_end, first, last, -1)
        return _Answer(prompt_end, first, last, position + len(end))

    def _tokens_of(self, answer: _Answer, text: str, offsets: np.ndarray) -> np.ndarray:
        """The tokens from the end of the prompt to the end of the turn."""
        if answer.prompt_end < 0:
            return np.zeros(len(offsets), bool)
        end = answer.end
        if end < 0:
            end = answer.last
        behind = np.array([text[end:last].isspace() for _, last in offsets.tolist()])
        return (
            (offsets[:, 0] >= answer.prompt_end)
            & (offsets[:, 0] < end)
            & ((offsets[:, 1] <= end) | behind)
        )

    def _hidden(self, messages: Messages, tools: Sequence[Any], text: str) -> Iterator[str]:
        """Parts of the row that the render does not show, and that no check counts."""
        if self.counted:
            return
        shown = [
            (str(m["content"]).strip(), f"the text of turn {i}") for i, m in enumerate(messages)
        ]
        shown += [(tool["function"]["name"], "a tool") for tool in tools]
        for turn in self.conversation.turns:
            shown += [(turn.reasoning, "a thought")] * (turn.role == "assistant")
            for call in turn.tool_calls:
                shown += [(str(v), "a call") for v in call["function"]["arguments"].values()]
        for part, kind in shown:
            if part not in text and repr(part)[1:-1] not in text:
                yield f"{kind} is not in the render and not counted: {part!r}"

    def _spell(self, mask: np.ndarray, text: str, offsets: np.ndarray) -> str:
        characters = sorted({i for a, b in offsets[mask].tolist() for i in range(a, b)})
        return repr("".join(text[i] for i in characters))


def serving_faults(reference: Reference, conversation: Conversation) -> Iterator[str]:
    """Where the server's prompt before an answer is not transformers'."""
    for k, turn in enumerate(conversation.turns):
        if turn.role != "assistant":
            continue
        expected = reference.prompt_before(conversation, k)
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
    """Tokens that the text of a user turn becomes: special ones, or those that the template writes."""
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
