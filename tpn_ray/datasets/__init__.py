"""Datasets: lists of videos with labels and splits, published annotations, shards, and made videos. No Ray."""
