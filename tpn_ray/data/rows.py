"""Names of the columns that travel through Ray Data, spelled once. Runs anywhere."""

from __future__ import annotations

POSITION = "position"
"""int64: place of the clip in the run's plan (`Plan.position`); -1 marks filling, which is never trained on."""

SAMPLE = "sample"
"""int64: row of the manifest."""

CLIP = "clip"
"""uint8 (t, h, w, c): the pixels, augmented, RGB."""

VIEWS = "views"
"""uint8 (v, t, h, w, c): every view of one video, for evaluation and prediction."""

LABELS = "labels"
"""int64 (s,): one class number for each label set."""

REASON = "reason"
"""str: empty, or why the video cannot be used (a key of `tpn_ray.errors.REASONS`); the clip is then black."""

MESSAGE = "message"
"""str: what exactly was wrong with it."""
