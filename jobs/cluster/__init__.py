"""Connecting to Ray and submitting jobs."""
