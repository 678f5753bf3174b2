"""Reproduction of the paper's tables as campaigns of runs."""
