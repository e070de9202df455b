"""Optimizers: AdamW of torch and of bitsandbytes."""
