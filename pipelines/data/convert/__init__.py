"""Rows become conversations; filters decide which conversations stay."""
