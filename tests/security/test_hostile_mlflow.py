"""An MLflow server in bad hands: nothing is written or read where it points, or a password told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from storage.errors import ModelNotFoundError, TrackingRefusedError, TrackingUnavailableError
from storage.settings import Settings
from storage.tracking.downloads import download_model
from storage.tracking.mlflow_runs import MlflowRuns, open_runs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")

REFUSED = r"only through MLflow's server|is a link|names nothing"
RUN = "0123456789abcdef0123456789abcdef"


@dataclass
class Hostile:
    """A server that speaks the few calls of MLflow's that we make.

    Attributes
    ----------
    artifact_uris : what it answers for the place of a run, one after the other; the last one stays
    listing : paths that it says are there
    """

    url: str = ""
    artifact_uris: list[str] = field(default_factory=list)
    listing: list[str] = field(default_factory=list)
    source: str = ""
    written: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: bytes) -> Any:
        self.asked.append(f"{method} {path}")
        if path.endswith("/experiments/search"):
            return {"experiments": []}
        if path.endswith("/runs/get"):
            uri = self.artifact_uris.pop(0) if len(self.artifact_uris) > 1 else self.artifact_uris[0]
            info = {"run_id": RUN, "run_uuid": RUN, "experiment_id": "1", "status": "RUNNING"}
            return {"run": {"info": {**info, "artifact_uri": uri, "lifecycle_stage": "active"}, "data": {}}}
        if path.endswith(("/model-versions/get", "/registered-models/alias")):
            return {"model_version": {"name": "m", "version": "1", "run_id": RUN, "source": self.source}}
        if "/mlflow-artifacts/artifacts" in path:
            if method == "PUT":
                self.written[path.partition("/artifacts/")[2]] = body
                return {}
            if path.endswith("/artifacts"):
                return {"files": [{"path": name, "is_dir": False, "file_size": 4} for name in self.listing]}
            return b"evil"
        return None


@pytest.fixture
def start() -> Iterator[Callable[[], Hostile]]:
    servers = []

    def begin() -> Hostile:
        hostile = Hostile()

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = hostile.answer(self.command, urlsplit(self.path).path, body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer or {}).encode()
                self.send_response(200 if answer is not None else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = _serve  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        hostile.url = f"http://127.0.0.1:{server.server_address[1]}"
        return hostile

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "mlartifacts").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    return home


def settings(home: Path, hostile: Hostile) -> Settings:
    return Settings(home, f"sqlite:///{home}/anitune.db", hostile.url)


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


PLACES = (
    "file://{tmp}/outside",
    "file://localhost{tmp}/outside",
    "file:{tmp}/outside",
    "{tmp}/outside",
    f"{{tmp}}/outside/study/{RUN}/artifacts",
    f"file://{{home}}/mlartifacts/../{RUN}/artifacts",
    f"file://{{home}}/mlartifacts/x/../../../outside/{RUN}/artifacts",
    f"file://{{home}}/mlartifacts/%2e%2e/{RUN}/artifacts",
    f"file://{{home}}/mlartifacts/linked/{RUN}/artifacts",
    f"file://{{home}}/mlartifacts/study/{'f' * 32}/artifacts",
    "{home}",
    "outside",
    "",
    "sftp://host/outside",
    "http://host/outside",
    "s3://bucket/outside",
    "dbfs:/outside",
    "models:/m/1",
    "runs:/other/x",
    "mlflow-artifacts://127.0.0.2:1/study",
)


@pytest.mark.parametrize("place", PLACES)
def test_files_go_nowhere_else(
    home: Path, start: Callable[[], Hostile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = start()
    (home / "mlartifacts" / "linked").symlink_to(tmp_path / "outside")
    hostile.artifact_uris = [place.format(tmp=tmp_path, home=home)]
    file = tmp_path / "loss.png"
    file.write_bytes(b"a picture")
    (tmp_path / "outside" / "secret").write_text("of a person")
    before = below(tmp_path)
    runs = open_runs(settings(home, hostile))
    with pytest.raises(TrackingRefusedError, match=REFUSED):
        runs.upload(RUN, {"plots/loss.png": file})
    with pytest.raises(TrackingRefusedError, match=REFUSED):
        runs.artifact_digests(RUN)
    with pytest.raises(TrackingRefusedError, match=REFUSED):
        runs.fetch(RUN, "secret", tmp_path / "outside")
    assert below(tmp_path) == before


def test_what_it_says_second_changes_nothing(
    home: Path, start: Callable[[], Hostile], tmp_path: Path
) -> None:
    hostile = start()
    hostile.artifact_uris = [f"mlflow-artifacts:/1/{RUN}/artifacts", f"file://{tmp_path}/outside"]
    file = tmp_path / "loss.png"
    file.write_bytes(b"a picture")
    open_runs(settings(home, hostile)).upload(RUN, {"plots/loss.png": file})
    assert hostile.written == {f"1/{RUN}/artifacts/plots/loss.png": b"a picture"}
    assert below(tmp_path / "outside") == []


def test_another_host_gets_no_password(
    home: Path, start: Callable[[], Hostile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    hostile, other = start(), start()
    hostile.artifact_uris = [f"mlflow-artifacts://{urlsplit(other.url).netloc}/1/{RUN}/artifacts"]
    with pytest.raises(TrackingRefusedError, match="only through MLflow's server"):
        open_runs(settings(home, hostile)).artifact_digests(RUN)
    assert other.asked == []


@pytest.mark.parametrize("name", ["../../outside/escaped", "/tmp/escaped-from-anitune", "%2e%2e/%2e%2e/x"])
def test_no_name_in_a_listing_leads_out(
    home: Path, start: Callable[[], Hostile], tmp_path: Path, name: str
) -> None:
    hostile = start()
    hostile.artifact_uris = [f"mlflow-artifacts:/1/{RUN}/artifacts"]
    hostile.listing = [name]
    before = below(tmp_path)
    with pytest.raises((TrackingRefusedError, TrackingUnavailableError)):
        open_runs(settings(home, hostile)).artifact_digests(RUN)
    assert below(tmp_path) == before
    assert not Path("/tmp/escaped-from-anitune").exists()


@pytest.mark.parametrize("source", ["../../outside", "x/../../..", "mlflow-artifacts:/../x", ""])
def test_a_model_is_downloaded_from_its_run_alone(
    home: Path, start: Callable[[], Hostile], tmp_path: Path, source: str
) -> None:
    hostile = start()
    hostile.artifact_uris = [f"mlflow-artifacts:/1/{RUN}/artifacts"]
    hostile.source = source
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(ModelNotFoundError):
        download_model(settings(home, hostile), "models:/m/1", into)
    assert below(tmp_path / "outside") == below(into) == []


def test_a_database_of_ours_gives_no_other_folder_either(tmp_path: Path, home: Path) -> None:
    runs = MlflowRuns(f"sqlite:///{home}/mlflow.db", home / "mlartifacts")
    file = tmp_path / "loss.png"
    file.write_bytes(b"a picture")
    elsewhere = runs.ask(lambda client: client.create_experiment("x", f"file://{tmp_path}/outside"))
    run = runs.find_or_create(elsewhere, "x", "x", 0, {})
    with pytest.raises(TrackingRefusedError, match="only through MLflow's server"):
        runs.upload(run, {"loss.png": file})

    run = runs.find_or_create(runs.experiment("study", {}), "y", "y", 0, {})
    runs.upload(run, {"plots/loss.png": file})
    assert list(runs.artifact_digests(run)) == ["plots/loss.png"]
    plots = home / "mlartifacts" / "study" / run / "artifacts" / "plots"
    plots.rename(tmp_path / "aside")
    plots.symlink_to(tmp_path / "outside")
    with pytest.raises(TrackingRefusedError, match="is a link"):
        runs.upload(run, {"plots/loss.png": file})
    assert below(tmp_path / "outside") == []
