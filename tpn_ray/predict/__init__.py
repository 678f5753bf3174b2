"""Prediction: from a checkpoint and videos to scores, with Ray Data."""
