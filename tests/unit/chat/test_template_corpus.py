"""No conversation is trained wrong in silence on any of the published kinds of templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers.utils import chat_template_utils

from pipelines.chat import ChatRenderer
from tests.unit.chat.corpus_conversations import CONVERSATIONS
from tests.unit.chat.corpus_oracle import Check
from tests.unit.chat.corpus_reference import FIXED_DATE, Reference, injection_faults
from tests.unit.chat.corpus_templates import FOLDER, PUBLISHED, spec_of
from tests.unit.chat.template_families import FAMILIES

TALKS = list(CONVERSATIONS.values())


@pytest.fixture(autouse=True)
def fixed_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make transformers print the date that the product prints."""
    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: FIXED_DATE))


# Their prompts end in a space, which the tokenizer joins with the answer's first word.
JOINED = {"ernie45"}
STOPS = {
    "num_missing_stop": "stop",
    "num_leaked_tokens": "leak",
    "num_prompts_differ": "prompt",
    "num_no_thought": "no-thought",
}


def _checks(reference: Reference) -> dict[str, Check]:
    renderer = reference.renderer
    batch = renderer.render_batch(TALKS)
    checks = {}
    for i, (name, talk) in enumerate(CONVERSATIONS.items()):
        stops = [stop for count, stop in STOPS.items() if getattr(batch.masks, count)[i]]
        notes = ["thought"] if batch.masks.num_dropped_thoughts[i] else []
        has_both = any(turn.tool_calls and turn.content for turn in talk.turns)
        notes += ["text"] if has_both and not renderer.shows_text_with_calls else []
        checks[name] = Check(reference, talk, batch, i, stops, notes)
    return checks


def _fast_path_faults(renderer: ChatRenderer) -> Iterator[str]:
    """Where the fast path, which takes rows without tools, changes the result."""
    plain = [talk for talk in TALKS if not talk.tools]
    slow = ChatRenderer(renderer.spec, compiled=False).render_batch(plain)
    fast = renderer.render_batch(plain)
    if fast.errors != slow.errors:
        yield f"the fast path refuses {fast.errors}, not {slow.errors}"
    if not np.array_equal(fast.ids, slow.ids) or not np.array_equal(fast.weights, slow.weights):
        yield "the fast path has other ids or weights"
    # The fast path does not look for thoughts in texts that a template writes as they are.
    for count in {field.name for field in dataclasses.fields(fast.masks)} - {"num_thoughts"}:
        if not np.array_equal(*(getattr(batch.masks, count) for batch in (fast, slow))):
            yield f"the fast path counts other {count}"


CASES = [
    pytest.param(name, arguments, id="-".join([name, *(f"{k}={v}" for k, v in arguments.items())]))
    for name, published in PUBLISHED.items()
    for arguments in published.all_arguments
]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_nothing_is_trained_wrong_in_silence(name: str, arguments: Mapping[str, Any]) -> None:
    published = PUBLISHED[name]
    reference = Reference(ChatRenderer(spec_of(name, arguments)), published.end_texts)
    checks = _checks(reference)
    silent = [f"{talk}: {fault}" for talk, check in checks.items() for fault in check.silent]
    silent += injection_faults(reference)
    silent += _fast_path_faults(reference.renderer)
    assert not silent, "\n".join(silent)
    must_train = ["single", "system"] if arguments == published.plain else []
    must_train += ["two_turns"] if must_train and name not in JOINED else []
    must_train += ["thought"] if arguments == published.thinking else []
    outcomes = {talk: checks[talk].outcome for talk in must_train}
    assert set(outcomes.values()) <= {"trained"}, outcomes


@pytest.mark.parametrize("name", FAMILIES)
def test_families_train_nothing_wrong_in_silence(
    name: str, renderers: Callable[..., ChatRenderer]
) -> None:
    renderer = renderers(name)
    family = FAMILIES[name]
    checks = _checks(Reference(renderer, (family.stop.strip(),)))
    silent = [f"{talk}: {fault}" for talk, check in checks.items() for fault in check.silent]
    assert not silent, "\n".join(silent)


def test_the_corpus_is_complete_and_small() -> None:
    files = {path.stem: path.stat().st_size for path in FOLDER.glob("*.jinja")}
    assert files.keys() == {*PUBLISHED, *(p.with_tools for p in PUBLISHED.values())} - {""}
    assert len(files) >= 60
    assert sum(files.values()) < 120_000
