"""The fast path of rendering: chat templates compiled to segments."""
