"""Problems and notes of a dataset about its answers: their ends, prompts and thoughts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.config.schema import AuditConfig


def answer_problems(metadata: Mapping[str, Any], limits: AuditConfig) -> Iterator[str]:
    """What is wrong with the answers of a dataset with this metadata, one line each."""
    checks = _Checks(metadata)
    missing = checks.failed_share("stop_trained")
    if missing > limits.max_stop_missing_share:
        yield (
            f"{missing:.1%} of the answers in the loss do not end in a stop token, above "
            f"data.audit.max_stop_missing_share={limits.max_stop_missing_share}: the model would "
            f"not learn to end; fix the base's chat template{checks.first('stop_trained')}"
        )
    limit = limits.max_prefix_differs_share
    thoughts: Mapping[str, Any] = metadata.get("thoughts", {})
    without = checks.failed_share("thoughts_given")
    if without > limit:
        tag = thoughts.get("tag") or "a thought"
        how = f"opens {tag}" if thoughts.get("opened") else f"leaves room for {tag}"
        yield (
            f"the generation prompt of the base's chat template {how}, and {without:.1%} of the "
            f"answers have no thought, above data.audit.max_prefix_differs_share={limit}: "
            f"{_advice(thoughts)}{checks.first('thoughts_given')}"
        )
    differs = checks.failed_share("prefix_matches") - without
    if differs > limit:
        switch = f": {_advice(thoughts)}" if thoughts.get("switch") else ""
        yield (
            f"{differs:.1%} of the checked answers do not stand behind the generation prompt that "
            f"serving sends, above data.audit.max_prefix_differs_share={limit}: the chat template "
            "writes another text there, or joins prompt and answer without a token between them"
            f"{switch}{checks.first('prefix_matches')}"
        )


def answer_notes(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Facts about the answers that stop nothing, one line each."""
    checks = _Checks(metadata)
    num_left_out = checks.failed("answers_in_place")
    if num_left_out:
        thoughts = metadata.get("thoughts", {})
        yield (
            f"{num_left_out:,} answers before the last are not trained: the base's chat template "
            "writes them behind another text than the generation prompt that serving sends there"
            f"{f'; {_advice(thoughts)}' if thoughts.get('switch') else ''}"
            f"{checks.first('answers_in_place')}"
        )
    num_dropped = checks.failed("thoughts_shown")
    if num_dropped:
        yield (
            f"the base's chat template leaves out {num_dropped:,} of "
            f"{checks.checked('thoughts_shown'):,} thoughts of answers"
            f"{checks.first('thoughts_shown')}"
        )
    num_texts = checks.failed("texts_beside_calls")
    if num_texts:
        yield (
            f"in {num_texts:,} turns the base's chat template leaves out the text next to tool "
            f"calls{checks.first('texts_beside_calls')}"
        )


def _advice(thoughts: Mapping[str, Any]) -> str:
    switch = thoughts.get("switch")
    if switch:
        name, value = switch
        return f"set data.template_arguments: {{{name}: {str(value).lower()}}}"
    return (
        "give the answers their thoughts (reasoning_content), or set data.chat_template to a "
        "template that asks for none"
    )


class _Checks:
    """The counts of a manifest's checks, and the first row that fails each."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._counts: Mapping[str, int] = metadata.get("checks", {})
        self._first: Mapping[str, str] = metadata.get("first_rows", {}).get("checks", {})

    def checked(self, name: str) -> int:
        return self._counts.get(f"{name}_checked", 0)

    def failed(self, name: str) -> int:
        return self._counts.get(f"{name}_failed", 0)

    def failed_share(self, name: str) -> float:
        return self.failed(name) / max(1, self.checked(name))

    def first(self, name: str) -> str:
        """The first row that fails a check, for the end of a line."""
        return f" (first: {self._first[name]})" if name in self._first else ""
