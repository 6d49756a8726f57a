"""Scores against truth, and the end of every flow."""
