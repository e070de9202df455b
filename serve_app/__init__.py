"""The endpoint: one base with many adapters behind an OpenAI-compatible API, and merged copies beside it."""
