"""From frames to clips: which frames, crops, views, and augmentation. No Ray, no model."""
