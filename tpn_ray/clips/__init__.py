"""From a stored video to a uint8 clip. No Ray, no model."""
