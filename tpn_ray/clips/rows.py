"""Names of the columns that travel through Ray Data, spelled once. Runs anywhere."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

POSITION = "position"
"""int64: place of the clip in the run's plan (`Plan.position`); -1 marks filling, which is never trained on."""

SAMPLE = "sample"
"""int64: row of the manifest."""

CLIP = "clip"
"""uint8 (t, h, w, c): the pixels, augmented, RGB."""

WHERE = "where"
"""int64 (4,): of a video whose views are scored, where its frames begin in PIXELS, counted from its row's first
byte, their number, height and width."""

PLACES = "places"
"""int64 (clips, t): which of its frames make each clip."""

SEED = "seed"
"""int64: decides where its random crops are."""

SECONDS = "seconds"
"""float64 (2,): begin and end of a video, or of a window within it; nan where it could not be read."""

LABELS = "labels"
"""int64 (s,): one class number for each label set."""

REASON = "reason"
"""str: empty, or why the video cannot be used (a key of `tpn_ray.errors.REASONS`); the clip is then black."""

MESSAGE = "message"
"""str: what exactly was wrong with it."""

PIXELS = "pixels"
"""uint8 (k,): instead of CLIP, the clips of a block as decoded, one after the other; the k-th part of them in each row.
Flat again, they are what `tpn_ray.clips.develop` takes. Clips differ in size, and so a row is not a clip. The same, of
the frames that views show, is what `tpn_ray.clips.seen` takes."""

NOTES = "notes"
"""float64 (22,): where a clip is in PIXELS and what is still to be done to it: `tpn_ray.clips.notes.Note`."""

Rows = dict[str, NDArray[Any]]
