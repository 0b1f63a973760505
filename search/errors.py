"""What can go wrong in a search, in the user's words."""

from __future__ import annotations


class SearchError(Exception):
    """The search cannot go on."""


class StudyFileError(SearchError):
    """A file of settings cannot be read."""


class LaunchError(SearchError):
    """Workers cannot be started."""
