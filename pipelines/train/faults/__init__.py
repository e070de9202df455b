"""Worker failures, preemption and hangs."""
