"""Errors that a user can act on.

Each message is one sentence or two: what was given, what is allowed, what to do. The command line
prints the message without a traceback and exits with code 2.
"""


class TrtResaError(Exception):
    """Base of every error that the user's input, files or machine caused."""


class ConfigError(TrtResaError):
    """A flag, key or value that is not allowed."""


class CheckpointError(TrtResaError):
    """A checkpoint that is incomplete, damaged or of an unsupported kind."""


class EngineError(TrtResaError):
    """An engine directory that is missing, damaged, or does not fit this machine or version."""


class RequestError(TrtResaError):
    """A generation request that can never be served as given."""
