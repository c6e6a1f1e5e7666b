"""Errors that a user can act on: one sentence that names the file, row or field and what to do."""


class SplitgymError(ValueError):
    """Base of every error that bad input causes. The command line prints its text and exits with 2."""


class ConfigError(SplitgymError):
    """A configuration (cluster, environment, run) that cannot be used."""


class TraceError(SplitgymError):
    """A trace that cannot be used."""


class MissingTraceError(TraceError):
    """A published trace that is not on this machine and was not to be downloaded."""


class ProfileError(SplitgymError):
    """A profile that cannot be used."""


class ActionError(SplitgymError):
    """An action outside the action space. (One inside it that cannot be done now is mapped, not refused.)"""


class PolicyError(SplitgymError):
    """A policy bundle that cannot be trusted: something missing, changed, or of another version."""
