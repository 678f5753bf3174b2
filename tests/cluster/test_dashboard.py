"""The Grafana dashboard: it asks for what the code exports, in queries that a real Prometheus answers."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import KUBERAY, ROOT, of_kind, rendered
from tests.ray_head import ray_head
from tests.servers import free_port
from tpn_ray.training.gauges import CAMPAIGN_GAUGES, PREFIX, RUN_GAUGES

DASHBOARD = json.loads((KUBERAY / "monitoring" / "dashboard.json").read_text())
EXPORTED = {
    **{f"ray_{PREFIX}{name}": {"run", *labels} for name, (_, labels) in RUN_GAUGES.items()},
    **{f"ray_{PREFIX}{name}": {"campaign", *labels} for name, (_, labels) in CAMPAIGN_GAUGES.items()},
}
"""Labels of each metric, as Prometheus gets them."""


def queries() -> dict[str, str]:
    """Every query, by the title of its panel, with the variables of the dashboard put in."""
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = re.sub(r"\$(run|campaign)", ".*", target["expr"])
    return found


def test_every_metric_is_shown_and_nothing_else_is_asked_for() -> None:
    asked = {name for query in queries().values() for name in re.findall(r"\b(ray_\w+)", query)}
    assert asked == set(EXPORTED)
    variables = {one["name"]: one["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"}
    assert variables.keys() == {"run", "campaign"}
    for name, query in variables.items():
        (metric, label) = re.fullmatch(r"label_values\((\w+), (\w+)\)", query["query"]).groups()  # type: ignore[union-attr]
        assert label == name
        assert name in EXPORTED[metric]


@pytest.mark.parametrize("title", queries())
def test_labels_of_a_query_are_those_of_its_metrics(title: str) -> None:
    query = queries()[title]
    for metric, selector in re.findall(r"(ray_\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)=~?", selector)) <= EXPORTED[metric], query
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(", ")}
    assert all(grouped <= EXPORTED[metric] for metric in re.findall(r"\b(ray_\w+)", query)), query


def test_panels_do_not_overlap() -> None:
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_it_leads_to_the_dashboards_of_ray() -> None:
    folder = "ray.dashboard.modules.metrics.dashboards"
    known = {
        getattr(importlib.import_module(f"{folder}.{name}_dashboard_panels"), f"{name}_dashboard_config").default_uid
        for name in ("default", "train", "data")
    }
    assert {link["url"].removeprefix("/d/") for link in DASHBOARD["links"]} == known
    assert DASHBOARD["uid"] not in known


def test_grafana_and_prometheus_find_it() -> None:
    documents = rendered("monitoring")
    (content,) = of_kind(documents, "ConfigMap")
    assert content["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(content["data"]["dashboard.json"]) == DASHBOARD
    (monitor,) = of_kind(documents, "PodMonitor")
    spec = monitor["spec"]
    (cluster,) = of_kind(rendered("cluster"), "RayCluster")
    assert spec["namespaceSelector"]["matchNames"] == [cluster["metadata"]["namespace"]]
    (allowed,) = [
        one for one in of_kind(rendered("settings"), "NetworkPolicy") if one["metadata"]["name"] == "ray-nodes"
    ]
    assert allowed["spec"]["podSelector"]["matchLabels"] == spec["selector"]["matchLabels"]
    asking = [rule for rule in allowed["spec"]["ingress"] if rule.get("ports") == [{"port": 8080}]]
    assert asking[0]["from"][0]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": content["metadata"]["namespace"]
    }


DRIVER = """
import sys, time, ray
from tpn_ray.training.events import BadVideos, Committed, Progress, Started
from tpn_ray.training.gauges import RunGauges, set_campaign

ray.init(address=sys.argv[1], log_to_driver=False)
gauges = RunGauges("a run")
seconds, reasons = {"compute": 60.0, "evaluation": 20.0, "lost": 20.0}, ["damaged", "damaged", "empty"]
gauges(Started(step=0, workers=2, at=0.0), seconds, reasons)
gauges(
    Progress(step=30, steps=240, epoch=2, epochs=10, loss=1.5, top1=0.25, clips_per_second=99.5, waiting=0.25,
             seconds_left=200.0), seconds, reasons)
gauges(Committed(step=30, epoch=2, checkpoint="c", scores={"val_top1": 0.5, "val_map": 0.5}), seconds, reasons)
for state, count in (("done", 1), ("training", 2), ("waiting", 5)):
    set_campaign("search", "campaign_trials", count, state=state)
for state, count in (("trained", 10), ("planned", 40)):
    set_campaign("search", "campaign_epochs", count, state=state)
set_campaign("search", "campaign_best_top1", 0.5)
(node,) = ray.nodes()
print(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}", flush=True)
sys.stdin.read()
"""
EXPECTED = {"Progress A": 30 / 240, "Goodput A": 0.8, "Progress of the campaign A": 0.25, "Speed A": 99.5}
ANSWER_SECONDS = 120


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prometheus that scrapes a real Ray, whose driver shows a run and a campaign."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("needs prometheus: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with ray_head(1, {}) as head:
        command = [sys.executable, "-c", DRIVER, head.address]
        environment = {**head.environment, "PYTHONPATH": str(ROOT)}
        driver = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert driver.stdout is not None
        target = next(line for line in driver.stdout if ":" in line).strip()
        (folder / "config.yml").write_text(
            f"scrape_configs: [{{job_name: ray, scrape_interval: 2s, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        port = free_port()
        flags = [f"--config.file={folder}/config.yml", f"--storage.tsdb.path={folder}/data"]
        flags += [f"--web.listen-address=127.0.0.1:{port}"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([binary, *flags], stdout=log, stderr=log, env={**os.environ, "NO_PROXY": "*"})
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            for process in (server, driver):
                process.kill()
                process.wait()


def ask(url: str, query: str) -> list[Any]:
    """The answer of a Prometheus to a query. Raises OSError while it does not answer, or refuses."""
    parameters = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{url}/api/v1/query?{parameters}", timeout=10) as answer:
        content = json.load(answer)
    assert content["status"] == "success", content
    return list(content["data"]["result"])


@pytest.mark.long
@pytest.mark.cluster
def test_a_real_prometheus_answers_every_query(prometheus: str) -> None:
    deadline = time.monotonic() + ANSWER_SECONDS
    waiting, found = queries(), dict[str, list[Any]]()
    while waiting:
        for title, query in list(waiting.items()):
            try:
                found[title] = ask(prometheus, query)
            except OSError as error:
                assert time.monotonic() < deadline, f"{query}: {error}"
                continue
            if found[title]:
                del waiting[title]
        assert time.monotonic() < deadline, f"no answer to {waiting}"
        time.sleep(1)
    for title, value in EXPECTED.items():
        assert float(found[title][0]["value"][1]) == pytest.approx(value), title
    assert 0 <= float(found["Age of the last checkpoint A"][0]["value"][1]) < ANSWER_SECONDS + 60
    assert {row["metric"]["reason"]: row["value"][1] for row in found["Bad videos A"]} == {"damaged": "2", "empty": "1"}


def test_the_dashboard_is_valid_for_promtool(tmp_path: Path) -> None:
    """Where promtool is installed: all queries parse, as rules."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries().values())]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.json")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
