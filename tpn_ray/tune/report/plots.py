"""What a campaign found, as Plotly figures. Pure; runs anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution as Choice
from optuna.distributions import FloatDistribution as Uniform

from tpn_ray.tune.distributions import from_json
from tpn_ray.tune.journal import Trial
from tpn_ray.tune.report.numbers import Findings, importance, rung_correlations, value_text

INK, GREY, ACCENT = "#1f2933", "#b8c1cc", "#0b6e99"
SCALE = "Viridis"
CURVES_IN_COLOUR = 5
HEIGHT_PX = 380


def figures(found: Findings) -> list[tuple[str, str, go.Figure]]:
    """(title, what it shows in a sentence, figure) of every plot that the campaign has the data for."""
    trials = [trial for trial in found.trials if trial.points]
    made = [
        (
            "Learning curves",
            "Validation accuracy by epoch; the best trials in colour. A curve that ends early was paused or stopped.",
            learning_curves(trials),
        ),
        (
            "Settings and accuracy",
            "One line a trial, coloured by its accuracy at its last epoch. Drag along an axis to select.",
            parallel_coordinates(trials, found),
        ),
    ]
    epoch, shares = importance(trials, found.space)
    if shares:
        made.append(
            (
                "Importance",
                f"Share of the variance of accuracy after epoch {epoch} that each field explains (fANOVA).",
                importance_bars(shares),
            )
        )
    for field in found.space:
        if field == "model.alpha" or field.startswith("loss.lambdas"):
            text = "Every trial after the last epoch that all have reached, and those that came to the end."
            made.append((f"Accuracy by {short(field)}", text, accuracy_by(trials, field, found)))
    if len({round(found.gmacs.get(trial.number, 0.0), 3) for trial in trials}) > 1:
        text = "Accuracy at the last epoch of each trial by the billions of multiply-adds of one view."
        made.append(("Accuracy against arithmetic", text, accuracy_by_gmacs(trials, found)))
    correlations = rung_correlations(trials, found.epochs)
    if correlations:
        text = "Spearman's rank correlation of accuracy after each epoch with accuracy at the end, of complete trials."
        made.append(("Does early tell late?", text, correlation_bars(correlations)))
    return [(title, text, _styled(figure)) for title, text, figure in made]


def learning_curves(trials: Sequence[Trial]) -> go.Figure:
    """One curve a trial; the worst are drawn first."""
    figure = go.Figure()
    for place, trial in reversed(list(enumerate(trials))):
        colour = _PALETTE[place] if place < CURVES_IN_COLOUR else GREY
        figure.add_scatter(
            x=[point.epoch for point in trial.points],
            y=[point.top1 for point in trial.points],
            name=trial.name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5 if place < CURVES_IN_COLOUR else 1},
            marker={"size": 5},
            showlegend=place < CURVES_IN_COLOUR,
            legendrank=place,
            hovertemplate=f"{trial.name}, epoch %{{x}}: %{{y:.1%}}<extra></extra>",
        )
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(title="validation top-1", tickformat=".0%")
    return figure


_PALETTE = ("#0b6e99", "#d1495b", "#3f8f4f", "#8a5fb0", "#d08c1d")


def parallel_coordinates(trials: Sequence[Trial], found: Findings) -> go.Figure:
    """One axis a field, the last one the accuracy."""
    axes = [_axis(field, trials, found) for field in found.space]
    tops = [trial.top1 for trial in trials]
    axes.append({"label": "top-1", "values": tops, "tickformat": ".0%"})
    figure = go.Figure(
        go.Parcoords(
            line={"color": tops, "colorscale": SCALE, "showscale": True, "colorbar": {"tickformat": ".0%"}},
            dimensions=axes,
            labelangle=-15,
        )
    )
    figure.update_layout(margin={"t": 90})
    return figure


def _axis(field: str, trials: Sequence[Trial], found: Findings) -> dict[str, Any]:
    distribution = found.space[field]
    values = [trial.sample[field] for trial in trials]
    if isinstance(distribution, Choice):
        places = [distribution.choices.index(from_json(value)) for value in values]
        ticks = list(range(len(distribution.choices)))
        texts = [value_text(value) for value in distribution.choices]
        return {"label": short(field), "values": places, "tickvals": ticks, "ticktext": texts}
    if isinstance(distribution, Uniform) and distribution.log:
        low, high = math.log10(distribution.low), math.log10(distribution.high)
        ticks_at = [low + (high - low) * part / 4 for part in range(5)]
        return {
            "label": short(field),
            "values": [math.log10(value) for value in values],
            "range": [low, high],
            "tickvals": ticks_at,
            "ticktext": [f"{10**tick:.2g}" for tick in ticks_at],
        }
    return {"label": short(field), "values": values, "range": [distribution.low, distribution.high]}


def importance_bars(shares: dict[str, float]) -> go.Figure:
    """The most important on top."""
    fields = sorted(shares, key=lambda field: shares[field])
    bars = go.Bar(
        x=[shares[field] for field in fields],
        y=[short(field) for field in fields],
        orientation="h",
        marker_color=ACCENT,
        text=[f"{shares[field]:.0%}" for field in fields],
        hoverinfo="skip",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title="share of variance", tickformat=".0%", range=[0, 1])
    return figure


def accuracy_by(trials: Sequence[Trial], field: str, found: Findings) -> go.Figure:
    """All trials after the last epoch that all have reached, and complete ones at the end."""
    shared = set[int].intersection(*({point.epoch for point in trial.points} for trial in trials))
    first = max(shared, default=trials[0].points[0].epoch)
    distribution = found.space[field]
    figure = go.Figure()
    for epoch, colour in {first: GREY, found.epochs: ACCENT}.items():
        points = [(trial, point) for trial in trials if (point := trial.at(epoch)) is not None]
        figure.add_scatter(
            x=[_shown(trial.sample[field]) for trial, _ in points],
            y=[point.top1 for _, point in points],
            mode="markers",
            name=f"epoch {epoch}",
            showlegend=True,
            marker={"size": 9, "color": colour, "line": {"width": 1, "color": INK}},
            text=[trial.name for trial, _ in points],
            hovertemplate="%{text}: %{x}, %{y:.1%}<extra></extra>",
        )
    figure.update_yaxes(title="validation top-1", tickformat=".0%")
    if isinstance(distribution, Choice):
        order = [_shown(value) for value in distribution.choices]
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    elif isinstance(distribution, Uniform) and distribution.log:
        figure.update_xaxes(type="log")
    figure.update_xaxes(title=short(field))
    return figure


def accuracy_by_gmacs(trials: Sequence[Trial], found: Findings) -> go.Figure:
    """One point a trial, coloured by how far it came."""
    figure = go.Figure(
        go.Scatter(
            x=[found.gmacs.get(trial.number, 0.0) for trial in trials],
            y=[trial.top1 for trial in trials],
            mode="markers",
            marker={
                "size": 9,
                "color": [trial.epochs for trial in trials],
                "colorscale": SCALE,
                "colorbar": {"title": "epoch"},
                "showscale": True,
            },
            text=[trial.name for trial in trials],
            hovertemplate="%{text}: %{x:.2f} GMACs, %{y:.1%}<extra></extra>",
        )
    )
    figure.update_xaxes(title="GMACs of a view")
    figure.update_yaxes(title="validation top-1", tickformat=".0%")
    return figure


def _shown(value: Any) -> Any:
    return value_text(value) if isinstance(value, list | tuple | str | bool) else value


def correlation_bars(correlations: Sequence[tuple[int, int, float]]) -> go.Figure:
    """One bar an epoch."""
    bars = go.Bar(
        x=[str(epoch) for epoch, _, _ in correlations],
        y=[value for _, _, value in correlations],
        text=[f"{value:.2f}" for _, _, value in correlations],
        textposition="outside",
        textangle=0,
        marker_color=ACCENT,
        customdata=[count for _, count, _ in correlations],
        hovertemplate="epoch %{x}: %{y:.2f}, of %{customdata} trials<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title="epoch", type="category")
    figure.update_yaxes(title="rank correlation with the end", range=[-1, 1])
    return figure


def _styled(figure: go.Figure) -> go.Figure:
    figure.update_layout(
        template="simple_white",
        height=HEIGHT_PX,
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.12, "x": 0},
    )
    if not figure.layout.margin.t:
        figure.update_layout(margin={"t": 40})
    figure.update_layout(margin={"l": 70, "r": 30, "b": 55})
    return figure


def short(field: str) -> str:
    """A field's name on an axis or in a table."""
    part, name = field.split(".", 1)
    return {"loss.lambdas": "lambda"}.get(f"{part}.{name.split('.')[0]}", name.split(".")[0]) + (
        f" {name.split('.')[1]}" if "." in name else ""
    )
