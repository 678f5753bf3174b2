"""A campaign's results as one HTML file that needs no network, and as Markdown. Pure; runs anywhere."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.offline

from tpn_ray.progress import duration
from tpn_ray.tuning.distributions import written
from tpn_ray.tuning.journal import Trial
from tpn_ray.tuning.report import plots
from tpn_ray.tuning.report.numbers import (
    Findings,
    hours,
    importances,
    interval_text,
    repeated,
    rung_correlations,
    short,
    value_text,
)

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Headers and rows."""


def as_html(found: Findings) -> str:
    """Return the page, with Plotly's script included."""
    parts = [f"<h1>{_escaped(found.name)}</h1>", f"<p class=lead>{_escaped(summary(found))}</p>"]
    parts.append(f"<h2>The best recipe</h2><pre>{_escaped(found.command)}</pre><p>{_escaped(found.note)}</p>")
    cards = "".join(f"<div><b>{_escaped(value)}</b><span>{_escaped(name)}</span></div>" for name, value in facts(found))
    parts.append(f"<div class=cards>{cards}</div>")
    for title, text, table in tables(found):
        parts.append(f"<h2>{_escaped(title)}</h2><p>{_escaped(text)}</p>{_html_table(table)}")
    parts.append("<div class=plots>")
    for title, text, figure in plots.figures(found):
        drawn = figure.to_html(
            full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
        )
        parts.append(f"<section><h2>{_escaped(title)}</h2><p>{_escaped(text)}</p>{drawn}</section>")
    parts.append("</div>")
    rows = [(name, written(distribution)) for name, distribution in found.space.items()]
    parts.append(f"<h2>Searched</h2>{_html_table((('field', 'distribution'), rows))}")
    parts.append(f"<h2>Run again</h2><pre>{_escaped(found.campaign_command)}</pre>")
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{_escaped(found.name)}</title>"
        f'<meta name=viewport content="width=device-width"><style>{STYLE}</style>'
        f"<script>{plotly.offline.get_plotlyjs()}</script></head><body><main>{''.join(parts)}</main></body></html>"
    )


def as_markdown(found: Findings) -> str:
    """Return the same page without plots, with their numbers as tables."""
    parts = [f"# {found.name}", summary(found), "## The best recipe", f"```\n{found.command}\n```", found.note]
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts(found)))
    for title, text, table in [*tables(found), *_numbers_of_plots(found)]:
        parts += [f"## {title}", text, _markdown_table(table)]
    rows = [(f"`{name}`", f"`{written(distribution)}`") for name, distribution in found.space.items()]
    parts += ["## Searched", _markdown_table((("field", "distribution"), rows))]
    parts += ["## Run again", f"```\n{found.campaign_command}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(found: Findings) -> str:
    """Summarize the result in two sentences."""
    best, spent = found.trials[0], hours(found.trials, found.epochs, found.max_concurrent)
    return (
        f"Best of {len(found.trials)} trials: {best.name} with {best.score:.1%} validation {best.score_name} "
        f"(95 %: {interval_text(best)}) after {best.epochs} of {found.epochs} epochs. "
        f"{spent.epochs} epochs were trained, {spent.epochs / max(spent.epochs_in_full, 1):.0%} of what all trials in "
        f"full would have taken."
    )


def facts(found: Findings) -> list[tuple[str, str]]:
    """Return short facts: (what, how much)."""
    spent = hours(found.trials, found.epochs, found.max_concurrent)
    failed = sum(bool(trial.failure) for trial in found.trials)
    return [
        ("trials", f"{len(found.trials)}" + (f", {failed} failed" if failed else "")),
        ("epochs trained", f"{spent.epochs} of {spent.epochs_in_full}"),
        ("trials' time", duration(spent.held * 3600)),
        ("saved, against all in full (estimate)", duration(max(0.0, spent.in_full - spent.held) * 3600)),
        ("of the time, starting workers", f"{spent.starting / spent.held:.0%}" if spent.held else "-"),
        (f"of {found.max_concurrent} concurrent trials, idle", f"{spent.idle:.0%}"),
    ]


def tables(found: Findings) -> list[tuple[str, str, Table]]:
    """Return (title, sentence, table) of everything that is a table in both forms."""
    made = [("Leaderboard", "Sorted by epochs reached, then by accuracy at the last epoch.", leaderboard(found))]
    rows = repeated(found.trials, found.repeats)
    if rows:
        made.append(
            (
                "The best settings with more seeds",
                "Mean and standard deviation over seeds; the difference to the best mean is paired by seed (t-test).",
                (
                    ("setting of", "seeds", "mean", "deviation", "difference", "p", "each"),
                    [
                        (
                            f"trial-{row.number:04d}",
                            str(len(row.scores)),
                            f"{row.mean:.1%}",
                            f"{100 * row.deviation:.1f} points",
                            f"{100 * row.difference:+.1f} points",
                            "-" if row.p is None else f"{row.p:.2f}",
                            ", ".join(f"{score:.1%}" for score in row.scores),
                        )
                        for row in rows
                    ],
                ),
            )
        )
    return made


def leaderboard(found: Findings) -> Table:
    """Return a table with one row per trial."""
    fields = list(found.space)
    heads = (
        "",
        "trial",
        found.trials[0].score_name,
        "95 %",
        "epochs",
        "GMACs",
        *(short(field) for field in fields),
        "",
    )
    return heads, [_row(place, trial, fields, found) for place, trial in enumerate(found.trials, 1)]


def _row(place: int, trial: Trial, fields: Sequence[str], found: Findings) -> list[str]:
    gmacs = found.gmacs.get(trial.number)
    return [
        str(place),
        trial.name,
        f"{trial.score:.1%}" if trial.points else "-",
        interval_text(trial),
        str(trial.epochs),
        f"{gmacs:.2f}" if gmacs is not None else "-",
        *(value_text(trial.sample.get(field, "-")) for field in fields),
        trial.failure or "; ".join(trial.history),
    ]


def _numbers_of_plots(found: Findings) -> list[tuple[str, str, Table]]:
    trials = [trial for trial in found.trials if trial.points]
    made: list[tuple[str, str, Table]] = []
    epoch, shares = importances(trials, found.space)
    if shares:
        rows = [(field, f"{share:.0%}") for field, share in shares.items()]
        made.append(("Importance", f"Share of variance after epoch {epoch} (fANOVA).", (("field", "share"), rows)))
    correlations = rung_correlations(trials, found.epochs)
    if correlations:
        lines = [(str(at), str(count), f"{value:.2f}") for at, count, value in correlations]
        text = "Rank correlation of accuracy after each epoch with accuracy at the end, of complete trials."
        made.append(("Do early epochs predict the end?", text, (("epoch", "trials", "Spearman"), lines)))
    return made


def _html_table(table: Table) -> str:
    heads = "".join(f"<th>{_escaped(head)}</th>" for head in table[0])
    rows = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in table[1])
    ranked = "" if table[0][0] else " class=ranked"  # a leaderboard's first column, the place, has no head
    return f"<div class=wide><table{ranked}><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(table[0]), line(["---"] * len(table[0])), *(line(row) for row in table[1])])


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


STYLE = """
body{margin:0;background:#fff;color:#1f2933;font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 24px 60px}
h1{font-size:26px;margin:0 0 6px}h2{font-size:18px;margin:34px 0 4px}p{margin:0 0 10px;color:#52606d}
.lead{font-size:17px;color:#1f2933}
pre{background:#f4f6f8;border:1px solid #e1e6eb;border-radius:6px;padding:12px 14px;white-space:pre-wrap;
  word-break:break-word}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:18px 0}
.cards div{border:1px solid #e1e6eb;border-radius:8px;padding:12px 14px}
.cards b{display:block;font-size:19px}.cards span{color:#52606d;font-size:13px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid #e8ecf0;white-space:nowrap}
td:last-child{white-space:normal;min-width:180px}th{color:#52606d;font-weight:600}
.ranked tbody tr:first-child td{font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(520px,1fr));gap:0 36px}
.plots section{min-width:0}.plots section:nth-child(-n+3){grid-column:1/-1}
"""
