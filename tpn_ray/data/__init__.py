"""Clips at scale, with Ray Data."""
