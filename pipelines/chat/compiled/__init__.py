"""The fast path of rendering: a chat template compiled to fixed segments. Changes speed,
never the result.

`CompiledTemplates` is the one entry; `ChatRenderer(spec, compiled=False)` renders without it.
"""

from pipelines.chat.compiled.compiler import TemplateCompiler
from pipelines.chat.compiled.fast_path import CompiledTemplates

__all__ = ["CompiledTemplates", "TemplateCompiler"]
