"""Errors of the dashboards, with messages for users."""

from __future__ import annotations


class DashboardError(Exception):
    """The dashboards cannot be shown."""


class AddressError(DashboardError):
    """A dashboard cannot listen on the address that was asked for."""


class ServerEndedError(DashboardError):
    """A dashboard's server ended by itself."""


class AccessError(DashboardError):
    """A dashboard has no secret that could protect it."""
