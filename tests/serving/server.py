"""The real tritonserver as a subprocess, from the wheel that carries its binary.

The wheel nvidia-pytriton is used for the server and its Python backend alone. The stub process that
runs the model finds its Python through PATH: a virtual environment of its own, with numpy 1 (all
that the stub of this server knows) before the packages of the test environment.

    python -m tests.serving.server REPOSITORY    # serve until interrupted
"""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
INSTALLED = ROOT / "build" / "triton"
SERVER = "nvidia-pytriton"
STUB_NUMPY = "numpy>=1.26,<2"
#: The HTTP front end of this server needs this much stack for bodies of several MB.
STACK_BYTES = 256 << 20
#: Longer than any stream of the tests; the server ends badly when one outlasts it.
EXIT_TIMEOUT = 30


class Unavailable(Exception):
    """The server cannot be had or run on this machine; the message says why."""


def install() -> Path:
    """Where server and stub environment are, installed on first use. Raises Unavailable."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise Unavailable(f"{SERVER} has no server for {sys.platform} on {os.uname().machine}")
    if (INSTALLED / _key()).is_file():
        return INSTALLED
    INSTALLED.parent.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="triton.partial-", dir=INSTALLED.parent))
    try:
        _install(work)
        (work / _key()).touch()
        shutil.rmtree(INSTALLED, ignore_errors=True)
        work.rename(INSTALLED)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return INSTALLED


def _key() -> str:
    """Name of a file that stands for what was installed, and for which environment."""
    return f"{sys.implementation.cache_tag}-{'-'.join(Path(sys.prefix).parts[1:])}"


def _install(work: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    _pip(work / "server", "--constraint", str(ROOT / "constraints.txt"), SERVER)
    server = work / "server" / "pytriton" / "tritonserver"
    backend = work / "backends" / "python"
    backend.mkdir(parents=True)
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise Unavailable(f"{SERVER} has no stub for Python {version}")
    library = server / "backends" / "python" / "libtriton_python.so"
    for file in (stub, library, library.with_name("triton_python_backend_utils.py")):
        shutil.copy2(file, backend)
    venv.create(work / "stub", symlinks=True)
    packages = work / "stub" / "lib" / f"python{version}" / "site-packages"
    _pip(packages, STUB_NUMPY)
    paths = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "test_environment.pth").write_text("\n".join([str(ROOT), *paths]) + "\n")


def _pip(target: Path, *what: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    done = subprocess.run([*command, str(target), *what], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Unavailable(
            f"pip could not install {what[-1]}: {errors[0] if errors else done.stderr}"
        )


@dataclass
class Ports:
    http: int
    grpc: int
    metrics: int

    @classmethod
    def free(cls) -> Ports:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return cls(*(one.getsockname()[1] for one in sockets))


class TritonServer:
    """A running server; ``stop`` or leave the ``with`` block to end it."""

    def __init__(self, repository: Path, log: Path, *options: str) -> None:
        installed = install()
        packages = installed / "server"
        self.ports, self.log = Ports.free(), log
        libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
        environment = {
            **os.environ,
            "PATH": f"{installed / 'stub' / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        }
        arguments = {
            "model-repository": repository,
            "backend-directory": installed / "backends",
            "http-address": "127.0.0.1",
            "grpc-address": "127.0.0.1",
            "metrics-address": "127.0.0.1",
            "http-port": self.ports.http,
            "grpc-port": self.ports.grpc,
            "metrics-port": self.ports.metrics,
            "allow-gpu-metrics": "false",
            "exit-timeout-secs": EXIT_TIMEOUT,
        }
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [
                    packages / "pytriton" / "tritonserver" / "bin" / "tritonserver",
                    *(f"--{name}={value}" for name, value in arguments.items()),
                    *options,
                ],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_raise_stack,
            )

    def wait_ready(self, seconds: float = 120) -> TritonServer:
        """Until every model is loaded. Raises RuntimeError with the errors of the log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/v2/health/ready")[0] == 200:
                    return self
            time.sleep(0.05)
        state = self.process.poll()
        self.kill()
        lines = self.log.read_text(errors="replace").splitlines()
        errors = "\n".join(line for line in lines if line.startswith(("E", "error")))
        raise RuntimeError(f"tritonserver is not ready (exit status {state}):\n{errors}")

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.ports.http, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def stub(self) -> psutil.Process:
        """The process that runs the only model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (stub,) = [child for child in children if "triton_python" in child.name()]
        return stub

    def stop(self) -> int:
        """Let it finish what is under way; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(EXIT_TIMEOUT + 15)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()


def _raise_stack() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    soft = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def main() -> None:
    log = INSTALLED.parent / "tritonserver.log"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TritonServer(Path(sys.argv[1]), log) as server:
        server.wait_ready()
        ports = server.ports
        print(f"HTTP 127.0.0.1:{ports.http}, gRPC 127.0.0.1:{ports.grpc}, log {log}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.process.wait()


if __name__ == "__main__":
    main()
