"""What Triton's OpenAI front end sends to the model, and what it needs of the answers.

Recorded from the front end of release 26.08 (server 2.72) as it ran on this model. Those of 26.02
and of August 2026 (2.73 in development) make their requests by the same lines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from tests.serving.client import Stream, grpc_inputs, texts
from tests.serving.server import TritonServer

FRANCE = "The capital of France is"

#: Datatype and shape of what every request has, a chat too; the rest comes when it was asked for.
ALWAYS = {
    "text_input": ("BYTES", [1, 1]),
    "stream": ("BOOL", [1, 1]),
    "max_tokens": ("INT32", [1, 1]),
    "top_p": ("FP32", [1, 1]),
    "frequency_penalty": ("FP32", [1, 1]),
    "presence_penalty": ("FP32", [1, 1]),
    "temperature": ("FP32", [1, 1]),
    "return_num_input_tokens": ("BOOL", [1, 1]),
    "return_num_output_tokens": ("BOOL", [1, 1]),
}
COMPLETION = {"exclude_input_in_output": ("BOOL", [1, 1])}
ASKED_FOR = {"stop_words": ("BYTES", [1, 2]), "seed": ("UINT64", [1, 1])}


def chat(prompt: str, **values: Any) -> dict[str, Any]:
    """What a chat completion becomes: the front end's own defaults, and ``values``."""
    return {
        "text_input": prompt,
        "stream": False,
        "max_tokens": 16,
        "top_p": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "temperature": 0.0,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        **values,
    }


def completion(echo: bool = False, **values: Any) -> dict[str, Any]:
    return chat(FRANCE, exclude_input_in_output=not echo, **values)


def answers(server: TritonServer, request: dict[str, Any]) -> tuple[str, tuple[int, int]]:
    """Text and usage of a request, which must be the same whole and streamed.

    The front end takes one response or two of a request that is not streamed. Of one that is, it
    counts the prompt once and adds up the tokens of the pieces.
    """
    (whole,) = Stream(server, **{**request, "stream": False})
    pieces = list(Stream(server, **{**request, "stream": True}))
    assert len(pieces) > 1
    assert all(len(piece["text_output"]) == 1 for piece in pieces)
    prompt_tokens = whole["num_input_tokens"][0]
    assert {piece["num_input_tokens"][0] for piece in pieces} == {prompt_tokens}
    new_tokens = sum(piece["num_output_tokens"][0] for piece in pieces)
    assert new_tokens == whole["num_output_tokens"][0]
    assert texts(pieces) == texts([whole])
    return texts([whole]), (prompt_tokens, new_tokens)


@pytest.mark.parametrize(
    ("request_", "recorded"),
    [
        (chat("x"), ALWAYS),
        (completion(), ALWAYS | COMPLETION),
        (completion(stop_words=["a", "b"], seed=7), ALWAYS | COMPLETION | ASKED_FOR),
    ],
)
def test_the_requests_here_are_as_recorded(
    request_: dict[str, Any], recorded: dict[str, Any]
) -> None:
    tensors = grpc_inputs(request_)
    assert {tensor.name(): (tensor.datatype(), tensor.shape()) for tensor in tensors} == recorded


def test_what_it_looks_up_in_the_configuration(server: TritonServer) -> None:
    """Another backend than vllm gets the tensors above; echo needs one of two inputs' names."""
    status, text = server.get("/v2/models/trt_resa/config")
    assert status == 200
    config = json.loads(text)
    assert config["backend"] == "python"
    assert "exclude_input_in_output" in [tensor["name"] for tensor in config["input"]]
    kinds = {tensor["name"]: tensor["data_type"] for tensor in config["output"]}
    assert kinds["text_output"] == "TYPE_STRING"
    # Of another type than these it reads no usage.
    assert {kinds["num_input_tokens"], kinds["num_output_tokens"]} <= {"TYPE_INT32", "TYPE_UINT32"}


def test_completions(server: TritonServer) -> None:
    plain = answers(server, completion(max_tokens=12))
    assert plain == (" Paris.\n\nThe answer is: 201", (5, 12))
    echoed = answers(server, completion(max_tokens=12, echo=True))
    assert echoed == (FRANCE + plain[0], plain[1])
    stopped = answers(server, completion(max_tokens=12, stop_words=["201", "answer"]))
    assert stopped == (" Paris.\n\nThe ", (5, 6))
    sampled = completion(
        temperature=0.8, top_p=0.9, frequency_penalty=0.5, presence_penalty=-0.5, seed=7
    )
    assert answers(server, sampled) == answers(server, sampled)


def test_a_chat(server: TritonServer, smol_engine: Path) -> None:
    """By the tokenizer that the front end makes of the engine directory."""
    from transformers import AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(smol_engine).apply_chat_template(
        conversation=[{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
        tools=None,
        chat_template=None,
    )
    answer = answers(server, chat(prompt, max_tokens=24))
    assert answer == ("The capital of France is Paris.", (37, 8))


def test_a_tool_that_must_be_called_is_refused(server: TritonServer) -> None:
    """The front end asks for guided decoding then, which is not served."""
    guide = {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": "{}"}
    with pytest.raises(InferenceServerException, match="unexpected inference input 'guided_decod"):
        list(Stream(server, **chat("x"), **guide))
