"""Addresses of databases and servers: validates them when read, and hides their secrets in every output."""

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
    from sqlalchemy.engine import URL  # imported only where needed, since the import is slow

HTTP: Final = ("http", "https")

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

_UNREADABLE = "(unreadable URL)"
_DATABASES = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
_SECRET_QUERY_KEYS = frozenset({"password", "sslpassword"})
_SECRET_VARIABLES = ("PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_WORD = re.compile(r"[A-Za-z]?[a-z]{1,9}|[A-Z]{1,10}|[0-9]{1,6}|.{1,3}", re.DOTALL)
"""Secrets that any text may contain by chance: replaced only where :data:`_SECRET_IS_DUE` matches."""

_SECRET_IS_DUE = (
    r"(?P<before>(?::|//)(?={0}@)|(?:passw(?:or)?d|pwd|token)['\"]?\s*[=:]\s*['\"]?|bearer\s+){0}(?!\w)"
)
"""Template for places of a secret: before the @ of a URL, as value of a query or setting, in a header."""

_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[\w.,-]*))(?::(?P<port>.*))?")
_WITHOUT_SCHEME = re.compile(r"(?P<host>[A-Za-z0-9.-]+):(?P<port>\d{1,5})/?")

_replaced: dict[str, str] = {}
"""Secrets of the addresses that this process has read, and the text shown in their place."""


def storage_address(text: str, name: str) -> str:
    """Validate the URL of a database of the records; return it for SQLAlchemy, with an absolute SQLite file.

    Parameters
    ----------
    name
        Where the address was read (a variable, an option), for messages.

    Raises
    ------
    SettingsError
        with one line that names the place and the mistake, and repeats nothing of the address.
    """
    scheme = _scheme(text)
    backend, _, driver = scheme.partition("+")
    if backend in ("postgres", "postgresql"):
        url = _server(text, name)
        if driver not in ("", "psycopg"):
            raise SettingsError(
                f"{name}: the only supported driver of PostgreSQL is psycopg: write postgresql://..."
            )
        return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    if backend == "sqlite":
        return _sqlite(text, name)
    _remember(text)
    if not scheme:
        raise SettingsError(f"{name} is not a database URL: write {_DATABASES}")
    raise SettingsError(f"{name}: the records can be stored in SQLite or PostgreSQL only: write {_DATABASES}")


def tracking_address(text: str, name: str) -> str:
    """Validate the address of an MLflow server or database; see :func:`storage_address`."""
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
    """The URL of an SQLite file with any name."""
    from sqlalchemy.engine import URL

    plain = URL.create("sqlite", database=str(file)).render_as_string()
    if plain.endswith(str(file)):
        return plain
    # MLflow creates the folder named after "sqlite:///", and does not decode % there as SQLAlchemy does.
    return URL.create("sqlite+pysqlite", database=str(file)).render_as_string()


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL; None for any other address."""
    parsed = _parsed(url) if _backend(url) == "sqlite" else None
    return Path(str(parsed.database)) if parsed is not None else None


def redacted(url: str) -> str:
    """The URL without passwords, for messages."""
    if (parsed := _parsed(url)) is None:
        return _UNREADABLE
    if parsed.username and not parsed.password and parsed.drivername.lower() in HTTP:  # it may be a token
        return f"{parsed.drivername}://***@{parsed.render_as_string().partition('@')[2]}"
    query = {key: "***" if key in _SECRET_QUERY_KEYS else value for key, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True)


def has_password(text: str) -> bool:
    """Whether an address seems to hold a password; works also for an address that cannot be parsed."""
    return any(True for _ in _secrets(text))


def without_secrets(text: str) -> str:
    """A text without the passwords of the environment and of the addresses that were read."""
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
    """Logging filter that removes secrets and passes every record."""

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
        raise SettingsError(
            f"{name}: name a file, as in sqlite:///studies.db; a database in memory is lost at the end"
        )
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
    """Refuse an address that programs parse in different ways: some would show its password as the host."""
    _remember(text)
    rest = text.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, _, host = authority.rpartition("@")
    if any(char.isspace() or not char.isprintable() for char in text) or any(
        not char.isprintable() for char in unquote(user)
    ):
        raise SettingsError(f"{name}: there is a space or an unprintable character; write %20 for a space")
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
            f"{name}: the port is not a number from 1 to 65535; if that is part of a password, write %40"
            " for @, %2F for /"
        )
    if _replaced.pop(text, None) is not None:
        # Without the scheme, because the URL made from the address has another one.
        _replaced[rest] = redacted(text).partition("://")[2]


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text.replace("%25", "%"))
    except ValueError:
        return False
    return True


def _secrets(text: str) -> Iterator[tuple[str, str]]:
    """User and password as written; if the address cannot be parsed, everything that could be a password."""
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
    """The forms of a password in addresses, in strings of Python and JSON, and in HTTP authentication."""
    forms = {password}
    for plain in (unquote(password), unquote_plus(password)):
        quoted = {quote(plain, safe=""), quote(plain), quote(plain, safe=" +"), quote_plus(plain)}
        quoted |= {re.sub("%..", lambda code: code[0].lower(), form) for form in quoted}
        signed_in = base64.b64encode(f"{unquote(user)}:{plain}".encode()).decode().rstrip("=")
        forms |= quoted | {plain, repr(plain)[1:-1], json.dumps(plain)[1:-1], signed_in}
    return forms
