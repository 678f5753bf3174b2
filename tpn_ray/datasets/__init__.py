"""Datasets: lists of videos with labels and splits, published annotations, shards, and synthetic videos. No Ray."""
