"""Names of the columns that travel through Ray Data, defined once. Runs anywhere."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

POSITION = "position"
"""int64: place of the clip in the run's plan (`Plan.position`); -1 marks padding, which is never trained on."""

SAMPLE = "sample"
"""int64: row of the manifest."""

CLIP = "clip"
"""uint8 (t, h, w, c): the augmented pixels, RGB or flow."""

WHERE = "where"
"""int64 (5,): for a video whose views are scored, the offset of its frames in PIXELS, counted from its row's first
byte, and their number, height, width, and values per pixel."""

PLACES = "places"
"""int64 (clips, t): which of its frames make up each clip."""

SEED = "seed"
"""int64: seed of the random crops."""

SECONDS = "seconds"
"""float64 (2,): start and end of a video, or of a window within it; nan if it could not be read."""

LABELS = "labels"
"""int64 (s,): one class number for each label set."""

REASON = "reason"
"""str: empty, or why the video cannot be used (a key of `tpn_ray.errors.REASONS`); the clip is then black."""

MESSAGE = "message"
"""str: what exactly was wrong with it."""

PIXELS = "pixels"
"""uint8 (k,): instead of CLIP, the clips of a block as decoded, concatenated; each row holds one k-th of them.
Flattened again, they are what `tpn_ray.clips.develop` takes. Clips differ in size, so a row is not a clip. For views,
the column holds the frames they show, which `tpn_ray.clips.seen` takes."""

NOTES = "notes"
"""float64 (22,): where a clip is in PIXELS and what remains to be done to it: `tpn_ray.clips.notes.Note`."""

Rows = dict[str, NDArray[Any]]
