"""From the model name of a request to the adapter or deployment that answers it."""
