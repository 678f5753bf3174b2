"""Campaigns with Ray Tune."""
