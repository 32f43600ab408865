"""Load on a running tritonserver: throughput, time to first token, time between tokens.

A closed loop: at concurrency c, c clients each stream one request after another over gRPC. Every
prompt is different from its first word on, so that no request finds another's blocks.

    trt-resa triton-repo --engine_dir ENGINE --output_dir models
    python -m tests.serving.server models    # or any other tritonserver
    python benchmarks/bench_triton.py --url 127.0.0.1:PORT
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import tritonclient.grpc as grpcclient

WORDS = Path(__file__).parent.parent.joinpath("LICENSE").read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class Sample:
    """One request: seconds to the first piece, gaps between pieces, tokens."""

    first: float
    gaps: list[float]
    tokens: int


class Client:
    """One client with one stream, reused from request to request."""

    def __init__(self, url: str, model: str, max_tokens: int) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client = grpcclient.InferenceServerClient(url)
        self._client.start_stream(
            lambda result, error: self._responses.put((time.perf_counter(), error or result))
        )

    def run(self, prompt: str) -> Sample:
        inputs = [
            _tensor("text_input", "BYTES", [[prompt.encode()]], np.object_),
            _tensor("max_tokens", "INT32", [[self._max_tokens]], np.int32),
            _tensor("stream", "BOOL", [[True]], np.bool_),
            _tensor("ignore_eos", "BOOL", [[True]], np.bool_),
        ]
        start = time.perf_counter()
        self._client.async_stream_infer(self._model, inputs)
        moments, tokens, final = [], 0, False
        while not final:
            moment, item = self._responses.get(timeout=600)
            if isinstance(item, Exception):
                raise item
            moments.append(moment)
            tokens += int(item.as_numpy("num_output_tokens").item())
            final = item.as_numpy("finish_reason") is not None
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        return Sample(moments[0] - start, gaps, tokens)

    def close(self) -> None:
        self._client.stop_stream()
        self._client.close()


def _tensor(name: str, kind: str, values: Any, dtype: Any) -> grpcclient.InferInput:
    array = np.array(values, dtype=dtype)
    tensor = grpcclient.InferInput(name, list(array.shape), kind)
    tensor.set_data_from_numpy(array)
    return tensor


def measure(
    url: str, model: str, concurrency: int, requests: int, words: int, max_tokens: int
) -> tuple[list[Sample], float]:
    """The samples of ``requests`` requests, ``concurrency`` at a time, and the seconds in all."""
    generator = random.Random(concurrency)
    prompts = [" ".join(generator.choices(WORDS, k=words)) for _ in range(requests)]
    local = threading.local()
    clients: list[Client] = []

    def run(prompt: str) -> Sample:
        if not hasattr(local, "client"):
            local.client = Client(url, model, max_tokens)
            clients.append(local.client)
        return local.client.run(prompt)

    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        samples = list(pool.map(run, prompts))
    seconds = time.perf_counter() - start
    for client in clients:
        client.close()
    return samples, seconds


def _ms(values: Sequence[float], percentile: float) -> float:
    return float(np.percentile(values, percentile)) * 1e3


@click.command()
@click.option("--url", default="127.0.0.1:8001", show_default=True, help="gRPC address")
@click.option("--model", default="trt_resa", show_default=True)
@click.option("--concurrency", default="1,2,4,8,16", show_default=True, help="clients at once")
@click.option("--rounds", default=3, show_default=True, help="requests of each client")
@click.option("--prompt_words", default=200, show_default=True)
@click.option("--max_tokens", default=32, show_default=True)
def main(
    url: str, model: str, concurrency: str, rounds: int, prompt_words: int, max_tokens: int
) -> None:
    """Print one line for each concurrency."""
    measure(url, model, 1, 1, prompt_words, max_tokens)
    click.echo(f"{prompt_words} words in, {max_tokens} tokens out, {rounds} requests a client")
    click.echo(
        "clients  requests/s  tokens/s  first token ms: p50, p99  between tokens ms: p50, p99, max"
    )
    for clients in map(int, concurrency.split(",")):
        samples, seconds = measure(url, model, clients, rounds * clients, prompt_words, max_tokens)
        firsts = [sample.first for sample in samples]
        gaps = [gap for sample in samples for gap in sample.gaps]
        click.echo(
            f"{clients:7d}  {len(samples) / seconds:10.2f}  "
            f"{sum(sample.tokens for sample in samples) / seconds:8.1f}  "
            f"{_ms(firsts, 50):12.0f} {_ms(firsts, 99):11.0f}  "
            f"{_ms(gaps, 50):18.0f} {_ms(gaps, 99):6.0f} {_ms(gaps, 100):6.0f}"
        )


if __name__ == "__main__":
    main()
