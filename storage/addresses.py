"""Addresses of databases and servers: checked when they are read, and never shown with a secret."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from storage.errors import SettingsError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL  # its import takes long, and no help needs it

HTTP: Final = ("http", "https")

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_UNREADABLE = "(unreadable URL)"
_DATABASES = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
_SECRET_QUERY_KEYS = frozenset({"password", "sslpassword"})
_SECRET_VARIABLES = ("PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_WORD = re.compile(r"[A-Za-z]?[a-z]{1,9}|[A-Z]{1,10}|[0-9]{1,6}|.{1,3}", re.DOTALL)
"""Secrets that any text may hold by chance: they are replaced only where a secret is due."""

_SECRET_IS_DUE = (
    r"(?P<before>(?::|//)(?={0}@)|(?:passw(?:or)?d|pwd|token)['\"]?\s*[=:]\s*['\"]?|bearer\s+){0}(?!\w)"
)
"""Before the @ of a URL, as the value of a query or of a setting, and in a header; to be filled in."""

_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[\w.,-]*))(?::(?P<port>.*))?")
_WITHOUT_SCHEME = re.compile(r"(?P<host>[A-Za-z0-9.-]+):(?P<port>\d{1,5})/?")

_replaced: dict[str, str] = {}
"""What is never shown of the addresses that this process has read, and what is shown in its place."""


def storage_address(text: str, name: str) -> str:
    """The URL of a database of the records, as SQLAlchemy takes it; the file of SQLite is absolute.

    Parameters
    ----------
    name
        Where it was read (a variable, an option), for messages.

    Raises
    ------
    SettingsError
        in a line that names the place and what is wrong, and repeats nothing of the address.
    """
    scheme = _scheme(text)
    backend, _, driver = scheme.partition("+")
    if backend in ("postgres", "postgresql"):
        url = _server(text, name)
        if driver not in ("", "psycopg"):
            raise SettingsError(f"{name}: of the drivers of PostgreSQL psycopg only: write postgresql://...")
        return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    if backend == "sqlite":
        return _sqlite(text, name)
    _remember(text)
    if not scheme:
        raise SettingsError(f"{name} is not a database URL: write {_DATABASES}")
    raise SettingsError(f"{name}: the records can be kept in SQLite or PostgreSQL only: write {_DATABASES}")


def tracking_address(text: str, name: str) -> str:
    """The address of an MLflow server or database; see :func:`storage_address`."""
    scheme, backend = _scheme(text), _backend(text)
    if scheme in HTTP:
        _check_server(text, name)
        if "?" in text:
            raise SettingsError(f"{name}: the address of a server has no ?; in a password write %3F")
        return scheme + text[len(scheme) :]
    if backend == "postgresql":
        _server(text, name)
        return text
    if backend == "sqlite":
        return _sqlite(text, name)
    _remember(text)
    forms = f"http://HOST:PORT, https://HOST, {_DATABASES}"
    if bare := _WITHOUT_SCHEME.fullmatch(text):
        forms = f"http://{bare['host']}:{bare['port']}"
    raise SettingsError(f"{name} is not the address of an MLflow server or database: write {forms}")


def sqlite_url(file: Path) -> str:
    """The URL of a file of SQLite, whatever its name."""
    from sqlalchemy.engine import URL

    plain = URL.create("sqlite", database=str(file)).render_as_string()
    if plain.endswith(str(file)):
        return plain
    # MLflow makes the folder that stands after "sqlite:///", in which % is not read as it is here.
    return URL.create("sqlite+pysqlite", database=str(file)).render_as_string()


def sqlite_file(url: str) -> Path | None:
    """The file of a URL of SQLite; None: it is another address."""
    parsed = _parsed(url) if _backend(url) == "sqlite" else None
    return Path(str(parsed.database)) if parsed is not None else None


def redacted(url: str) -> str:
    """The URL as it may be shown: without passwords."""
    if (parsed := _parsed(url)) is None:
        return _UNREADABLE
    if parsed.username and not parsed.password and parsed.drivername.lower() in HTTP:  # it may be a token
        return f"{parsed.drivername}://***@{parsed.render_as_string().partition('@')[2]}"
    query = {key: "***" if key in _SECRET_QUERY_KEYS else value for key, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True)


def has_password(text: str) -> bool:
    """Whether an address holds a password, as far as one can tell: also one that cannot be read."""
    return any(True for _ in _secrets(text))


def without_secrets(text: str) -> str:
    """A text without the passwords of the addresses that were read, and of the environment."""
    hidden = dict(_replaced)
    for variable in _SECRET_VARIABLES:
        if value := os.environ.get(variable):
            hidden |= dict.fromkeys(_forms("", value), "***")
    for secret in sorted(hidden, key=len, reverse=True):
        if _WORD.fullmatch(secret):
            due = _SECRET_IS_DUE.format(re.escape(secret))
            text = re.sub(due, rf"\g<before>{hidden[secret]}", text, flags=re.IGNORECASE)
        else:
            text = text.replace(secret, hidden[secret])
    return text


class WithoutSecrets(logging.Filter):
    """Lets every record of a logger through, without secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = without_secrets(record.getMessage()), None
        if record.exc_info:
            record.exc_text = without_secrets(logging.Formatter().formatException(record.exc_info))
        return True


def _scheme(text: str) -> str:
    scheme, found, _ = text.partition("://")
    return scheme.lower() if found else ""


def _backend(text: str) -> str:
    return _scheme(text).partition("+")[0]


def _parsed(text: str) -> URL | None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        return None


def _sqlite(text: str, name: str) -> str:
    url = _parsed(text)
    if url is None or url.host or url.username or url.port:
        raise SettingsError(f"{name}: a file has no host: write sqlite:///FILE, or sqlite:////ABSOLUTE/FILE")
    if url.database in (None, "", ":memory:"):
        raise SettingsError(f"{name}: name a file, as in sqlite:///studies.db; memory is gone when we end")
    if "?" in text:
        raise SettingsError(f"{name}: options after ? are not for SQLite; in the name of a file write %3F")
    # Absolute, because the relay and other children may run in another folder.
    return sqlite_url(Path(str(url.database)).expanduser().absolute())


def _server(text: str, name: str) -> URL:
    _check_server(text, name)
    if (url := _parsed(text)) is None:
        raise SettingsError(f"{name} cannot be read: write postgresql://USER@HOST/DATABASE")
    return url


def _check_server(text: str, name: str) -> None:
    """Refuse what programs read in different ways: some of them take a password for a host, and show it."""
    _remember(text)
    rest = text.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, _, host = authority.rpartition("@")
    if any(char.isspace() or not char.isprintable() for char in text) or any(
        not char.isprintable() for char in unquote(user)
    ):
        raise SettingsError(f"{name}: there is a blank or an unprintable character; write %20 for a blank")
    if rest.count("@") != authority.count("@") or rest.count("@") > 1:
        raise SettingsError(
            f"{name}: there may be one @, and none of / ? # before it: in a password write %40 for @, %2F for"
            " /, %3F for ?, %23 for #"
        )
    if "#" in rest:
        raise SettingsError(f"{name}: write %23 for #")
    if set("[]") & set(user):
        raise SettingsError(f"{name}: in a password write %5B for [, %5D for ]")
    parts = _HOST.fullmatch(host)
    if parts is None or not (parts["ipv6"] is None or _is_ipv6(parts["ipv6"])):
        raise SettingsError(
            f"{name}: the host cannot be read: write HOST or HOST:PORT, an IPv6 address in [ ], and in a"
            " password %3A for :, %5B for ["
        )
    if parts["ipv6"] is None and not parts["name"] and _scheme(text) in HTTP:
        raise SettingsError(f"{name}: there is no host; write {_scheme(text)}://HOST:PORT")
    port = parts["port"]
    if port is not None and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise SettingsError(
            f"{name}: the port is no number from 1 to 65535; if that is part of a password, write %40 for @,"
            " %2F for /"
        )
    if _replaced.pop(text, None) is not None:
        # Without the scheme: what we make of the address has another one.
        _replaced[rest] = redacted(text).partition("://")[2]


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text.replace("%25", "%"))
    except ValueError:
        return False
    return True


def _secrets(text: str) -> Iterator[tuple[str, str]]:
    """User and password, as they are written: of what cannot be read, all that could be one."""
    if _backend(text) == "sqlite":
        return
    rest = text.partition("://")[2] or text
    before, at, _ = rest.rpartition("@")
    user, colon, password = before.partition(":")
    if at and colon and password:
        yield user, password
    for setting in rest.partition("?")[2].split("&"):
        key, _, value = setting.partition("=")
        if unquote_plus(key) in _SECRET_QUERY_KEYS and value:
            yield "", value


def _remember(text: str) -> None:
    found = list(_secrets(text))
    user, at, _ = text.partition("://")[2].rpartition("@")
    if _scheme(text) in HTTP and at and user and not found:
        found = [("", user)]  # a user alone may be a token
    for user, password in found:
        _replaced[text] = _UNREADABLE
        _replaced.update(dict.fromkeys(_forms(user, password), "***"))


def _forms(user: str, password: str) -> set[str]:
    """A password as it is written in addresses, in texts of Python and JSON, and when signing in by HTTP."""
    forms = {password}
    for plain in (unquote(password), unquote_plus(password)):
        quoted = {quote(plain, safe=""), quote(plain), quote(plain, safe=" +"), quote_plus(plain)}
        quoted |= {re.sub("%..", lambda code: code[0].lower(), form) for form in quoted}
        signed_in = base64.b64encode(f"{unquote(user)}:{plain}".encode()).decode().rstrip("=")
        forms |= quoted | {plain, repr(plain)[1:-1], json.dumps(plain)[1:-1], signed_in}
    return forms
