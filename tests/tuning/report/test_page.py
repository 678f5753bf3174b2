"""The report, as numbers in its text and as pictures in a real browser that has no network."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tuning import fake_campaign
from tpn_ray.tuning.journal import Held, Kind, Transition
from tpn_ray.tuning.report.numbers import Findings
from tpn_ray.tuning.report.page import as_html, as_markdown

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    trials = fake_campaign.run(tmp_path_factory.mktemp("campaign"))
    held = Held(session="a", begin=0.0, started=60.0, end=600.0)
    return Findings(
        name="toy & <tune>",
        command="python jobs/train.py toy --data videos --model.alpha 4 8",
        campaign_command="python jobs/tune.py toy --data videos --name search",
        space=fake_campaign.SEARCH.space,
        epochs=9,
        max_concurrent=3,
        trials=tuple(dataclasses.replace(trial, held=(held,)) for trial in trials),
        repeats=(),
        gmacs={number: 0.5 + number / 100 for number in range(27)},
    )


def test_markdown_has_every_trial_and_number(found: Findings) -> None:
    text = as_markdown(found)
    assert text.startswith("# toy & <tune>\n")
    assert "```\npython jobs/train.py toy --data videos --model.alpha 4 8\n```" in text
    assert all(f"| trial-{number:04d} |" in text for number in range(27))
    assert "TrainingError: the loss is nan at step 7" in text
    assert "- epochs trained: 62 of 243" in text
    assert "| optim.lr |" in text
    assert "| `optim.lr` | `loguniform(0.01, 1)` |" in text


def test_a_best_recipe_that_was_another_before_says_so(found: Findings) -> None:
    best, *others = found.trials
    mutation = Transition(kind=Kind.MUTATED, epoch=2, donor=3, detail="lr 0.1 -> 0.12")
    mutant = dataclasses.replace(best, run=f"{best.name}-from-0003-epoch-0002", lineage=(mutation,))
    assert found.note == ""
    mutated = dataclasses.replace(found, trials=(mutant, *others))
    assert f"{best.name} had other settings before ({mutation}): the command trains the last ones" in as_markdown(
        mutated
    )
    assert f"{best.name} had other settings before (from trial 3 at epoch 2: lr 0.1 -&gt; 0.12)" in as_html(mutated)


def test_a_browser_draws_all_plots_offline(found: Findings, tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    place.write_text(as_html(found))
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    assert browser, f"the report is tested in a real browser: install one of {', '.join(BROWSERS)}"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=10000", "--dump-dom", f"file://{place}"]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    body = drawn[drawn.index("<body>") :]
    assert "<h1>toy &amp; &lt;tune&gt;</h1>" in body
    titles = re.findall(r"<section><h2>(.*?)</h2>", body)
    assert titles == [
        "Learning curves",
        "Settings and accuracy",
        "Accuracy by field",
        "Importance",
        "Accuracy against arithmetic",
    ]
    assert len(re.findall(r'<div[^>]*class="[^"]*js-plotly-plot', body)) == 5  # the script adds it when it has drawn
    assert (
        body.count('class="trace scatter') == 26 + (26 + 1) + 2 + 2
    )  # curves and lines of all trials but the failed one
