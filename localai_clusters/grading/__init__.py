"""Grading: records held against a rubric, against one another, and against the model itself (replay)."""
