"""The audit of a prepared dataset: figures, examples of the loss, and problems."""
