"""Attacks on MLflow's own application, which is run here without and with our guard; no server runs.

Each attack succeeds on MLflow alone, so that it is known to be one.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dashboards.access import Access, allowed_names
from dashboards.mlflow_routes import judged
from dashboards.mlflow_server import Guard

# MLflow uses what is deprecated elsewhere; our own warnings stay errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

TOKEN = "a-secret-of-one-start"
URL = "http://127.0.0.1:5000"


class Apps:
    """MLflow's application, and the same behind our guard.

    Attributes
    ----------
    kept
        The folder in which it keeps artifacts.
    """

    def __init__(self, bare: Any, kept: Path) -> None:
        self.bare = bare
        self.kept = kept
        self.guarded = Guard(bare, Access(TOKEN, allowed_names("127.0.0.1")), str(kept))

    def ask(self, method: str, path: str, *, bare: bool = False, **given: Any) -> httpx.Response:
        """What is answered; with the secret unless ``headers`` says otherwise."""
        given.setdefault("headers", {"Authorization": f"Bearer {TOKEN}"})

        async def answered() -> httpx.Response:
            transport = httpx.ASGITransport(self.bare if bare else self.guarded)
            async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
                return await client.request(method, path, **given)

        return asyncio.run(answered())

    def make_run(self, experiment: str, **where: Any) -> str:
        made = self.ask("POST", "/api/2.0/mlflow/runs/create", json={"experiment_id": experiment}, **where)
        return str(made.json()["run"]["info"]["run_id"])


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    folder = tmp_path_factory.mktemp("mlflow")
    kept = folder / "mlartifacts"
    kept.mkdir()
    store = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("HOME", str(folder))  # the assistant keeps its settings there
        from mlflow.server import constants, handlers

        for name, value in {
            constants.BACKEND_STORE_URI_ENV_VAR: store,
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: str(kept),
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        }.items():
            patch.setenv(name, value)
        handlers.initialize_backend_stores(store, store, "mlflow-artifacts:/")
        from mlflow.server.fastapi_app import app

        yield Apps(app, kept)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder of the server's user, with a file for nobody else."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "key").write_text("of a person")
    return folder


ASSISTANT = [
    ("GET", "/ajax-api/3.0/mlflow/assistant/config"),
    ("PUT", "/ajax-api/3.0/mlflow/assistant/config"),
    ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
    ("GET", "/ajax-api/3.0/mlflow/assistant/sessions/1/stream"),
    ("POST", "/ajax-api/3.0/mlflow/assistant/skills/install"),
]
REFUSED = [
    ("POST", "/gateway/mlflow/v1/chat/completions"),
    ("POST", "/gateway/proxy/a/b"),
    ("POST", "/api/3.0/mlflow/gateway/secrets/create"),
    ("POST", "/ajax-api/2.0/mlflow/gateway-proxy"),
    ("POST", "/ajax-api/3.0/jobs/"),
    ("POST", "/ajax-api/3.0/jobs/search"),
    ("PATCH", "/ajax-api/3.0/mlflow/jobs/cancel/1"),
    ("POST", "/ajax-api/3.0/mlflow/scorer/invoke"),
    ("POST", "/api/3.0/mlflow/scorers/register"),
    ("POST", "/api/2.0/mlflow/webhooks"),
    ("POST", "/ajax-api/2.0/mlflow/webhooks/1/test"),
    ("POST", "/ajax-api/2.0/mlflow/runs/create-promptlab-run"),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=1&path=x"),
    ("POST", "/v1/traces"),
    ("POST", "/api/3.0/mlflow/traces"),
    ("PATCH", "/api/2.0/mlflow/traces/1/tags"),
    ("GET", "/ajax-api/3.0/mlflow/get-trace-artifact?request_id=1"),
]


@pytest.mark.parametrize(("method", "path"), ASSISTANT + REFUSED)
def test_what_runs_or_fetches_things_is_refused_with_the_secret_and_without(
    apps: Apps, method: str, path: str
) -> None:
    refused = apps.ask(method, path, json={})
    assert refused.status_code == 403
    assert "run programs or fetch" in refused.json()["message"]
    assert apps.ask(method, path, json={}, headers={}).status_code == 401


def test_the_assistant_of_mlflow_alone_answers_everybody_on_this_machine(apps: Apps) -> None:
    assert apps.ask("GET", ASSISTANT[0][1], bare=True, headers={}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/ajax-api/3.0/mlflow/assistant",
        "//ajax-api/3.0/mlflow/assistant/config",
        "/ajax-api/3.0/mlflow/Assistant/config",
        "/ajax-api/3.0/mlflow/%61ssistant/config",
        "/ajax-api/2.0/mlflow-artifacts/../../3.0/mlflow/assistant/config",
        "/static-files/../ajax-api/3.0/mlflow/assistant/config",
        "/ajax-api/3.0/mlflow/assistant/config/",
        "/ajax-api/3.0/mlflow/assistant/config%0A",
        "/openapi.json",
        "/ajax-api/9.9/mlflow/of-a-later-version",
    ],
)
def test_another_spelling_of_a_path_leads_nowhere(apps: Apps, path: str) -> None:
    for method in ("GET", "PUT", "POST"):
        answer = apps.ask(method, path, json={})
        assert answer.status_code in (403, 404, 405), answer.text
        assert "provider" not in answer.text


def test_nothing_but_http_is_spoken(apps: Apps) -> None:
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(apps.guarded({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert said == [{"type": "websocket.close", "code": 1008}]


CREATE = "/api/2.0/mlflow/experiments/create"


def test_mlflow_alone_reads_any_folder_of_its_user(apps: Apps, secret: Path) -> None:
    attackers = secret.parent / "attackers"
    body = {"name": "bare", "artifact_location": str(attackers)}
    experiment = apps.ask("POST", CREATE, bare=True, json=body).json()["experiment_id"]
    run = apps.make_run(experiment, bare=True)
    (attackers / run).mkdir(parents=True)
    (attackers / run / "artifacts").symlink_to(secret)
    read = apps.ask("GET", f"/get-artifact?run_uuid={run}&path=key", bare=True)
    assert read.text == "of a person"


PLACES = [
    "{secret}",
    "file://{secret}",
    "file://localhost{secret}",
    "FILE:{secret}",
    "{kept}/../private",
    "{kept}/%2e%2e/private",
    "{kept}/%252e%252e/private",
    "file://{kept}/../private",
    "mlflow-artifacts:/../private",
    "mlflow-artifacts:/%2e%2e/private",
    "mlflow-artifacts://evil.example/x",
    "relative/folder",
    "../private",
    "s3://bucket/x",
    "http://evil.example/x",
    "ftp://evil.example/x",
    "hdfs://evil.example/x",
    "dbfs:/x",
    "runs:/1/x",
    "{kept}?x",
    "http://[",
    "mlflow-artifacts:/.\t./private",  # urlsplit passes over tabs and newlines
    "mlflow-artifacts:/.\n./private",
    "mlflow-artifacts:/.%09./private",
    "\x01mlflow-artifacts:/private",
    "file://{kept}/%00",
    "mlflow-artifacts:/%" + "25" * 500_000,  # as many rounds of unquoting, in the loop of the server
    ["{secret}"],
    {"a": 1},
    7,
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("prefix", ["/api", "/ajax-api"])
@pytest.mark.parametrize("field", ["artifact_location", "artifactLocation"])
def test_an_experiment_keeps_its_artifacts_nowhere_else(
    apps: Apps, secret: Path, place: Any, prefix: str, field: str
) -> None:
    if isinstance(place, str):
        place = place.format(secret=secret, kept=apps.kept)
    refused = apps.ask("POST", CREATE.replace("/api", prefix), json={"name": "x", field: place})
    assert refused.status_code == 400
    assert refused.json()["message"].startswith(
        "artifact_location is not in the folder where this server stores"
    )
    gone = apps.ask("GET", "/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "x"})
    assert gone.status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        '{{"name": "x", "name": "y", "artifact_location": "/", "artifact_location": "{secret}"}}',
        '{{"name": "x", "artifact_location": "", "artifactLocation": "{secret}"}}',
        '{{"name": "x", "artifact\\u005flocation": "{secret}"}}',
        '"{{\\"name\\": \\"x\\", \\"artifact_location\\": \\"{secret}\\"}}"',
        '[{{"name": "x", "artifact_location": "{secret}"}}]',
        '{{"name": "x", "artifact_location": "{secret}"',
        "artifact_location={secret}&name=x",
        "[" * 20_000,
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_no_way_of_writing_hides_the_place(apps: Apps, secret: Path, body: str, encoding: str) -> None:
    content = body.format(secret=secret).encode(encoding)
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
        assert apps.ask("POST", CREATE, content=content, headers=headers).status_code == 400


def test_a_body_without_end_is_not_kept(apps: Apps) -> None:
    long = b'{"name": "' + b"x" * 2**21 + b'"}'
    assert apps.ask("POST", CREATE, content=long).status_code == 413


def test_experiments_and_models_of_the_configured_place_are_made(apps: Apps) -> None:
    made = [
        apps.ask("POST", CREATE, json={"name": f"ours {number}", **place})
        for number, place in enumerate(
            [
                {},
                {"artifact_location": ""},
                {"artifact_location": "mlflow-artifacts:/ours"},
                {"artifact_location": str(apps.kept / "ours")},
                {"artifactLocation": (apps.kept / "über uns").as_uri()},
            ]
        )
    ]
    assert [answer.status_code for answer in made] == [200] * 5, [answer.text for answer in made]
    run = apps.make_run(made[0].json()["experiment_id"])
    place = f"mlflow-artifacts:/{made[0].json()['experiment_id']}/{run}/artifacts/model"
    apps.ask("POST", "/api/2.0/mlflow/registered-models/create", json={"name": "m"})
    for source in (place, f"runs:/{run}/model"):
        version = {"name": "m", "source": source, "run_id": run}
        answer = apps.ask("POST", "/api/2.0/mlflow/model-versions/create", json=version)
        assert answer.status_code == 200, answer.text
    version = {"name": "m", "source": "models:/m/1"}
    assert apps.ask("POST", "/api/2.0/mlflow/model-versions/create", json=version).status_code == 200


@pytest.mark.parametrize("place", [place for place in PLACES if place != "runs:/1/x"] + ["dummy-source"])
@pytest.mark.parametrize("prompt", [[], [{"key": "mlflow.prompt.is_prompt", "value": "true"}]])
def test_a_model_comes_from_nowhere_else(apps: Apps, secret: Path, place: Any, prompt: list[Any]) -> None:
    apps.ask("POST", "/api/2.0/mlflow/registered-models/create", json={"name": "m"})
    if isinstance(place, str):
        place = place.format(secret=secret, kept=apps.kept)
    version = {"name": "m", "source": place, "tags": prompt}
    refused = apps.ask("POST", "/ajax-api/2.0/mlflow/model-versions/create", json=version)
    assert refused.status_code == 400
    assert refused.json()["message"].startswith("source is not in the folder where this server stores")


def test_a_bucket_is_left_for_no_other() -> None:
    guard = Guard(lambda *_: None, Access(TOKEN, frozenset()), "s3://bucket/mlflow/")  # type: ignore[arg-type, return-value]
    assert guard.is_ours("s3://bucket/mlflow/x")
    assert guard.is_ours("mlflow-artifacts:/x")
    for place in ("s3://bucket/mlflow-of-others", "s3://other/mlflow/x", "s3://bucket/mlflow/../x", "/etc"):
        assert not guard.is_ours(place), place


def test_artifacts_run_nothing_in_a_browser(apps: Apps) -> None:
    experiment = apps.ask("POST", CREATE, json={"name": "pages"}).json()["experiment_id"]
    run = apps.make_run(experiment)
    path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/{run}/artifacts/page.html"
    put = apps.ask("PUT", path, content=b"<script>alert(1)</script>")
    assert put.status_code == 200
    for address in (f"/get-artifact?run_uuid={run}&path=page.html", path, path.replace("/api", "/ajax-api")):
        page = apps.ask("GET", address)
        assert page.text == "<script>alert(1)</script>"
        assert page.headers["content-security-policy"] == "sandbox"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["x-frame-options"] == "SAMEORIGIN"
        assert "access-control-allow-origin" not in page.headers


@pytest.mark.parametrize(
    "path", ["../../../mlflow.db", "%2e%2e/%2e%2e/mlflow.db", "/etc/passwd", "..%252fmlflow.db"]
)
def test_paths_of_artifacts_lead_out_of_no_store(apps: Apps, path: str) -> None:
    run = apps.make_run("0")
    for address in (
        f"/get-artifact?run_uuid={run}&path={path}",
        f"/api/2.0/mlflow-artifacts/artifacts/{path}",
        f"/ajax-api/2.0/mlflow-artifacts/artifacts?path={path}",
        f"/api/2.0/mlflow/artifacts/list?run_id={run}&path={path}",
    ):
        assert apps.ask("GET", address).status_code in (400, 404)


def routes(bare: Any) -> set[tuple[str, str]]:
    """Method and path of all that MLflow's application answers, of the Flask application in it, too."""
    from fastapi.routing import iter_route_contexts
    from mlflow.server import app as flask

    found, mounted = set(), []
    for route in iter_route_contexts(bare.routes):
        if route.methods is None:
            mounted.append(route.path)
        found |= {
            (method, re.sub(r"{(\w+):path}", r"<path:\1>", str(route.path))) for method in route.methods or ()
        }
    assert mounted == [""], "what else is mounted there?"
    for rule in flask.url_map.iter_rules():
        found |= {(method, rule.rule) for method in rule.methods or ()}
    return {(method, path) for method, path in found if method not in ("HEAD", "OPTIONS")}


def test_every_route_of_mlflow_was_judged(apps: Apps) -> None:
    """Look at what a new one runs, reads, writes and fetches, and put it into dashboards/mlflow_routes.py."""
    examples = {
        (method, re.sub(r"<path:\w+>", "a/b", re.sub(r"[<{]\w+[>}]", "a", path)))
        for method, path in routes(apps.bare)
    }
    assert len(examples) > 300
    assert {example for example in examples if judged(*example) is None} == set()
    allowed = {example for example in examples if judged(*example) == "allowed"}
    assert 90 < len(allowed) < 150


def test_no_route_is_allowed_that_mlflow_does_not_have(apps: Apps) -> None:
    from dashboards.mlflow_routes import _ALLOWED

    known = {
        (method, re.sub(r"[<{](path:)?\w+[>}]", "<>", path.replace("/ajax-api/", "/api/")))
        for method, path in routes(apps.bare)
    }
    rows = [line.split() for line in _ALLOWED.splitlines() if line]
    allowed = {
        (method, re.sub(r"<(path:)?\w+>", "<>", path)) for *methods, path in rows for method in methods
    }
    assert allowed - known == set()


def test_mlflows_checks_that_go_by_patterns_are_ours_to_make(apps: Apps) -> None:
    assert os.environ["MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"] == "true"
    for host in ("10.evil.com", "192.168.evil.com", "evil.example"):
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": host}
        assert apps.ask("GET", "/", headers=headers).status_code == 403
