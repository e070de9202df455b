"""Limits of an adapter."""

from __future__ import annotations

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank (0.24 to 0.29); an adapter may have any rank up to it."""


REGISTRY_MAX_RANK, REGISTRY_MAX_SCALE = 1024, 256.0
"""What an adapter may have that becomes a model version; `adapter_files` looks at the files themselves."""
