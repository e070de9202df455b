"""Renderers of every template family, with the fast path and without."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.chat.default_templates import ALPACA_TEMPLATE
from tests.unit.chat.template_families import FAMILIES, Family, shared_tokenizer

TEMPLATES = Path(__file__).parent / "templates"


@pytest.fixture(scope="session")
def template_of(pocket_base: str) -> Callable[[str], str]:
    def read(family: str) -> str:
        if family == "pocket":
            return (Path(pocket_base) / "chat_template.jinja").read_text()
        return (
            ALPACA_TEMPLATE if family == "alpaca" else (TEMPLATES / f"{family}.jinja").read_text()
        )

    return read


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """The tokenizer that families without one of their own share."""
    return shared_tokenizer()


@pytest.fixture(scope="session")
def renderers(template_of) -> Callable[..., ChatRenderer]:
    """make(family, fast, compiled): one renderer of each kind, made once."""

    @functools.cache
    def tokenizer_json(build: Callable[[], Tokenizer]) -> str:
        return build().to_str()

    @functools.cache
    def make(name: str, fast: bool = False, compiled: bool = True) -> ChatRenderer:
        family = FAMILIES.get(name, Family(""))
        text = tokenizer_json(family.tokenizer)
        spec = TokenizerSpec(text, template_of(name), family.named_tokens)
        return ChatRenderer(spec, fast, compiled)

    return make


@pytest.fixture(scope="session", params=[True, False], ids=["compiled", "interpreted"])
def compiled(request) -> bool:
    """Whether renderers use the fast path. Tests that take this fixture run both ways."""
    return request.param


@pytest.fixture(scope="session")
def renderer_of(renderers, compiled) -> Callable[[str], ChatRenderer]:
    return lambda name: renderers(name, compiled=compiled)


@pytest.fixture(scope="session")
def reference_of(renderers):
    """The transformers tokenizer of a family."""
    from transformers import PreTrainedTokenizerFast

    @functools.cache
    def make(name: str):
        spec = renderers(name).spec
        backend = Tokenizer.from_str(spec.tokenizer_json)
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, chat_template=spec.template, **spec.named_tokens
        )

    return make
