"""Preparing: from videos and annotations to a checked, re-encoded, sharded dataset, with Ray Data."""
