"""The HTTP API: requests, answers, errors, streaming."""
