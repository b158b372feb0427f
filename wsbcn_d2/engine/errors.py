"""Errors that are the user's to put right."""

from __future__ import annotations

__all__ = ["ConfigError"]


class ConfigError(ValueError):
    """Something in the command line or config that the user can put right; one clear message."""
