"""The endpoint: an OpenAI-compatible API over a base with adapters and merged copies."""
