"""Decoder layers of the Llama kind with LoRA, as few large products and nothing stored that is cheap to have again."""
