"""Metrics, trackers, throughput and progress."""
