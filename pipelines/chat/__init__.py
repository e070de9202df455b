"""The one renderer: a conversation becomes token ids and loss weights, a list of messages becomes a generation prompt."""

from pipelines.chat.renderer import ChatRenderer, Rendered, RenderedBatch
from pipelines.chat.template import MARKS, ROW_FAULTS, TemplateError
from pipelines.chat.tokenizer import TokenizerSpec

__all__ = [
    "MARKS",
    "ROW_FAULTS",
    "ChatRenderer",
    "Rendered",
    "RenderedBatch",
    "TemplateError",
    "TokenizerSpec",
]
