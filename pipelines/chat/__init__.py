"""The one renderer: a conversation becomes token ids and loss weights, a list of messages becomes a generation prompt."""

from pipelines.chat.renderer import ChatRenderer, Rendered, RenderedBatch
from pipelines.chat.template import TemplateError
from pipelines.chat.tokenizer import TokenizerSpec

__all__ = ["ChatRenderer", "Rendered", "RenderedBatch", "TemplateError", "TokenizerSpec"]
