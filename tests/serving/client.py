"""What the tests say to the server: gRPC streams through the real client, HTTP by hand."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.serving.server import TritonServer
from trt_resa.runtime.serving import tensors

MODEL = "trt_resa"
_NUMPY = {"STRING": np.object_, "INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32}
_NUMPY["BOOL"] = np.bool_
_KINDS = {tensor.name: tensor.kind for tensor in tensors.INPUTS}


def grpc_inputs(values: dict[str, Any]) -> list[grpcclient.InferInput]:
    """Each value as the tensor of its name, [1, n]; texts as str or bytes."""
    result = []
    for name, value in values.items():
        kind = _KINDS.get(name, "STRING")
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        if kind == "STRING":
            items = [item.encode() if isinstance(item, str) else item for item in items]
        array = np.array([items], dtype=_NUMPY[kind])
        tensor = grpcclient.InferInput(
            name, list(array.shape), "BYTES" if kind == "STRING" else kind
        )
        tensor.set_data_from_numpy(array)
        result.append(tensor)
    return result


class Stream:
    """One gRPC stream with one request: its responses as dicts of outputs, as they come."""

    def __init__(
        self, server: TritonServer, parameters: dict[str, Any] | None = None, **values: Any
    ) -> None:
        self._responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client = grpcclient.InferenceServerClient(f"127.0.0.1:{server.ports.grpc}")
        self._client.start_stream(lambda result, error: self._responses.put(error or result))
        self._client.async_stream_infer(
            MODEL,
            grpc_inputs({"stream": True, **values}),
            request_id="1",
            enable_empty_final_response=True,
            parameters=parameters,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises InferenceServerException for an error; ends, and closes, at the final response."""
        with contextlib.closing(self):
            final = False
            while not final:
                item = self._responses.get(timeout=60)
                if isinstance(item, InferenceServerException):
                    raise item
                response = item.get_response()
                final = response.parameters["triton_final_response"].bool_param
                outputs = {
                    o.name: item.as_numpy(o.name).flatten().tolist() for o in response.outputs
                }
                if outputs:
                    yield outputs

    def cancel(self) -> None:
        self._client.stop_stream(cancel_requests=True)

    def close(self) -> None:
        self._client.close()


def texts(pieces: list[dict[str, Any]]) -> str:
    return b"".join(piece["text_output"][0] for piece in pieces).decode()


def post(server: TritonServer, path: str, body: bytes) -> tuple[int, str]:
    """Status and body of ``path`` below the model."""
    connection = http.client.HTTPConnection("127.0.0.1", server.ports.http, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", f"/v2/models/{MODEL}/{path}", body)
        response = connection.getresponse()
        return response.status, response.read().decode()


def generate(server: TritonServer, **values: Any) -> dict[str, Any]:
    """HTTP generate; the answer, which must be a good one."""
    status, body = post(server, "generate", json.dumps(values).encode())
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    assert "error" not in answer, answer
    return answer


def events(server: TritonServer, **values: Any) -> Iterator[dict[str, Any]]:
    """HTTP generate_stream: the server-sent events as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", server.ports.http, timeout=60)
    with contextlib.closing(connection):
        body = json.dumps({"stream": True, **values}).encode()
        connection.request("POST", f"/v2/models/{MODEL}/generate_stream", body)
        for line in connection.getresponse():
            if line.strip():
                yield json.loads(line.removeprefix(b"data: "))


def metrics(server: TritonServer) -> dict[str, float]:
    """The project's metrics by name, ``trt_resa_`` left out."""
    status, text = server.get("/metrics", server.ports.metrics)
    assert status == 200
    found = re.findall(r"^trt_resa_(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def wait_idle(server: TritonServer) -> None:
    """Until no request is active or queued and every block is free."""
    busy = ("requests_active", "requests_queued", "kv_blocks_used")
    wait_until(lambda: not any(metrics(server)[name] for name in busy))
