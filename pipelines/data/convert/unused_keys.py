"""Keys of rows that nothing reads: those that mean something elsewhere block training.

A key inside of a row's messages is spelled with its path, such as `messages.loss_mask`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping

MEDIA = "media that a text base cannot see"
PREFERENCE = "a preference between two answers"
_GOOD_OR_BAD = "tells good answers from bad; where it is allowed, bad ones are trained too"
_LOSS = "which parts enter the loss"
_THOUGHT = "a thought before the answer"
_TURN = "a part of the conversation"
_PROMPT = "a part of the prompt"
_VARIABLE = "a variable of the chat template"

MEANINGFUL: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "chosen", "rejected", "preferred_output", "non_preferred_output", "margin",
            "better_response_id", "winner", "loser", "preference", "preferences", "better", "worse",
        ),
        PREFERENCE,
    ),
    **dict.fromkeys(
        (
            "label", "labels", "kto_tag", "is_chosen", "is_good", "is_correct", "correct",
            "desirable", "reward", "rewards", "accepted", "acceptable", "feedback", "verdict",
            "correctness", "upvoted", "downvoted", "thumbs",
        ),
        _GOOD_OR_BAD,
    ),
    **dict.fromkeys(
        (
            "image", "images", "video", "videos", "audio", "audios", "input_audio", "img", "imgs",
            "picture", "pictures", "photo", "photos", "image_url", "objects", "pixel_values",
            "attachments", "files", "file",
        ),
        MEDIA,
    ),
    **dict.fromkeys(
        (
            "loss", "loss_mask", "loss_masks", "loss_weight", "loss_weights", "loss_scale", "mask",
            "masked", "ignore_loss", "train", "train_detail", "train_mask", "training",
            "training_detail", "trainable", "weight", "weights", "sample_weight", "ignore",
            "ignored", "skip", "skipped", "exclude", "excluded", "learn",
        ),
        _LOSS,
    ),
    **dict.fromkeys(
        (
            "reasoning", "reasoning_content", "reasoning_details", "reasoning_text", "thinking",
            "thinking_blocks", "thought", "thoughts", "chain_of_thought", "cot", "rationale",
            "rationales", "scratchpad", "tool_plan", "channel",
        ),
        _THOUGHT,
    ),
    **dict.fromkeys(
        (
            "function_call", "function_calls", "tool_calls", "recipient", "tool_responses",
            "tool_results", "refusal", "replies",
        ),
        _TURN,
    ),
    **dict.fromkeys(
        (
            "choices", "options", "alternatives", "a", "b", "c", "d", "context", "contexts",
            "document", "documents", "passage", "passages", "paragraph", "article", "background",
            "evidence", "schema", "db_schema", "sql_context", "table", "tables", "system",
            "system_prompt", "system_message", "system_instruction", "instruction", "instructions",
            "input", "history", "tools", "functions", "tool_choice", "tool_config", "prefix",
            "suffix", "candidates", "endings", "ctx", "chat_history", "message",
            "meta_instruction", "definition", "premise", "persona", "personality",
        ),
        _PROMPT,
    ),
    **dict.fromkeys(
        (
            "chat_template_kwargs", "enable_thinking", "thinking_mode", "reasoning_effort",
            "add_generation_prompt",
        ),
        _VARIABLE,
    ),
}  # fmt: skip
"""The keys that block training while nothing reads them, each with its meaning elsewhere.

Their names are in lower case, with words joined by `_`.
"""
# Other names of the same keys, by how they are put together.
_PATTERNS: Mapping[str, tuple[str, ...]] = {
    PREFERENCE: (
        r"(chosen|rejected|preference)_\w+",
        r"(dis|non_|un)?preferred(_(output|response|answer|completion|id|index))?",
        r"(winn|los)(er|ing)_\w+",
        r"(better|worse|best|worst)_(response|answer|completion)\w*",
        r"(response|completion|answer|output|reply|generation)_?([a-d]|[0-9]|[jkwl])",
    ),
    _GOOD_OR_BAD: (
        r"(is|was)_(bad|wrong|incorrect|accepted|acceptable|rejected|desirable|preferred)",
        r"(is|was)_(positive|negative)|un(desirable|acceptable)|incorrect",
        r"(completion|binary|kto|preference|quality|answer|response|human|reward|is)_labels?",
        r"(user|human|thumbs)_(feedback|up|down|vote)|reward_scores?",
    ),
    MEDIA: (
        r"(image|img|video|audio)s?_(path|url|uri|file|bytes|base64|name|data)s?",
        r"(image|img)_?(file_?)?(name|id)s?|(image|img|video|audio)_?[0-9]",
    ),
    _LOSS: (
        r"(?!attention_)(\w+_)?(loss(es)?|mask(s|ed)?|weights?)|(loss|mask)_\w+",
        r"(is_|do_|should_|no_|not_|un)train(able|ed|ing)?|train_(on|this|flag|turn)\w*",
        r"(is_|do_|should_)(ignored?|skip(ped)?|learn|excluded?)|(\w+_)?in_loss",
    ),
    _THOUGHT: (
        r"(\w+_)?(cot|chain_of_thought|reasoning|thinking|thoughts?)",
        r"(cot|reasoning|thinking|thought)_(content|text|trace|step|process|chain|path)s?",
        r"(reasoning|thinking|thought)_trajector(y|ies)",
    ),
    _PROMPT: (
        r"(option|opt|choice|ending|distractor)s?_?([a-h]|[0-9]|text|list)?",
        r"op[a-e]",
    ),
}
_COMPILED = {text: re.compile("|".join(parts)) for text, parts in _PATTERNS.items()}
_TEXT_KEYS = frozenset({"content", "value", "text", "parts"})  # of a turn, next to its text
_ADVICE: Mapping[str, str] = {
    PREFERENCE: "remove it, or, to train the other answer alone, set {allow}",
    _GOOD_OR_BAD: "remove the rows with bad answers, and set {allow}",
    MEDIA: "remove its rows, or set {allow} if their texts alone are to be trained",
    _LOSS: "write `train: false` or `weight` into the turns of a `messages` row, or remove the "
    "rows that are not to be trained and set {allow}",
    _THOUGHT: "name it reasoning_content in the answer's turn, or reasoning next to a question "
    "(`columns: {{reasoning: {name}}}`), or set {allow}",
    _TURN: "write it into the text of its turn, or set {allow}",
    _PROMPT: "if it is a text next to a question, map it in the source's `columns` to context, "
    "input or system; else write it into the text of the question, or set {allow}",
    _VARIABLE: "set it in data.template_arguments, which holds for all rows, and set {allow}",
}


def meaning(key: str) -> str | None:
    """The meaning elsewhere of a key, given with its path; None for a key without one."""
    return _meaning(key)


def advice(key: str, name: str) -> str:
    """What to do about a key that blocks; `name` is its spelling in the message."""
    return _ADVICE[_meaning(key) or _TURN].format(
        allow=f"data.unused_keys.allow=[{name}]", name=name
    )


@functools.lru_cache(4096)
def _meaning(key: str) -> str | None:
    path, _, name = key.rpartition(".")
    if path and name in _TEXT_KEYS:
        return _TURN
    if name in ("a", "b", "c", "d"):  # choices are in upper case
        return None
    for spelling in (name.casefold(), re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).casefold()):
        spelling = re.sub(r"[\W_]+", "_", spelling)
        if spelling in MEANINGFUL:
            return MEANINGFUL[spelling]
        for text, pattern in _COMPILED.items():
            if pattern.fullmatch(spelling):
                return text
    return None


def blocking(counts: Mapping[str, int], allow: Collection[str]) -> list[str]:
    """The unused keys that block training, most frequent first; `counts` has their rows.

    `allow` has keys, with their path or without it, that may stay unused.
    """
    return [key for key in _by_rows(counts) if meaning(key) and not _is_allowed(key, allow)]


def harmless(counts: Mapping[str, int], allow: Collection[str]) -> list[str]:
    """The unused keys that are only noted, most frequent first: those that do not block."""
    return [key for key in _by_rows(counts) if not meaning(key) or _is_allowed(key, allow)]


def _is_allowed(key: str, allow: Collection[str]) -> bool:
    return key in allow or key.rpartition(".")[2] in allow


def _by_rows(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda key: (-counts[key], key))
