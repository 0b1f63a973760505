"""Digests that show whether two settings are equal."""

from __future__ import annotations

import hashlib
import json


def digest_of(values: object) -> str:
    """SHA-256, in hexadecimal, of plain JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
