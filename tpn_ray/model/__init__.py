"""From a clip to scores. Torch only."""
