"""Where a person's studies are kept: from arguments, the environment, or the embedded defaults."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from storage.errors import SettingsError
from storage.files import replacing

HOME_VARIABLE = "ANITUNE_HOME"
STORAGE_VARIABLE = "ANITUNE_STORAGE_URL"
TRACKING_VARIABLE = "ANITUNE_TRACKING_URI"
ARTIFACTS_VARIABLE = "ANITUNE_ARTIFACTS"

IN_DATABASE: Final = "database"
"""In place of a folder: the bytes of artifacts are kept in the database of the records."""

_ADDRESSES = "addresses.json"
_SECRET_QUERY_KEYS = frozenset({"password", "sslpassword"})


@dataclass(frozen=True)
class Settings:
    """The places that a study is written to.

    Attributes
    ----------
    home
        Absolute folder of everything that is a file: artifacts, features, checkpoints, logs.
    storage_url
        SQLAlchemy URL of the database of the records and of Optuna (SQLite or PostgreSQL).
    tracking_uri
        MLflow's tracking URI; as a database it must be another one than ``storage_url``.
    artifacts_in
        Where the bytes of artifacts are: an absolute folder, or the database; None: in the home folder.
    """

    home: Path
    storage_url: str
    tracking_uri: str
    artifacts_in: Path | Literal["database"] | None = None

    def __post_init__(self) -> None:
        if self.artifacts_in == IN_DATABASE and not self.storage_url.startswith("postgresql"):
            raise SettingsError(
                f"{ARTIFACTS_VARIABLE}={IN_DATABASE} needs PostgreSQL: set {STORAGE_VARIABLE}, or leave"
                f" {ARTIFACTS_VARIABLE} out"
            )
        # Optuna and MLflow both keep a table called alembic_version.
        if _place(self.storage_url) == _place(self.tracking_uri):
            raise SettingsError(
                f"{STORAGE_VARIABLE} and {TRACKING_VARIABLE} are the same database,"
                f" {redacted(self.storage_url)}: give MLflow one of its own"
            )

    @property
    def artifacts(self) -> Path:
        """Root of the files kept by content digest, where these are in a folder."""
        return self.artifacts_in if isinstance(self.artifacts_in, Path) else self.home / "artifacts"

    @property
    def artifact_copies(self) -> Path:
        """Root of copies of what the database keeps: they can be fetched again."""
        return self.home / "artifact-copies"

    @property
    def artifacts_elsewhere(self) -> bool:
        """Whether artifacts are where machines reach them that see nothing else of this home folder."""
        if isinstance(self.artifacts_in, Path):
            return not self.artifacts_in.is_relative_to(self.home)
        return self.artifacts_in == IN_DATABASE

    @property
    def optuna_artifacts(self) -> Path:
        """Folder of the images that the Optuna dashboard shows."""
        return self.home / "optuna-artifacts"

    @property
    def mlflow_artifacts(self) -> Path:
        """Folder of the files of MLflow's runs, where no server keeps them."""
        return self.home / "mlartifacts"

    @property
    def cards(self) -> Path:
        """Where the workers on a GPU announce how much of its memory they will take."""
        return self.home / "cards"

    @property
    def features(self) -> Path:
        """Root of the feature store."""
        return self.home / "features"

    @property
    def logs(self) -> Path:
        """Folder of the log files of processes in the background."""
        return self.home / "logs"

    @property
    def servers(self) -> Path:
        """Folder of the servers that ``anitune up`` starts."""
        return self.home / "servers"

    def study_folder(self, study: str) -> Path:
        """Folder of the trials of a study."""
        return self.home / "trials" / study

    def trial_folder(self, study: str, number: int) -> Path:
        """Folder of everything that is kept of a trial in files."""
        return self.study_folder(study) / f"{number:05d}"

    def attempt_folder(self, study: str, number: int, attempt: int) -> Path:
        """Folder of the checkpoint and results of an attempt at a trial; the next attempt takes it over."""
        return self.trial_folder(study, number) / f"attempt-{attempt}"

    def promotion_folder(self, study: str) -> Path:
        """Folder of what promotions of a study train."""
        return self.home / "promotions" / study

    def environment(self) -> dict[str, str]:
        """The variables that hand these settings to a child process (``ps`` shows arguments to all)."""
        return {
            HOME_VARIABLE: str(self.home),
            STORAGE_VARIABLE: self.storage_url,
            TRACKING_VARIABLE: self.tracking_uri,
            ARTIFACTS_VARIABLE: str(self.artifacts_in or ""),
        }


def attempt_log(folder: Path) -> Path:
    """The log of the attempt that a folder belongs to; it keeps its name when the next one has the folder."""
    return folder / f"{folder.name}.log"


def attempt_logs(folder: Path) -> dict[str, Path]:
    """The logs in the folder of an attempt, its own and those of earlier ones, by their paths in the run."""
    return {f"logs/{log.name}": log for log in sorted(folder.glob("attempt-*.log"))}


@dataclass(frozen=True)
class Addresses:
    """Where the servers of ``anitune up`` are, for every later command; also while they are down.

    Attributes
    ----------
    storage_url, tracking_uri
        See :class:`Settings`. There is no password in them.
    host
        The machine that they run on.
    """

    storage_url: str
    tracking_uri: str
    host: str


def read_addresses(servers: Path) -> Addresses | None:
    """What :func:`write_addresses` wrote, if it did.

    Raises
    ------
    SettingsError
        if the file was damaged.
    """
    file = servers / _ADDRESSES
    try:
        return TypeAdapter(Addresses).validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise SettingsError(f"{file}: damaged; remove it, and run `anitune up` again") from None


def write_addresses(servers: Path, addresses: Addresses) -> None:
    """Let every later command of this home find the servers."""
    with replacing(servers / _ADDRESSES) as new:
        new.write((json.dumps(asdict(addresses), indent=2) + "\n").encode())


def is_of_anitune_up(url: str, home: Path) -> bool:
    """Whether a database is the one that ``anitune up`` starts in that home folder."""
    recorded = read_addresses(home / "servers")
    return recorded is not None and url == _normalized(recorded.storage_url)


def home_folder() -> Path:
    """The folder of everything that is a file: ``ANITUNE_HOME``, or ``./anitune-data``."""
    return _path(os.environ.get(HOME_VARIABLE) or "anitune-data")


def load_settings(storage_url: str | None = None, tracking_uri: str | None = None) -> Settings:
    """Settings from the arguments, else from the environment, else the home folder's own.

    ``ANITUNE_HOME`` names the home folder (``./anitune-data``), ``ANITUNE_STORAGE_URL`` the database of the
    records, ``ANITUNE_TRACKING_URI`` the MLflow server or database, ``ANITUNE_ARTIFACTS`` a folder that all
    machines reach, or the word ``database``. A home folder's own are the servers of ``anitune up``, or files
    in it where that was never run.

    Raises
    ------
    SettingsError
        for a URL that cannot be read, or that names a database we do not work with.
    """
    home = home_folder()
    own = read_addresses(home / "servers") or embedded(home)
    url = storage_url or os.environ.get(STORAGE_VARIABLE) or own.storage_url
    uri = tracking_uri or os.environ.get(TRACKING_VARIABLE) or own.tracking_uri
    return Settings(
        home=home,
        storage_url=_normalized(url),
        tracking_uri=uri,
        artifacts_in=_artifacts_in(os.environ.get(ARTIFACTS_VARIABLE)),
    )


def _artifacts_in(text: str | None) -> Path | Literal["database"] | None:
    if not text:
        return None
    # Absolute, as a file of SQLite.
    return IN_DATABASE if text == IN_DATABASE else _path(text)


def _path(text: str) -> Path:
    # An absolute path is taken as it is: it may have been resolved by a parent process.
    return Path(os.path.expandvars(text) if text.startswith("$") else text).expanduser().absolute()


def embedded(home: Path) -> Settings:
    """Settings of a home folder with nothing set up: all lies in files in it."""
    return Settings(home, f"sqlite:///{home / 'anitune.db'}", f"sqlite:///{home / 'mlflow.db'}")


def redacted(url: str) -> str:
    """The URL as it may be shown: without passwords."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return "(unreadable URL)"
    query = {key: "***" if key in _SECRET_QUERY_KEYS else value for key, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True)


def _normalized(url: str) -> str:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SettingsError(
            f"{STORAGE_VARIABLE} is not a database URL: write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    if parsed.get_backend_name() != "sqlite":
        raise SettingsError(
            f"{redacted(url)}: the records can be kept in SQLite or PostgreSQL (with psycopg) only"
        )
    if parsed.database in (None, "", ":memory:"):
        raise SettingsError(
            f"{redacted(url)}: name a file, as in sqlite:///studies.db; memory is gone when we end"
        )
    # Absolute, because the relay and other children may run in another folder.
    return parsed.set(database=str(Path(str(parsed.database)).expanduser().absolute())).render_as_string()


def _place(url: str) -> tuple[object, ...] | str:
    """What tells two databases apart, whatever driver and user reach them."""
    try:
        parsed: URL = make_url(url)
    except ArgumentError:
        return url
    return (parsed.get_backend_name(), parsed.host, parsed.port, parsed.database)
