"""Limits on the rank and the scale of an adapter that is registered or served."""

from __future__ import annotations

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM (0.24 to 0.29) accepts for --max-lora-rank, the upper limit of ranks."""

REGISTRY_MAX_RANK, REGISTRY_MAX_SCALE = 1024, 256.0
"""The registry refuses adapters above either limit.

Useful training makes no such adapter; a damaged or hostile file can contain one.
"""
