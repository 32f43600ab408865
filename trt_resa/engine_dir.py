"""The engine directory: where the builder and the runtime meet, and the only place they do.

========================  ==========================================================================
config.json               version, pretrained_config, build_config, sparse_attention_config,
                          build_info
network.json              the network (``trt_resa.network``)
model.engine              TensorRT engine of the whole decoder (executor tensorrt)
segment_NNN.engine        TensorRT-RTX engine of one segment (executor tensorrt_rtx)
segment_NNN.safetensors   weights of one segment (executor torch)
attention.safetensors     weights of the attention nodes (QK norm); absent where there are none
tokenizer files           as Hugging Face saves them
========================  ==========================================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.errors import ConfigError, EngineError
from trt_resa.model_config import ModelConfig
from trt_resa.network import Network
from trt_resa.validation import STRICT, parse

#: Version of the directory's format; a change of layout or of a key's meaning raises it.
FORMAT_VERSION = 2

CONFIG = "config.json"
NETWORK = "network.json"
ATTENTION_WEIGHTS = "attention.safetensors"
MODEL_ENGINE = "model.engine"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BuildInfo:
    """What made the directory; compared with the machine at load."""

    trt_resa_version: str
    tensorrt_flavour: Annotated[str | None, Field(description="None: no engines inside")] = None
    tensorrt_version: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    kernel_library_version: str | None = None
    kernel_library_sha256: str | None = None
    plugin_library_sha256: Annotated[
        str | None, Field(description="of the executor tensorrt's engine")
    ] = None
    checkpoint: str
    checkpoint_sha256: str
    date: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EngineConfig:
    """Content of config.json."""

    version: int
    pretrained_config: ModelConfig
    build_config: BuildConfig
    sparse_attention_config: SparseAttentionConfig
    build_info: BuildInfo


def segment_engine(index: int) -> str:
    return f"segment_{index:03d}.engine"


def segment_weights(index: int) -> str:
    return f"segment_{index:03d}.safetensors"


#: Name of a segment's file, by the executor that has one per segment.
SEGMENT_FILES: Mapping[str, Callable[[int], str]] = {
    "tensorrt_rtx": segment_engine,
    "torch": segment_weights,
}


class EngineDirectory:
    """A finished engine directory, opened for reading.

    Raises EngineError when the path is not one, is of another format version, or lacks a file that
    its own configuration promises.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        raw = self._read_json(CONFIG)
        version = raw.get("version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            raise EngineError(
                f"{self.path} has engine format version {version!r}; this trt_resa reads version "
                f"{FORMAT_VERSION}; build it again with trt-resa build-engine"
            )
        try:
            self.config: EngineConfig = parse(EngineConfig, raw, str(self.path / CONFIG))
            self.network: Network = TypeAdapter(Network).validate_python(self._read_json(NETWORK))
        except (ConfigError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise EngineError(
                f"{self.path} is damaged ({reason}); build it again with trt-resa build-engine"
            ) from None
        missing = [name for name in self._promised_files() if not (self.path / name).is_file()]
        if missing:
            raise EngineError(
                f"{self.path} lacks {missing[0]} and {len(missing) - 1} other files that its "
                "config.json promises; build it again with trt-resa build-engine"
                if len(missing) > 1
                else f"{self.path} lacks {missing[0]}, which its config.json promises; build it "
                "again with trt-resa build-engine"
            )

    def _read_json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EngineError(
                f"{self.path} is not an engine directory: it has no {name}; make one with "
                "trt-resa build-engine --checkpoint_dir DIR --output_dir DIR"
            ) from None
        except (OSError, ValueError) as error:
            raise EngineError(
                f"{self.path / name} cannot be read ({error}); build it again with "
                "trt-resa build-engine"
            ) from None

    def _promised_files(self) -> Iterator[str]:
        for executor in self.config.build_config.executors:
            if executor == "tensorrt":
                yield MODEL_ENGINE
            else:
                segments = range(len(self.network.attention_nodes) + 1)
                yield from map(SEGMENT_FILES[executor], segments)
        if any(node.weights for node in self.network.attention_nodes):
            yield ATTENTION_WEIGHTS


def write_description(path: Path, config: EngineConfig, network: Network) -> None:
    """Write config.json and network.json into a directory under construction."""
    for name, value in ((CONFIG, config), (NETWORK, network)):
        (path / name).write_bytes(TypeAdapter(type(value)).dump_json(value, indent=1) + b"\n")


@contextlib.contextmanager
def under_construction(output_dir: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A directory beside ``output_dir`` that takes its name when the block ends without an error.

    An error or interrupt removes it, so ``output_dir`` is whole or absent. An existing engine
    directory is replaced only with ``overwrite``; any other non-empty directory never is.
    """
    target = Path(output_dir).absolute()
    check_output_dir(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        if target.exists():
            retired = work.with_name(work.name + ".old")
            target.rename(retired)
            work.rename(target)
            shutil.rmtree(retired)
        else:
            work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def check_output_dir(target: Path, overwrite: bool) -> None:
    """Raise EngineError when ``target`` cannot become an engine directory."""
    if not target.exists():
        return
    if not target.is_dir():
        raise EngineError(f"--output_dir {target} is a file; give a directory")
    if not any(target.iterdir()):
        return
    if not (target / CONFIG).is_file() or not (target / NETWORK).is_file():
        raise EngineError(
            f"--output_dir {target} holds files that are not an engine; give an empty or new "
            "directory"
        )
    if not overwrite:
        raise EngineError(
            f"--output_dir {target} holds an engine already; give --overwrite to replace it or "
            "another directory"
        )
