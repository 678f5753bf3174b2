"""From the bytes of a video to its frames and back: containers, decoding, encoding. No Ray, no model."""
