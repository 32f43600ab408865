"""TensorRT's messages in Python's ``logging``, for either flavour's module."""

from __future__ import annotations

import logging
from typing import Any


def make_log(trt: Any, name: str) -> Any:
    """A ``trt.ILogger`` that logs as ``name`` and keeps errors for the message of a failure.

    Make one per process and flavour: TensorRT registers the first log that a builder or runtime is
    made with and silently ignores every other while that one is in use. Errors are logged at DEBUG
    alone: who called TensorRT raises them as one exception.
    """
    logger = logging.getLogger(name)
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.DEBUG,
    }

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            level = levels[severity]
            if level == logging.ERROR:
                self._errors.append(" ".join(msg.split()))
                level = logging.DEBUG
            logger.log(level, "%s", msg)

        def take_errors(self) -> str:
            """The errors since the last call as one line; empty when there were none."""
            text = "; ".join(dict.fromkeys(self._errors))
            self._errors.clear()
            return text

    return Log()
