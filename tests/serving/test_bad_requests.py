"""Bad input through the real server: one clear error each, and the next request is served."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from tests.serving.client import Stream, events, generate, metrics, post, texts, wait_idle
from tests.serving.server import TritonServer

GOOD = {"text_input": "The capital of France is", "max_tokens": 2}
LONG = "one two three four " * 400

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "empty prompt": ({"text_input": ""}, "text_input is empty"),
    "negative max_tokens": ({"max_tokens": -1}, "max_tokens = -1: input should be greater"),
    "no max_tokens": ({"max_tokens": 0}, "max_tokens = 0: input should be greater"),
    "huge max_tokens": ({"max_tokens": 2**31 - 1}, "max_tokens = 2147483647 is more than the 1024"),
    "prompt beyond max_seq_len": ({"text_input": LONG}, "the prompt has 1601 tokens"),
    "empty stop word": ({"stop_words": ["a", ""]}, "a stop string is empty"),
    "empty bad word": ({"bad_words": [""]}, "a bad string is empty"),
    "unknown token": ({"bad_token_ids": [49152]}, "token id 49152 is outside the vocabulary"),
    "temperature": ({"temperature": -0.5}, "temperature = -0.5: input should be greater"),
    "top_p": ({"top_p": 0.0}, "top_p = 0.0: input should be greater than 0"),
    "mode": ({"rectify_mode": "sparse"}, "rectify_mode = 'sparse': input should be 'fused'"),
}


@pytest.fixture(autouse=True)
def _next_is_served(server: TritonServer) -> Any:
    yield
    assert texts(list(Stream(server, **GOOD))).startswith(" Paris")
    wait_idle(server)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_value_is_one_error(server: TritonServer, case: str) -> None:
    changes, message = BAD[case]
    request = GOOD | changes
    status, body = post(server, "generate", json.dumps(request).encode())
    assert status == 400
    error = json.loads(body)["error"]
    assert message in error
    assert "Traceback" not in error
    assert "\n" not in error
    (event,) = events(server, **request)
    assert message in event["error"]
    with pytest.raises(InferenceServerException) as caught:
        list(Stream(server, **request))
    assert message in str(caught.value)


def test_missing_text_input(server: TritonServer) -> None:
    status, body = post(server, "generate", b'{"max_tokens": 3}')
    assert (status, json.loads(body)["error"]) == (400, "text_input is missing; give the prompt")
    with pytest.raises(InferenceServerException, match="text_input is missing; give the prompt"):
        list(Stream(server, max_tokens=3))


def test_invalid_utf8(server: TritonServer) -> None:
    message = "text_input is not UTF-8: byte 0xff at position 3"
    status, body = post(server, "generate", b'{"text_input": "abc\xff", "max_tokens": 3}')
    assert status == 400
    assert message in json.loads(body)["error"]
    with pytest.raises(InferenceServerException, match=message):
        list(Stream(server, text_input=b"abc\xff"))
    with pytest.raises(InferenceServerException, match="stop_words is not UTF-8"):
        list(Stream(server, text_input="abc", stop_words=[b"\xc3"]))


def test_unknown_parameter(server: TritonServer) -> None:
    for request in (GOOD | {"tempreature": 1}, GOOD | {"parameters": {"tempreature": 1}}):
        status, body = post(server, "generate", json.dumps(request).encode())
        assert status == 400
        assert "unknown parameter 'tempreature'; a request takes text_input," in body
    with pytest.raises(InferenceServerException, match="unknown parameter 'tempreature'"):
        list(Stream(server, {"tempreature": 1}, **GOOD))
    with pytest.raises(InferenceServerException, match="unexpected inference input 'beam_width'"):
        list(Stream(server, beam_width=4, **GOOD))


def test_a_prompt_of_30_megabytes(server: TritonServer) -> None:
    prompt = "word " * (6 << 20)
    message = "text_input has 31457280 characters; a prompt of 1024 tokens"
    status, body = post(server, "generate", json.dumps({**GOOD, "text_input": prompt}).encode())
    assert status == 400
    assert message in body
    with pytest.raises(InferenceServerException, match=message):
        list(Stream(server, **{**GOOD, "text_input": prompt}))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"text_input": 7}', b'{"text_input": ["a", "b"]}']
)
def test_malformed_bodies(server: TritonServer, body: bytes) -> None:
    """Triton's own refusals; what matters is that they are errors and nothing else happens."""
    status, answer = post(server, "generate", body)
    assert status >= 400
    assert "error" in answer


def test_errors_count_nothing(server: TritonServer) -> None:
    wait_idle(server)
    before = metrics(server)
    for changes, _ in BAD.values():
        post(server, "generate", json.dumps(GOOD | changes).encode())
    wait_idle(server)
    assert metrics(server) == before
    assert generate(server, **GOOD)["num_output_tokens"] == 2
