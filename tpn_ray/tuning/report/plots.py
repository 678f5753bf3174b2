"""A campaign's results as Plotly figures: Optuna's, and the two that it lacks. Pure; runs anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
import plotly.graph_objects as go
from optuna import visualization

from tpn_ray.tuning import search
from tpn_ray.tuning.journal import Trial
from tpn_ray.tuning.report.numbers import (
    Findings,
    as_study,
    fair_study,
    importances,
    rung_correlations,
    shared_fields,
    short,
)

INK, GREY, ACCENT = "#1f2933", "#b8c1cc", "#0b6e99"
CURVES_IN_COLOR = 5
SLICES = 4
HEIGHT_PX = 380


def figures(found: Findings) -> list[tuple[str, str, go.Figure]]:
    """Draw every plot that the campaign has data for: title, what it shows in a sentence, figure."""
    trials = [trial for trial in found.trials if trial.points]
    made = [
        (
            "Learning curves",
            "Validation accuracy by epoch; the best trials in color. A curve that ends early was paused or stopped.",
            learning_curves(trials),
        ),
        (
            "Settings and accuracy",
            "One line per trial, colored by its accuracy at its last epoch.",
            settings_and_accuracy(trials, found),
        ),
    ]
    told_at, shares = importances(trials, found.space)
    epoch, study = fair_study(trials, found.space)
    if study:
        which = "by each of the fields that explain most of the accuracy" if shares else "by field"
        fields = list(shares or shared_fields(trials, found.space))[:SLICES]
        slices = visualization.plot_slice(study, params=fields, target_name=_said(trials)).update_layout(width=None)
        made.append(("Accuracy by field", f"Every trial after epoch {epoch}, {which}.", slices))
    if shares:
        text = f"Share of the variance of accuracy after epoch {told_at} that each field explains (fANOVA)."
        made.append(("Importance", text, importance_bars(shares)))
    if len({round(found.gmacs.get(trial.number, 0.0), 3) for trial in trials}) > 1:
        text = "Accuracy at the last epoch of each trial by the billions of multiply-adds of one view. "
        text += "Red: no other is better in both."
        made.append(("Accuracy against arithmetic", text, accuracy_by_gmacs(trials, found)))
    correlations = rung_correlations(trials, found.epochs)
    if correlations:
        text = "Spearman's rank correlation of accuracy after each epoch with accuracy at the end, of complete trials."
        made.append(("Do early epochs predict the end?", text, correlation_bars(correlations)))
    return [(title, text, _styled(figure)) for title, text, figure in made]


def learning_curves(trials: Sequence[Trial]) -> go.Figure:
    """Draw one curve per trial, naming the best."""
    rising = trials[::-1]  # the best trial is drawn last, on top
    curves = [{point.epoch: point.score for point in trial.points} for trial in rising]
    paused = optuna.trial.TrialState.PRUNED
    study = search.as_study([optuna.trial.create_trial(state=paused, intermediate_values=curve) for curve in curves])
    figure = visualization.plot_intermediate_values(study)
    for place, (trace, trial) in enumerate(zip(figure.data, rising, strict=True), 1 - len(rising)):
        best = place > -CURVES_IN_COLOR
        trace.update(name=trial.name, showlegend=best, line={} if best else {"color": GREY, "width": 1})
    figure.update_layout(showlegend=True, legend_traceorder="reversed")
    figure.update_xaxes(title="epoch", rangemode="tozero")
    return figure.update_yaxes(title=_said(trials), tickformat=".0%", rangemode="nonnegative")


def settings_and_accuracy(trials: Sequence[Trial], found: Findings) -> go.Figure:
    """Draw one line per trial through the values of the fields that all trials have, and its accuracy."""
    fields = shared_fields(trials, found.space)
    study = as_study(trials, found.space, {trial.number: (trial.score,) for trial in trials})
    figure = visualization.plot_parallel_coordinate(study, params=fields, target_name=_said(trials))
    names = list(figure.layout.xaxis.ticktext or [])
    figure.update_xaxes(ticktext=[trials[0].score_name, *map(short, names[1:])] if names else None, tickangle=0)
    return figure.update_annotations(font={"size": 12, "color": INK})


def importance_bars(shares: Mapping[str, float]) -> go.Figure:
    """Draw one bar per field, the largest on top."""
    fields = list(shares)[::-1]
    bars = go.Bar(
        x=[shares[field] for field in fields],
        y=[short(field) for field in fields],
        orientation="h",
        text=[f"{shares[field]:.0%}" for field in fields],
        marker_color=ACCENT,
    )
    return go.Figure(bars).update_xaxes(title="share of variance", tickformat=".0%")


def accuracy_by_gmacs(trials: Sequence[Trial], found: Findings) -> go.Figure:
    """Draw one point per trial, marking those that no other beats in both values."""
    study = as_study(
        trials,
        found.space,
        {trial.number: (found.gmacs.get(trial.number, 0.0), trial.score) for trial in trials},
        directions=("minimize", "maximize"),
    )
    figure = visualization.plot_pareto_front(study, target_names=["GMACs of a view", _said(trials)])
    figure.update_traces(marker_showscale=False)  # of the trials' numbers
    return figure.update_yaxes(tickformat=".0%", rangemode="nonnegative")


def correlation_bars(correlations: Sequence[tuple[int, int, float]]) -> go.Figure:
    """Draw one bar per epoch."""
    bars = go.Bar(
        x=[str(epoch) for epoch, _, _ in correlations],
        y=[value for _, _, value in correlations],
        text=[f"{value:.2f}" for _, _, value in correlations],
        marker_color=ACCENT,
        customdata=[count for _, count, _ in correlations],
        hovertemplate="epoch %{x}: %{y:.2f}, of %{customdata} trials<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title="epoch", type="category")
    figure.update_yaxes(title="rank correlation with the end", range=[-1, 1])
    return figure


def _styled(figure: go.Figure) -> go.Figure:
    return figure.update_layout(
        template="simple_white",
        title=None,
        height=HEIGHT_PX,
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 70, "r": 30, "t": 40, "b": 55},
    )


def _said(trials: Sequence[Trial]) -> str:
    return f"validation {trials[0].score_name}"
