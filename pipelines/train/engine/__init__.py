"""DeepSpeed behind a small protocol, and collectives."""
