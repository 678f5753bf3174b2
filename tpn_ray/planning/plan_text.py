"""A plan formatted as tables and as flags to use. Runs on the driver."""

from __future__ import annotations

import math
import shlex

from rich.table import Table
from rich.text import Text

from tpn_ray.meter import duration
from tpn_ray.output import program
from tpn_ray.planning import figures
from tpn_ray.planning.figures import Advice, Estimate, Hardware, Measured, Span, Trials

MEASURED, ASSUMED, GIVEN, COMPUTED = "measured", "assumed", "given", "computed"

Line = tuple[str, str, str]
"""Quantity, value with its span, and source."""


def as_table(title: str, rows: list[Line]) -> Table:
    """Format rows as a table of three columns."""
    table = Table(title=title, title_justify="left", show_edge=True)
    for column in ("quantity", "value (lowest to highest)", "from"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def measured_rows(measured: Measured) -> list[Line]:
    """Return the inputs to the advice."""
    rows: list[Line] = [
        ("decoding, one core", f"{span(measured.decode_clips_per_second)} clips/s", MEASURED),
        (
            "training step, one worker",
            f"{span(measured.step_clips_per_second)} clips/s",
            GIVEN if measured.step_given else MEASURED,
        ),
    ]
    if measured.score_clips_per_second:
        rows.append(("scoring, one worker", f"{measured.score_clips_per_second:.3g} clips/s", MEASURED))
    rows += [
        ("left of a step's speed in a run", span(figures.EFFICIENCY), ASSUMED),
        ("start and end of a run", f"{span(figures.START_SECONDS)} s", ASSUMED),
        ("block in the object store", size(measured.block_bytes), MEASURED),
        ("blocks for each decoding task", span(figures.BLOCKS_PER_TASK), ASSUMED),
        ("memory of a decoding task", size(measured.decode_task_bytes), f"{MEASURED}, its peak"),
    ]
    if measured.worker_bytes:
        rows.append(("memory of a worker", size(measured.worker_bytes), f"{MEASURED}, with room for its state"))
    if measured.worker_gpu_bytes:
        rows.append(("GPU memory of a worker", size(measured.worker_gpu_bytes), f"{MEASURED}, with room for its state"))
    return rows


def advice_rows(measured: Measured, advice: Advice, hardware: Hardware) -> list[Line]:
    """Return the advice: machines, speed, and hours."""
    nodes, what = advice.nodes, "GPU" if hardware.per_worker.gpus == 1 else "worker"
    rows: list[Line] = [
        (f"decoding cores for each {what}", span(advice.cores_per_worker), COMPUTED),
        ("nodes that train", f"{nodes.training}, {nodes.spare_cpus} cores of each decode", COMPUTED),
        (
            f"nodes of {hardware.node_cpus} cores that decode",
            f"{nodes.decoding}, that is {nodes.decoding / nodes.training:.2g} for each that trains",
            f"{COMPUTED}, for the highest",
        ),
        ("object store, node that trains", sizes(nodes.training_store_bytes), COMPUTED),
        (
            f"memory, node that trains{'' if measured.worker_bytes else ', without its workers'}",
            sizes(nodes.training_memory_bytes),
            COMPUTED,
        ),
    ]
    if nodes.decoding:
        rows += [
            ("object store, node that decodes", sizes(nodes.decoding_store_bytes), COMPUTED),
            ("memory, node that decodes", sizes(nodes.decoding_memory_bytes), COMPUTED),
        ]
    limit = "decoding sets it" if advice.decoding_limits else "training sets it"
    return [
        *rows,
        ("speed of a run", f"{span(advice.clips_per_second)} clips/s, {limit}", COMPUTED),
        ("epochs per hour", span(advice.epochs_per_hour), COMPUTED),
        (f"a run of {advice.run.epochs} epochs", taking(advice.run, hardware), COMPUTED),
        (
            f"a campaign of {advice.campaign.epochs} epochs, rungs at {', '.join(map(str, advice.rungs))}",
            taking(advice.campaign, hardware),
            COMPUTED,
        ),
    ]


def shards(measured: Measured, advice: Advice, data: str) -> list[str]:
    """Explain whether to prepare the dataset, and what it would gain."""
    if measured.prepared:
        return ["The dataset is prepared: nothing to gain there."]
    found = measured.preparing
    if found is None:
        return ["The gain from preparing could not be measured: none of the first videos is usable."]
    cores, hours = figures.after_preparing(measured), figures.preparing_core_hours(measured)
    lines = [
        f"The dataset is not prepared. {found.videos} videos were prepared for comparison (measured): their clips cost "
        f"1/{found.speedup.middle:.2g} ({found.speedup.low:.2g} to {found.speedup.high:.2g} times as fast), and they "
        f"take {found.bytes_share:.2g} of the bytes.",
        f"All of it would take {span(hours)} core-hours, once; a worker would then need {span(cores)} decoding cores "
        f"instead of {span(advice.cores_per_worker)} (computed).",
    ]
    if found.speedup.middle > 1.1:
        return [*lines, f"  {program('python')} jobs/prepare.py --data {data} --out PREPARED"]
    return [*lines, "For these videos, it is hardly worth it."]


def train_flags(hardware: Hardware, advice: Advice) -> str:
    """Return the flags for jobs/train.py."""
    each, custom = hardware.per_worker, shlex.join(hardware.per_worker.resources)
    return (
        f"--workers {hardware.workers} --gpus-per-worker {each.gpus:g} --cpus-per-worker {each.cpus:g} "
        f"{f'--worker-resources {custom} ' if custom else ''}--decode-tasks {advice.nodes.decode_tasks}"
    )


def tune_flags(hardware: Hardware, trials: Trials, advice: Advice) -> str:
    """Return the flags for jobs/tune.py."""
    return (
        f"--samples {trials.samples} --rungs {trials.rungs} --reduction-factor {trials.reduction_factor} "
        f"--min-promoted {trials.min_promoted} --max-concurrent {trials.max_concurrent} "
        f"{train_flags(hardware, advice)}"
    )


def store_flags(advice: Advice) -> list[str]:
    """Return the `ray start` flags for each kind of node."""
    lines = [
        f"nodes that train:  ray start ... --object-store-memory {math.ceil(advice.nodes.training_store_bytes.high)}"
    ]
    if advice.nodes.decoding:
        store = math.ceil(advice.nodes.decoding_store_bytes.high)
        lines.append(f"nodes that decode: ray start ... --object-store-memory {store}")
    return lines


def taking(hours: Estimate, hardware: Hardware) -> str:
    """Format a duration, with its price if prices are known."""
    low, middle, high = (duration(value * 3600) for value in hours.hours)
    text = f"{middle} ({low} to {high})"
    return f"{text}, price {span(hours.price)}" if hardware.price_gpu_hour or hardware.price_cpu_hour else text


def span(value: Span) -> str:
    """Format the middle value, with the ends if they differ."""
    low, middle, high = (number(one) for one in value)
    return middle if low == high else f"{middle} ({low} to {high})"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def size(value: float) -> str:
    return f"{value / 1e9:.2g} GB" if value >= 1e8 else f"{value / 1e6:.2g} MB"


def sizes(value: Span) -> str:
    low, middle, high = (size(one) for one in value)
    return middle if low == high else f"{middle} ({low} to {high})"
