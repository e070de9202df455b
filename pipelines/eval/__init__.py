"""The evaluate and promote stages: scores, reports, and the gate's decision."""
