"""The network, from a clip to scores. Torch only."""
