"""The ``trt-resa`` command: a table of subcommands, imported when they are called.

This is where the parts are put together, so it names the modules of builder and runtime as text;
nothing else in this package does, besides the exports of ``trt_resa/__init__.py``.
"""

from __future__ import annotations

import importlib
import sys

import click

from trt_resa.errors import TrtResaError
from trt_resa.version import __version__

_COMMANDS = {
    "bench": "trt_resa.bench_cli:bench",
    "build-engine": "trt_resa.builder.cli:build_engine",
    "eval": "trt_resa.runtime.quality.eval_cli:evaluate",
    "export-onnx": "trt_resa.builder.onnx_cli:export_onnx",
    "generate": "trt_resa.runtime.cli:generate",
    "inspect": "trt_resa.inspect_cli:inspect",
    "triton-repo": "trt_resa.runtime.serving.cli:triton_repo",
    "tune": "trt_resa.runtime.quality.tune_cli:tune",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trt-resa")
def _group() -> None:
    """Rectified Sparse Attention for TensorRT: build an engine, generate from it."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit 2 with one message on an error the user can mend."""
    try:
        _group.main(args=arguments, prog_name="trt-resa", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except (TrtResaError, click.ClickException) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"trt-resa: error: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
