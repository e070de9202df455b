"""The renderer of each adapter: its requests are rendered by the chat template that trained it."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.chat.default_templates import effective_template, with_choice
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.digests import digest_of
from serve_app.engines.protocol import AdapterRef


class Renderers:
    """Renderers on one base's tokenizer, made when an adapter is first asked for.

    `own` is the template of requests without an adapter; `template_of` gives the one that trained
    an adapter, and may be slow. At most `capacity` adapters are remembered. Adapters with the same
    template and arguments share one renderer.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        own: TemplateChoice,
        template_of: Callable[[AdapterRef], TemplateChoice],
        capacity: int,
    ) -> None:
        self._spec, self._template_of, self._capacity = spec, template_of, capacity
        self._own = ChatRenderer(with_choice(spec, own))
        self._by_adapter: OrderedDict[str, ChatRenderer] = OrderedDict()
        self._lock = threading.Lock()

    async def get(self, adapter: AdapterRef | None) -> ChatRenderer:
        """The renderer of an adapter, or of the base for None.

        Raises UserError for an adapter whose template cannot be read.
        """
        if adapter is None:
            return self._own
        # Reading the template and the tokenizer takes seconds, in which the event loop must run.
        return self._by_adapter.get(adapter.key) or await asyncio.to_thread(self._load, adapter)

    def _load(self, adapter: AdapterRef) -> ChatRenderer:
        with self._lock:
            if adapter.key in self._by_adapter:
                return self._by_adapter[adapter.key]
            spec = with_choice(self._spec, self._template_of(adapter))
            renderer = self._with_template_of(spec) or ChatRenderer(spec)
            self._by_adapter[adapter.key] = renderer
            while len(self._by_adapter) > self._capacity:
                self._by_adapter.popitem(last=False)
            return renderer

    def _with_template_of(self, spec: TokenizerSpec) -> ChatRenderer | None:
        # By digest, since to Python the arguments True and 1 are equal, and to a template not.
        wanted = digest_of(effective_template(spec))
        known = [self._own, *self._by_adapter.values()]
        return next((each for each in known if digest_of(each.template) == wanted), None)
