"""Fused families."""

from __future__ import annotations

FUSED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose decoder layers have a fused form."""
