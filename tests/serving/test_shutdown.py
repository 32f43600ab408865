"""The life of a server: it finishes its streams, and says why it does not start."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.serving.client import Stream, events
from tests.serving.server import TritonServer


def test_shutdown_finishes_streams(
    tritonserver: None, tiny_repository: Path, tmp_path: Path
) -> None:
    with TritonServer(tiny_repository, tmp_path / "log") as server:
        server.wait_ready()
        request = {"text_input": "abc", "max_tokens": 600, "ignore_eos": True}
        over_grpc, over_http = iter(Stream(server, **request)), events(server, **request)
        counts = [next(over_grpc)["num_output_tokens"][0], next(over_http)["num_output_tokens"]]
        server.process.send_signal(signal.SIGTERM)
        rests: list[int] = []
        reader = threading.Thread(
            target=lambda: rests.append(sum(p["num_output_tokens"] for p in over_http))
        )
        reader.start()
        counts[0] += sum(piece["num_output_tokens"][0] for piece in over_grpc)
        reader.join()
        counts[1] += rests[0]
        assert counts == [600, 600]
        assert server.process.wait(30) == 0


def test_an_idle_server_ends_quickly(
    tritonserver: None, tiny_repository: Path, tmp_path: Path
) -> None:
    with TritonServer(tiny_repository, tmp_path / "log", "--allow-metrics=false") as server:
        server.wait_ready()
        assert list(Stream(server, text_input="abc", max_tokens=4))
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 10


def test_a_missing_engine_is_named(
    tritonserver: None, tiny_repository: Path, tmp_path: Path
) -> None:
    shutil.rmtree(tiny_repository / "trt_resa" / "1" / "engine")
    with (
        TritonServer(tiny_repository, tmp_path / "log") as server,
        pytest.raises(RuntimeError, match="is not an engine directory"),
    ):
        server.wait_ready()
