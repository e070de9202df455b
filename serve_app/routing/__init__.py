"""From a request's model name to what answers it."""
