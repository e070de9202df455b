"""Keys of rows that nothing reads: those that mean something elsewhere block training.

A key inside of a row's messages is spelled with its path, such as `messages.loss_mask`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

_PREFERENCE = "an answer of a preference pair"
_VERDICT = "tells good answers from bad; where it is allowed, bad ones are trained too"
MEDIA = "media that a text base cannot see"
_LOSS = "which parts enter the loss"
_THOUGHT = "a thought before the answer"
_PROMPT = "a part of the prompt"

MEANINGFUL: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "chosen", "rejected", "chosen_response", "rejected_response", "chosen_messages",
            "rejected_messages", "preferred_output", "non_preferred_output", "rejected_answer",
        ),
        _PREFERENCE,
    ),
    **dict.fromkeys(("label", "labels", "kto_tag", "is_chosen", "is_good"), _VERDICT),
    "margin": "the distance of a preference pair",
    **dict.fromkeys(
        (
            "image", "images", "video", "videos", "audio", "audios", "image_url", "image_path",
            "image_paths", "input_audio", "objects", "pixel_values",
        ),
        MEDIA,
    ),
    **dict.fromkeys(
        (
            "loss", "loss_mask", "loss_weight", "loss_scale", "loss_weights", "mask", "train",
            "train_detail", "train_mask", "training", "training_detail", "trainable", "weight",
            "weights", "sample_weight",
        ),
        _LOSS,
    ),
    **dict.fromkeys(
        (
            "reasoning", "reasoning_content", "reasoning_details", "thinking", "thought",
            "thoughts", "chain_of_thought", "cot", "rationale",
        ),
        _THOUGHT,
    ),
    **dict.fromkeys(
        (
            "choices", "options", "context", "contexts", "document", "documents", "passage",
            "passages", "article", "background", "evidence", "schema", "sql_context", "system",
            "system_prompt", "system_message", "system_instruction", "systemInstruction",
            "instruction", "instructions", "input", "history", "tools", "functions",
            "tool_choice", "chat_template_kwargs", "prefix", "suffix", "refusal",
        ),
        _PROMPT,
    ),
}  # fmt: skip
"""The keys that block training while nothing reads them, each with its meaning elsewhere."""


def meaning(key: str) -> str | None:
    """The meaning elsewhere of a key, given with its path; None for a key without one."""
    return MEANINGFUL.get(key.rpartition(".")[2])


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
