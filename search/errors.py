"""Errors of a search, with messages for users."""

from __future__ import annotations


class SearchError(Exception):
    """The search cannot continue."""


class StudyFileError(SearchError):
    """A file of settings cannot be read."""


class LaunchError(SearchError):
    """Workers cannot be started."""
