"""Where studies are stored: from arguments, the environment, or the embedded defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter
from sqlalchemy.engine import make_url

from storage.addresses import redacted, sqlite_file, sqlite_url, storage_address, tracking_address
from storage.errors import SettingsError
from storage.files import replacing
from storage.postgresql import DATABASE, PostgreSQL

HOME_VARIABLE = "ANITUNE_HOME"
STORAGE_VARIABLE = "ANITUNE_STORAGE_URL"
TRACKING_VARIABLE = "ANITUNE_TRACKING_URI"
ARTIFACTS_VARIABLE = "ANITUNE_ARTIFACTS"

IN_DATABASE: Final = "database"
"""Value used instead of a folder: the database of the records stores the bytes of artifacts."""

_ADDRESSES = "addresses.json"


@dataclass(frozen=True)
class Settings:
    """The places that a study is written to.

    Attributes
    ----------
    home
        Absolute path of the folder for all files: artifacts, features, checkpoints, logs.
    storage_url
        SQLAlchemy URL of the database of the records and of Optuna (SQLite or PostgreSQL).
    tracking_uri
        MLflow's tracking URI; if it is a database, it must differ from ``storage_url``.
    artifacts_in
        Where the bytes of artifacts are: an absolute folder, or the database; None: in the home folder.
    """

    home: Path
    storage_url: str = field(repr=False)  # it may hold a password
    tracking_uri: str = field(repr=False)
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
        """Root of the artifacts named by content digest, if they are stored in a folder."""
        return self.artifacts_in if isinstance(self.artifacts_in, Path) else self.home / "artifacts"

    @property
    def artifact_copies(self) -> Path:
        """Root of file copies of artifacts in the database; deleted copies are fetched again."""
        return self.home / "artifact-copies"

    @property
    def artifacts_elsewhere(self) -> bool:
        """Whether machines that do not share this home folder can reach the artifacts."""
        if isinstance(self.artifacts_in, Path):
            return not self.artifacts_in.is_relative_to(self.home)
        return self.artifacts_in == IN_DATABASE

    @property
    def optuna_artifacts(self) -> Path:
        """Folder of the images that the Optuna dashboard shows."""
        return self.home / "optuna-artifacts"

    @property
    def mlflow_artifacts(self) -> Path:
        """Folder of the files of MLflow's runs, if no server stores them."""
        return self.home / "mlartifacts"

    @property
    def cards(self) -> Path:
        """Folder in which workers on a GPU announce how much of its memory they will take."""
        return self.home / "cards"

    @property
    def features(self) -> Path:
        """Root of the feature store."""
        return self.home / "features"

    @property
    def logs(self) -> Path:
        """Folder of the log files of background processes."""
        return self.home / "logs"

    @property
    def servers(self) -> Path:
        """Folder of the servers that ``anitune up`` starts."""
        return self.home / "servers"

    def study_folder(self, study: str) -> Path:
        """Folder of the trials of a study."""
        return self.home / "trials" / study

    def trial_folder(self, study: str, number: int) -> Path:
        """Folder of all files of a trial."""
        return self.study_folder(study) / f"{number:05d}"

    def attempt_folder(self, study: str, number: int, attempt: int) -> Path:
        """Folder of the checkpoint and results of an attempt at a trial; the next attempt takes it over."""
        return self.trial_folder(study, number) / f"attempt-{attempt}"

    def promotion_folder(self, study: str) -> Path:
        """Folder of the models that promotions of a study train."""
        return self.home / "promotions" / study

    def environment(self) -> dict[str, str]:
        """Variables that pass these settings to a child process; arguments would be visible in ``ps``."""
        return {
            HOME_VARIABLE: str(self.home),
            STORAGE_VARIABLE: self.storage_url,
            TRACKING_VARIABLE: self.tracking_uri,
            ARTIFACTS_VARIABLE: str(self.artifacts_in or ""),
        }


def attempt_log(folder: Path) -> Path:
    """The log of the attempt of a folder; it keeps its name when the next attempt takes the folder over."""
    return folder / f"{folder.name}.log"


def attempt_logs(folder: Path) -> dict[str, Path]:
    """The logs in the folder of an attempt, including earlier attempts, by their paths in the MLflow run."""
    return {f"logs/{log.name}": log for log in sorted(folder.glob("attempt-*.log"))}


@dataclass(frozen=True)
class ServerAddresses:
    """Addresses of the servers of ``anitune up``, for all later commands, also while the servers are down.

    Attributes
    ----------
    storage_url, tracking_uri
        See :class:`Settings`. They contain no password.
    host
        The machine that they run on.
    """

    storage_url: str
    tracking_uri: str
    host: str

    def are_of(self, home: Path) -> bool:
        """Whether these servers belong to a home folder, which may have been moved or copied from theirs."""
        return self.storage_url == PostgreSQL.of(home).url(DATABASE)


def read_addresses(servers: Path) -> ServerAddresses | None:
    """Read the file of :func:`write_addresses`; None if there is none.

    Raises
    ------
    SettingsError
        if the file is damaged.
    """
    file = servers / _ADDRESSES
    try:
        return TypeAdapter(ServerAddresses).validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise SettingsError(f"{file}: damaged; remove it, and run `anitune up` again") from None


def write_addresses(servers: Path, addresses: ServerAddresses) -> None:
    """Write the addresses of the servers for all later commands with this home folder."""
    with replacing(servers / _ADDRESSES) as new:
        new.write((json.dumps(asdict(addresses), indent=2) + "\n").encode())


def is_of_anitune_up(url: str, home: Path) -> bool:
    """Whether a database is the one that ``anitune up`` starts in that home folder."""
    recorded = read_addresses(home / "servers")
    return recorded is not None and url == storage_address(recorded.storage_url, _ADDRESSES)


def home_folder() -> Path:
    """The folder for all files: ``ANITUNE_HOME``, or ``./anitune-data``."""
    return _path(os.environ.get(HOME_VARIABLE) or "anitune-data")


def load_settings(storage_url: str | None = None, tracking_uri: str | None = None) -> Settings:
    """Load the settings from the arguments, else from the environment, else from the home folder.

    ``ANITUNE_HOME`` names the home folder (default ``./anitune-data``), ``ANITUNE_STORAGE_URL`` the database
    of the records, ``ANITUNE_TRACKING_URI`` the MLflow server or database, ``ANITUNE_ARTIFACTS`` a folder
    that all machines reach, or the word ``database``. The defaults of a home folder are the servers of
    ``anitune up``, or files in it if that command was never run.

    Raises
    ------
    SettingsError
        for a URL that cannot be read, or that names an unsupported database.
    """
    home = home_folder()
    own = _servers_of(home) or embedded(home)
    return Settings(
        home=home,
        storage_url=_chosen(storage_address, storage_url, "storage", STORAGE_VARIABLE, own.storage_url),
        tracking_uri=_chosen(tracking_address, tracking_uri, "tracking", TRACKING_VARIABLE, own.tracking_uri),
        artifacts_in=_artifacts_in(os.environ.get(ARTIFACTS_VARIABLE)),
    )


def _servers_of(home: Path) -> ServerAddresses | None:
    addresses = read_addresses(home / "servers")
    if addresses is not None and not addresses.are_of(home):
        raise SettingsError(
            f"{home} was moved, or is a copy: its servers are those of another folder; run `anitune up` here"
        )
    return addresses


def _chosen(checked: Callable[[str, str], str], given: str | None, key: str, variable: str, own: str) -> str:
    if given:
        return checked(given, key)
    return checked(os.environ.get(variable) or own, variable)


def _artifacts_in(text: str | None) -> Path | Literal["database"] | None:
    if not text:
        return None
    if "://" in text:
        raise SettingsError(
            f"{ARTIFACTS_VARIABLE}: artifacts cannot be stored at an address: write the path of a folder, or"
            f" {IN_DATABASE}"
        )
    # Made absolute, like the file of SQLite.
    return IN_DATABASE if text == IN_DATABASE else _path(text)


def _path(text: str) -> Path:
    # An absolute path is not expanded: a parent process may have expanded it already.
    return Path(os.path.expandvars(text) if text.startswith("$") else text).expanduser().absolute()


def embedded(home: Path) -> Settings:
    """Settings of a home folder without servers: everything is in files in it."""
    return Settings(home, sqlite_url(home / "anitune.db"), sqlite_url(home / "mlflow.db"))


def _place(url: str) -> tuple[object, ...] | str:
    """A key that identifies a database, independent of driver and user."""
    if url.startswith(("http://", "https://")):
        return url
    if (file := sqlite_file(url)) is not None:
        return str(file.resolve())
    parsed = make_url(url)
    return (parsed.get_backend_name(), parsed.host, parsed.port, parsed.database, parsed.query.get("host"))
