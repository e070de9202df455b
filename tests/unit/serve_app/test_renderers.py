"""Requests are rendered by the template that trained their adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.chat import ChatRenderer
from pipelines.chat.default_templates import ALPACA_TEMPLATE, with_choice
from pipelines.config.schema import ModelConfig, ServeConfig
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.errors import UserError
from pipelines.model.base import load_base
from serve_app.engines.protocol import AdapterRef
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.engines.transformers.renderers import Renderers
from tests.unit.serve_app.test_transformers_engine import Reference, ask, chat


def test_adapters_in_one_batch_get_the_prompt_of_their_own_template(
    pocket_base: str,
    adapter_folders: dict[str, Path],
    renderer: ChatRenderer,
) -> None:
    polite = "{% if polite is defined %}{{ 'please ' }}{% endif %}" + (renderer.template.text or "")
    choices = {
        "ada": TemplateChoice(ALPACA_TEMPLATE),
        "bob": TemplateChoice(polite, None, {"polite": True}),
        "cyn": TemplateChoice(),
    }

    def template_of(adapter: AdapterRef) -> TemplateChoice:
        if adapter.key == "gone":
            raise UserError("its template is gone")
        return choices[adapter.key]

    templates = Renderers(renderer.spec, TemplateChoice(), template_of, 2)
    model = load_base(ModelConfig(base=pocket_base, dtype="fp32"), "cpu")
    engine = TransformersEngine(
        model, templates, ServeConfig(), lambda adapter: adapter_folders[adapter.key]
    )
    names = ["ada", "bob", "cyn", None]
    requests = [chat("who sold the map to Mira", name) for name in names]
    try:
        answers = ask(engine, *requests)
        for name, request, delta in zip(names, requests, answers, strict=True):
            own = ChatRenderer(with_choice(renderer.spec, choices[name])) if name else renderer
            folders = {name: adapter_folders[name]} if name else {}
            assert delta == Reference(pocket_base, folders, own)(request)
        assert len({delta.prompt_tokens for delta in answers}) == 3
        with pytest.raises(UserError, match="its template is gone"):
            ask(engine, chat("hi", "gone"))
        assert ask(engine, *requests) == answers
    finally:
        engine.close()
