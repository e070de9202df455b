"""The training stage: packed rows in, verified checkpoints out, on any number of workers."""
