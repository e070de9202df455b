"""The one renderer of conversations, for training and for serving.

It turns a conversation into token ids and loss weights, and messages into a generation prompt.
"""

from pipelines.chat.renderer import ChatRenderer, Rendered, RenderedBatch
from pipelines.chat.template import MARKS, ROW_FAULTS, TemplateError
from pipelines.chat.tokenizer_spec import TokenizerSpec

__all__ = [
    "MARKS",
    "ROW_FAULTS",
    "ChatRenderer",
    "Rendered",
    "RenderedBatch",
    "TemplateError",
    "TokenizerSpec",
]
