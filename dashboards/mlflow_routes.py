"""Allow-list of MLflow's routes, by method and path: a route that is in no table is not served.

Allowed is what tracking trainings needs, in programs and in the UI: experiments, runs, artifacts, and the
model registry. Refused is what runs programs, fetches addresses, or stores addresses and secrets for that:
the assistant, the gateway, jobs, webhooks, and everything for language models. A test
(``tests/security/test_access_mlflow.py``) lists the routes of the installed MLflow, and fails on any that is
in neither table.

``/api/`` also stands for ``/ajax-api/``. ``<name>`` is one segment of a path, ``<path:name>`` the rest of it.
"""

from __future__ import annotations

import re
from typing import Final, Literal

_ALLOWED: Final = """
GET             /
GET             /health
GET             /version
GET             /static-files/<path:file>
GET             /get-artifact
GET             /model-versions/get-artifact
POST            /graphql
GET             /api/3.0/mlflow/server-info
GET             /api/3.0/mlflow/ui-telemetry

POST            /api/2.0/mlflow/experiments/create
GET             /api/2.0/mlflow/experiments/get
GET             /api/2.0/mlflow/experiments/get-by-name
GET POST        /api/2.0/mlflow/experiments/search
POST            /api/2.0/mlflow/experiments/search-datasets
POST            /api/2.0/mlflow/experiments/update
POST            /api/2.0/mlflow/experiments/delete
POST            /api/2.0/mlflow/experiments/restore
POST            /api/2.0/mlflow/experiments/set-experiment-tag
POST            /api/2.0/mlflow/experiments/delete-experiment-tag

POST            /api/2.0/mlflow/runs/create
GET             /api/2.0/mlflow/runs/get
POST            /api/2.0/mlflow/runs/search
POST            /api/2.0/mlflow/runs/update
POST            /api/2.0/mlflow/runs/delete
POST            /api/2.0/mlflow/runs/restore
POST            /api/2.0/mlflow/runs/set-tag
POST            /api/2.0/mlflow/runs/delete-tag
POST            /api/2.0/mlflow/runs/log-metric
POST            /api/2.0/mlflow/runs/log-parameter
POST            /api/2.0/mlflow/runs/log-batch
POST            /api/2.0/mlflow/runs/log-model
POST            /api/2.0/mlflow/runs/log-inputs
POST            /api/2.0/mlflow/runs/outputs
GET             /api/2.0/mlflow/metrics/get-history
GET             /api/2.0/mlflow/metrics/get-history-bulk
GET             /api/2.0/mlflow/metrics/get-history-bulk-interval

GET             /api/2.0/mlflow/artifacts/list
GET             /api/2.0/mlflow-artifacts/artifacts
GET PUT DELETE  /api/2.0/mlflow-artifacts/artifacts/<path:artifact>
POST            /api/2.0/mlflow-artifacts/mpu/create/<path:artifact>
POST            /api/2.0/mlflow-artifacts/mpu/complete/<path:artifact>
POST            /api/2.0/mlflow-artifacts/mpu/abort/<path:artifact>
GET             /api/2.0/mlflow-artifacts/presigned/<path:artifact>

POST            /api/2.0/mlflow/logged-models
POST            /api/2.0/mlflow/logged-models/search
GET PATCH DELETE /api/2.0/mlflow/logged-models/<model>
PATCH           /api/2.0/mlflow/logged-models/<model>/tags
DELETE          /api/2.0/mlflow/logged-models/<model>/tags/<tag>
POST            /api/2.0/mlflow/logged-models/<model>/params
GET             /api/2.0/mlflow/logged-models/<model>/artifacts/directories
GET             /api/2.0/mlflow/logged-models/<model>/artifacts/files

POST            /api/2.0/mlflow/registered-models/create
GET             /api/2.0/mlflow/registered-models/get
GET             /api/2.0/mlflow/registered-models/search
GET POST        /api/2.0/mlflow/registered-models/get-latest-versions
POST            /api/2.0/mlflow/registered-models/rename
PATCH           /api/2.0/mlflow/registered-models/update
DELETE          /api/2.0/mlflow/registered-models/delete
POST            /api/2.0/mlflow/registered-models/set-tag
DELETE          /api/2.0/mlflow/registered-models/delete-tag
GET POST DELETE /api/2.0/mlflow/registered-models/alias
POST            /api/2.0/mlflow/model-versions/create
GET             /api/2.0/mlflow/model-versions/get
GET             /api/2.0/mlflow/model-versions/search
GET             /api/2.0/mlflow/model-versions/get-download-uri
PATCH           /api/2.0/mlflow/model-versions/update
DELETE          /api/2.0/mlflow/model-versions/delete
POST            /api/2.0/mlflow/model-versions/transition-stage
POST            /api/2.0/mlflow/model-versions/set-tag
DELETE          /api/2.0/mlflow/model-versions/delete-tag
"""

_REFUSED: Final = """
GET             /graphql
GET             /build/<path:file>
POST            /api/2.0/mlflow/upload-artifact
POST            /api/2.0/mlflow/artifacts/presigned-upload-url
POST            /api/2.0/mlflow/artifacts/presigned-download-url
POST            /api/3.0/mlflow/ui-telemetry
*               /api/3.0/mlflow/assistant/<path:rest>
*               /gateway/<path:rest>
*               /api/3.0/mlflow/gateway/<path:rest>
*               /api/2.0/mlflow/gateway-proxy
*               /api/3.0/jobs/<path:rest>
*               /api/3.0/jobs/
*               /api/3.0/mlflow/jobs/<path:rest>
*               /api/3.0/mlflow/scorer/<path:rest>
*               /api/3.0/mlflow/scorers/<path:rest>
*               /api/3.0/mlflow/genai/<path:rest>
*               /api/3.0/mlflow/prompt-optimization/<path:rest>
*               /api/2.0/mlflow/runs/create-promptlab-run
*               /api/3.0/mlflow/demo/<path:rest>
*               /api/2.0/mlflow/webhooks
*               /api/2.0/mlflow/webhooks/<path:rest>
*               /api/3.0/mlflow/mcp-servers
*               /api/3.0/mlflow/mcp-servers/<path:rest>
*               /api/3.0/mlflow/workspaces
*               /api/3.0/mlflow/workspaces/<path:rest>
*               /v1/traces
*               /api/2.0/otel/<path:rest>
*               /api/2.0/mlflow/traces
*               /api/2.0/mlflow/traces/<path:rest>
*               /api/3.0/mlflow/traces
*               /api/3.0/mlflow/traces/<path:rest>
*               /api/2.0/mlflow/unified-traces
*               /api/2.0/mlflow/get-online-trace-details
*               /api/2.0/mlflow/get-trace-artifact
*               /api/3.0/mlflow/get-trace-artifact
*               /api/3.0/mlflow/issues
*               /api/3.0/mlflow/issues/<path:rest>
*               /api/3.0/mlflow/label-schemas/<path:rest>
*               /api/3.0/mlflow/review-queues/<path:rest>
*               /api/3.0/mlflow/datasets/<path:rest>
*               /api/2.0mlflow/experiments/search-datasets
"""

_PARTS: Final = {"/api/": "/(?:ajax-)?api/", "path": "(?s:.+)", "one": "[^/]+"}
_PART: Final = re.compile(r"<(?P<path>path:)?\w+>|^/api/")


def _compiled(table: str) -> list[tuple[frozenset[str], re.Pattern[str]]]:
    rows = [line.split() for line in table.splitlines() if line]
    return [(frozenset(methods), re.compile(_pattern(path))) for *methods, path in rows]


def _pattern(path: str) -> str:
    pieces, end = [], 0
    for part in _PART.finditer(path):
        kind = "path" if part["path"] else "/api/" if part[0] == "/api/" else "one"
        pieces += [re.escape(path[end : part.start()]), _PARTS[kind]]
        end = part.end()
    return "".join(pieces) + re.escape(path[end:])


_TABLES: Final = {"allowed": _compiled(_ALLOWED), "refused": _compiled(_REFUSED)}


def judged(method: str, path: str) -> Literal["allowed", "refused"] | None:
    """Which table lists a request; None: neither, so it is not answered."""
    method = "GET" if method == "HEAD" else method
    verdict: Literal["allowed", "refused"]
    for verdict in ("allowed", "refused"):
        for methods, pattern in _TABLES[verdict]:
            if (method in methods or "*" in methods) and pattern.fullmatch(path):
                return verdict
    return None
