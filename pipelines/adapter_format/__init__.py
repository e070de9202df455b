"""The two files of an adapter in PEFT's format: reading, limits, scale."""
