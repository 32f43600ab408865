"""Rectified Sparse Attention for TensorRT: ``LLM``, ``SamplingParams`` and the configurations."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

# In a checkout `builder` and `runtime` are siblings of this package; an installation has them
# inside it. Extending __path__ makes both layouts import the same names.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "builder" / "__init__.py").exists() and (_checkout / "pyproject.toml").exists():
    __path__.append(str(_checkout))

_EXPORTS = {
    "LLM": "trt_resa.runtime.llm",
    "CompletionOutput": "trt_resa.runtime.outputs",
    "RequestOutput": "trt_resa.runtime.outputs",
    "KvCacheConfig": "trt_resa.config",
    "SparseAttentionConfig": "trt_resa.config",
    "BuildConfig": "trt_resa.config",
    "SchedulerConfig": "trt_resa.config",
    "SamplingParams": "trt_resa.sampling_params",
    "TrtResaError": "trt_resa.errors",
    "__version__": "trt_resa.version",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import on first use, so that reading a configuration does not import torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'trt_resa' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
