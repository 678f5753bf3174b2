"""What dashboards show of runs and campaigns: Prometheus metrics that Ray exports. Runs on drivers and in Tune trials.

Ray's agent on each node serves them on the node's metrics port, with the prefix ray_. The dashboard in
cluster/kuberay/monitoring reads them. Where nobody asks, they cost next to nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

import ray.util.metrics

from tpn_ray.score import NAMES
from tpn_ray.training.events import Committed, Event, Failed, NodeLoad, Progress, Started

PREFIX = "tpn_"
RUN_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "step": ("Step that the run has reached.", ()),
    "steps": ("Steps of the whole run.", ()),
    "workers": ("Workers that train now; 0 while there are none.", ()),
    "starts": ("Groups of workers that have started.", ()),
    "loss": ("Training loss since the last report.", ()),
    "clips_per_second": ("Clips trained per second, over all workers.", ()),
    "waiting_share": ("Share of the time that workers waited for clips since the last report.", ()),
    "seconds_left": ("Seconds until the end of the run at the present speed.", ()),
    "val_top1": ("Validation top-1 of the last evaluation.", ()),
    "val_map": ("Validation mAP of the last evaluation, where videos have several classes.", ()),
    "checkpoint_unixtime": ("When the last checkpoint was committed, in seconds since the epoch.", ()),
    "worker_seconds": ("All workers' time by what it went into; compute and evaluation are goodput.", ("part",)),
    "bad_videos": ("Videos that cannot be used.", ("reason",)),
}
"""Metrics of a run: description, and the labels besides `run`."""
CAMPAIGN_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "campaign_trials": ("Trials of the campaign.", ("state",)),
    "campaign_epochs": ("Epochs of the campaign: trained so far, and planned.", ("state",)),
    "campaign_best_top1": ("Highest validation top-1 of the campaign.", ()),
}
"""Metrics of a campaign: description, and the labels besides `campaign`."""

_made: dict[str, ray.util.metrics.Gauge] = {}


def _set(name: str, value: float, labels: Mapping[str, str], about: tuple[str, tuple[str, ...]]) -> None:
    if name not in _made:
        _made[name] = ray.util.metrics.Gauge(PREFIX + name, description=about[0], tag_keys=tuple(labels))
    _made[name].set(value, tags=dict(labels))


class RunGauges:
    """The metrics of one run, kept up by its events."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._starts = 0

    def __call__(self, event: Event, seconds: Mapping[str, float], reasons: Iterable[str]) -> None:
        """Show an event, where the workers' time has gone, in seconds by part, and the reasons of all bad videos."""
        match event:
            case Started():
                self._starts += 1
                self._set(step=event.step, workers=event.workers, starts=self._starts)
            case Failed():
                self._set(workers=0)
            case Progress():
                self._set(
                    step=event.step,
                    steps=event.steps,
                    loss=event.loss,
                    clips_per_second=event.clips_per_second,
                    waiting_share=event.waiting,
                    seconds_left=event.seconds_left,
                )
            case Committed():
                self._set(checkpoint_unixtime=time.time())
                self._set(**{name: event.scores[name] for name in NAMES if name in event.scores})
        if not isinstance(event, Progress | NodeLoad):
            for part, amount in seconds.items():
                self._one("worker_seconds", amount, part=part)
            for reason, count in Counter(reasons).items():
                self._one("bad_videos", count, reason=reason)

    def over(self) -> None:
        """Show that nothing trains any more."""
        self._set(workers=0, clips_per_second=0, waiting_share=0, seconds_left=0)

    def _set(self, **values: float) -> None:
        for name, value in values.items():
            self._one(name, value)

    def _one(self, name: str, value: float, **labels: str) -> None:
        _set(name, value, {"run": self._run, **labels}, RUN_GAUGES[name])


def set_campaign(campaign: str, name: str, value: float, **labels: str) -> None:
    """Set one of CAMPAIGN_GAUGES."""
    _set(name, value, {"campaign": campaign, **labels}, CAMPAIGN_GAUGES[name])
