"""Limits on the rank and the scale of an adapter that is registered or served."""

from __future__ import annotations

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank (0.24 to 0.29); an adapter may have any rank up
to that value.
"""

REGISTRY_MAX_RANK, REGISTRY_MAX_SCALE = 1024, 256.0
"""The registry refuses an adapter above either: no useful training makes one, a damaged or hostile
file can.
"""
