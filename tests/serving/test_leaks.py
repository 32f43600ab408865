"""A client killed mid-stream, a hundred times: no block, thread or descriptor stays behind."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil

from tests.serving.client import generate, wait_idle, wait_until
from tests.serving.server import TritonServer

KILLS, AT_ONCE = 100, 10
#: The model tokenizes in a pool of threads that start on demand and stay.
POOL = 4

#: Reads the first piece of a stream over a plain socket and waits to be killed.
_CLIENT = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
body = {"text_input": "Once upon a time", "max_tokens": 900, "stream": True, "ignore_eos": True}
connection.request("POST", "/v2/models/trt_resa/generate_stream", json.dumps(body))
print(connection.getresponse().readline(), flush=True)
sys.stdin.read()
"""


def kill_a_client(server: TritonServer) -> None:
    command = [sys.executable, "-S", "-c", _CLIENT, str(server.ports.http)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as client:  # type: ignore[call-overload]
        assert client.stdout.readline().startswith(b"b'data: ")
        client.kill()


def resources(process: psutil.Process) -> tuple[int, int]:
    """Threads and open descriptors."""
    return process.num_threads(), process.num_fds()


def test_a_hundred_killed_clients_leave_nothing(server: TritonServer) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        # First, so that whatever is opened once is open.
        list(pool.map(lambda _: kill_a_client(server), range(AT_ONCE)))
        wait_idle(server)
        stub, main = server.stub(), psutil.Process(server.process.pid)
        before = {process: resources(process) for process in (stub, main)}
        list(pool.map(lambda _: kill_a_client(server), range(KILLS)))
    wait_idle(server)
    for process, (threads, descriptors) in before.items():
        wait_until(lambda p=process, d=descriptors: resources(p)[1] <= d)
        assert resources(process)[0] <= threads + POOL
    assert generate(server, text_input="Once upon a time", max_tokens=2)["text_output"]
