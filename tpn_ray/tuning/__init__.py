"""Tuning campaigns: successive halving, and Ray Tune's schedulers."""
