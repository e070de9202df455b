"""Keys of rows that nothing reads: those that mean something elsewhere block training.

A key inside of a row's messages is spelled with its path, such as `messages.loss_mask`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

MEDIA = "media that a text base cannot see"

MEANINGFUL: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "chosen", "rejected", "preferred_output", "non_preferred_output", "margin",
            "better_response_id", "winner",
        ),
        "a preference between two answers",
    ),
    **dict.fromkeys(
        (
            "label", "labels", "kto_tag", "is_chosen", "is_good", "is_correct", "correct",
            "desirable", "reward", "rewards",
        ),
        "tells good answers from bad; where it is allowed, bad ones are trained too",
    ),
    **dict.fromkeys(
        (
            "image", "images", "video", "videos", "audio", "audios", "input_audio", "img", "imgs",
            "objects", "pixel_values", "attachments", "files", "file",
        ),
        MEDIA,
    ),
    **dict.fromkeys(
        (
            "loss", "loss_mask", "loss_masks", "loss_weight", "loss_weights", "loss_scale", "mask",
            "masked", "ignore_loss", "train", "train_detail", "train_mask", "training",
            "training_detail", "trainable", "weight", "weights", "sample_weight",
        ),
        "which parts enter the loss",
    ),
    **dict.fromkeys(
        (
            "reasoning", "reasoning_content", "reasoning_details", "reasoning_text", "thinking",
            "thinking_blocks", "thought", "thoughts", "chain_of_thought", "cot", "rationale",
            "tool_plan", "channel",
        ),
        "a thought before the answer",
    ),
    **dict.fromkeys(
        (
            "function_call", "function_calls", "tool_calls", "recipient", "tool_responses",
            "tool_results", "refusal",
        ),
        "a part of the conversation",
    ),
    **dict.fromkeys(
        (
            "choices", "options", "alternatives", "A", "B", "C", "D", "context", "contexts",
            "document", "documents", "passage", "passages", "paragraph", "article", "background",
            "evidence", "schema", "db_schema", "sql_context", "table", "tables", "system",
            "system_prompt", "system_message", "system_instruction", "systemInstruction",
            "instruction", "instructions", "input", "history", "tools", "functions",
            "tool_choice", "chat_template_kwargs", "prefix", "suffix",
        ),
        "a part of the prompt",
    ),
}  # fmt: skip
"""The keys that block training while nothing reads them, each with its meaning elsewhere."""
# The answers of a preference pair and the places of media have names of many endings.
_ENDINGS = (
    (re.compile(r"(chosen|rejected)_\w+"), MEANINGFUL["chosen"]),
    (re.compile(r"(image|img|video|audio)s?_(path|url|uri|file|bytes|base64)s?"), MEDIA),
)


def meaning(key: str) -> str | None:
    """The meaning elsewhere of a key, given with its path; None for a key without one."""
    name = key.rpartition(".")[2]
    if name in MEANINGFUL:
        return MEANINGFUL[name]
    return next((text for ending, text in _ENDINGS if ending.fullmatch(name)), None)


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
