"""Measures how long our page and both dashboards take to open with many trials; not collected by itself.

::

    .venv/bin/python -m pytest -s tests/browser/measure_load.py

makes a study of 2,000 trials in a folder of its own (some minutes), tells MLflow of it, and prints the
seconds from the address to the content, cold (a fresh browser) and warm. docs/dashboards.md has its figures.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from select import select

import pytest
from playwright.sync_api import Browser

from search.study import study_from_values
from storage.database import open_database
from storage.settings import Settings
from storage.studies import Budget, create_study
from storage.tracking.outbox import MetricRow
from storage.trials.attempts import Attempt
from storage.trials.queue import WorkerInfo, claim_trial
from trainer.config import TrainConfig, dump_config

TRIALS = int(os.environ.get("ANITUNE_LOAD_TRIALS", "2000"))
EPOCHS = 10
NAME = "many"
METRICS = ("val/mae_kcalmol", "val/loss", "train/loss", "train/learning_rate")

PAGES = {
    "first page, studies": ("page", "#studies tbody tr"),
    "first page, study": ("study", f"#leaderboard tbody tr:nth-child({TRIALS})"),
    "first page, its plots": ("study", "#cost_structures_per_second .main-svg"),
    "Optuna, studies": ("optuna", f"text={NAME}"),
    "Optuna, study with plots": ("optuna_study", ".js-plotly-plot .scatterlayer .point"),
    "Optuna, ranked trials (note)": ("optuna_ranking", "table tbody tr"),
    "Optuna, best trial": ("optuna_best", "text=validation MAE"),
    "MLflow, runs by error": ("mlflow_runs", ".ag-center-cols-container .ag-row"),
    "MLflow, loss curves": ("mlflow_curves", ".js-plotly-plot .scatterlayer .trace"),
    "MLflow, best run": ("mlflow_best", "text=final/val_mae_kcalmol"),
}


def make_study(settings: Settings) -> None:
    chance = random.Random(1)
    worker = WorkerInfo("node7-17", "node7", 17, "cuda:0 NVIDIA H100", {"torch": "2.13.0"})
    config = study_from_values({"name": NAME, "training": {"epochs": EPOCHS}}, "here")
    with open_database(settings) as database:
        study = create_study(database, NAME, dump_config(config), Budget(trials=TRIALS))
        for number in range(TRIALS):
            claim = claim_trial(database, study, worker)
            assert claim is not None
            attempt = Attempt(database, study, claim)
            hidden = tuple(32 * chance.randint(1, 8) for _ in range(chance.randint(1, 4)))
            training = TrainConfig(
                hidden=hidden,
                activation=chance.choice(("silu", "gelu", "celu")),
                learning_rate=10 ** chance.uniform(-4, -2),
                epochs=EPOCHS,
                seed=number,
            )
            params = dump_config(training) | {"layers": len(hidden)}
            arch = f"{'-'.join(map(str, (384, *hidden, 1)))} {training.activation}"
            attempt.record_config(dump_config(training), params, planned_epochs=EPOCHS, tags={"arch": arch})
            value = 0.4 + chance.lognormvariate(0, 0.6) + 20 / sum(hidden)
            pruned = chance.random() < 0.4
            last = 3 if pruned else EPOCHS
            attempt.record_metrics(
                [
                    MetricRow(key, step, value * EPOCHS / step, 1_700_000_000_000 + 1000 * step)
                    for step in range(1, last + 1)
                    for key in METRICS
                ]
            )
            summary = {
                "val/mae_kcalmol": value,
                "val/rmse_kcalmol": value * 1.5,
                **{
                    f"val/{kind}_kcalmol_heavy_{n}": value * n / 2
                    for n in (1, 2, 3)
                    for kind in ("mae", "rmse")
                },
                "parameters": 1540.0 * sum(hidden),
                "structures_per_second": 5e5 * chance.uniform(0.5, 1) / len(hidden),
                "seconds": 30.0,
            }
            if number % 100 == 99:
                attempt.finish("failed", reason="the loss was not finite at epoch 3")
            elif pruned:
                attempt.finish("pruned", value, "others were better after 3 epochs", summary)
            else:
                attempt.finish("complete", value, summary=summary)


def anitune(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "search.cli.main", *arguments],
        env={**os.environ, **settings.environment()},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(3600)
def test_measure(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = Path(os.environ.get("ANITUNE_LOAD_HOME") or tmp_path_factory.mktemp("load"))
    settings = Settings(home, f"sqlite:///{home / 'anitune.db'}", f"sqlite:///{home / 'mlflow.db'}")
    if not (home / "anitune.db").exists():
        began = time.perf_counter()
        make_study(settings)
        print(f"\n{TRIALS} trials recorded in {time.perf_counter() - began:.0f} s")
        began = time.perf_counter()
        with anitune(settings, "sync", NAME) as sync:
            sync.communicate(timeout=600)
        assert sync.returncode == 0
        print(f"delivered to MLflow in {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    out = home / "report.html"
    with anitune(settings, "report", NAME, "--out", str(out)) as report:
        report.communicate(timeout=600)
    assert report.returncode == 0
    print(f"report of {out.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - began:.1f} s")
    with anitune(settings, "dashboards", "--study", NAME, "--json") as servers:
        try:
            assert servers.stdout is not None
            assert select([servers.stdout], [], [], 120)[0], "the dashboards print no links"
            links = json.loads(servers.stdout.readline())
            pages = {title: (links[link], content) for title, (link, content) in PAGES.items()}
            pages["report"] = (out.as_uri(), "#figure-9 .main-svg")
            for title, (address, content) in pages.items():
                print(
                    f"{title:32} "
                    + "  ".join(f"{seconds:5.1f}" for seconds in measure(browser, address, content))
                )
        finally:
            servers.send_signal(signal.SIGTERM)


def measure(browser: Browser, address: str, content: str) -> list[float]:
    """Seconds until the content is there: in a fresh browser, and again."""
    found = []
    with browser.new_context(viewport={"width": 1600, "height": 1000}) as context:
        context.set_default_timeout(120_000)
        for _ in range(2):
            page = context.new_page()
            began = time.perf_counter()
            page.goto(address, wait_until="commit")
            page.locator(content).first.wait_for(state="attached")
            found.append(time.perf_counter() - began)
            page.close()
    return found
