"""The tables of the paper as campaigns of runs."""
