"""Output of a preparing job: a progress line, and a summary at its end. Runs on the driver."""

from __future__ import annotations

from collections import Counter

from tpn_ray import storage
from tpn_ray.datasets.shards import FLOW_BYTES, QUARANTINE
from tpn_ray.meter import duration
from tpn_ray.prepare.preparing import PrepareProgress, Summary


def progress_line(progress: PrepareProgress) -> str:
    """Format the videos done, bad ones, speed, and time left."""
    totals, seconds = progress.totals, max(progress.seconds, 1e-3)
    mine = totals.videos + len(totals.bad)
    done, left = progress.before + mine, progress.videos_in_all - progress.before - mine
    speed = mine / seconds
    text = f"{done}/{progress.videos_in_all} videos  {progress.bad} bad  {totals.frames / seconds:.0f} frames/s"
    return f"{text}  {size(totals.video_bytes)} made" + (f"  {duration(left / speed)} left" if mine and left else "")


def summary_lines(summary: Summary, folder: str) -> list[str]:
    """Summarize the job: what was made, what was not, how long it took, and what it saves."""
    dataset, totals = summary.dataset, summary.totals
    splits = ", ".join(f"{counts['videos']} {split}" for split, counts in dataset["splits"].items())
    videos = sum(counts["videos"] for counts in dataset["splits"].values())
    frames = sum(counts["frames"] for counts in dataset["splits"].values())
    stored = sum(counts["video_bytes"] for counts in dataset["splits"].values())
    lines = [
        f"dataset      {storage.absolute(folder)}  version {dataset['version']}",
        f"videos       {videos} ({splits}), {frames} frames, {size(stored)}",
        f"this run     {totals.videos} videos, {totals.frames} frames, {size(totals.source_bytes)} read,"
        f" {size(totals.video_bytes)} made, in {summary.seconds:.0f} s",
    ]
    if flow := sum(counts.get(FLOW_BYTES, 0) for counts in dataset["splits"].values()):
        lines.insert(2, f"flow         {size(flow)}, {flow / stored:.1f} times as much as the videos")
    if summary.quarantine:
        reasons = Counter(reason for _, _, reason, _ in summary.quarantine)
        counted = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        lines.append(
            f"quarantined  {len(summary.quarantine)} ({counted}), listed in {storage.join(folder, QUARANTINE)}"
        )
    else:
        lines.append("quarantined  none")
    if summary.clip_seconds:
        before, after = summary.clip_seconds
        lines.append(
            f"decoding     {1 / before:.0f} clips/s per core from the sources, {1 / after:.0f} from the dataset:"
            f" {before / after:.1f} times as many (8 frames at stride 8, RGB, median of a sample)"
        )
    return lines


def size(count: int) -> str:
    """Format bytes for people: 12 kB, 3.4 MB, 5.6 GB."""
    if count < 1024**2:
        return f"{count / 1024:.0f} kB"
    return f"{count / 1024**2:.1f} MB" if count < 1024**3 else f"{count / 1024**3:.1f} GB"
