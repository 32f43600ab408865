"""From the tensors of a Triton request to a prompt and its sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_resa.config import RectifyMode, SparseAttentionConfig
from trt_resa.errors import RequestError
from trt_resa.runtime.serving import tensors
from trt_resa.sampling_params import SamplingParams
from trt_resa.validation import parse

#: Triton's generate endpoint lets every request have one, and hands it on as a parameter.
_REQUEST_ID = "id"


@dataclass(frozen=True)
class TextRequest:
    """What a client asked for. ``echo``: the prompt goes before the text."""

    prompt: str
    params: SamplingParams
    stream: bool
    rectify_mode: RectifyMode | None
    echo: bool
    num_input_tokens: bool
    num_output_tokens: bool


@dataclass(frozen=True)
class RequestLimits:
    """What no request can exceed, so that it is refused before any work.

    ``max_prompt_bytes``: the longest prompt that could have few enough tokens.
    """

    max_seq_len: int
    max_prompt_bytes: int


def read_request(
    inputs: Mapping[str, npt.NDArray[Any]], parameters: Mapping[str, Any], limits: RequestLimits
) -> TextRequest:
    """Decode and check one request; ``inputs`` holds the tensors that were given, by name.

    Raises TrtResaError with one sentence for the client.
    """
    unknown = set(parameters) - {_REQUEST_ID}
    if unknown:
        raise RequestError(
            f"unknown parameter '{min(unknown)}'; a request takes "
            f"{', '.join(tensor.name for tensor in tensors.INPUTS)}"
        )
    values = {
        tensor.name: _value(tensor, inputs[tensor.name])
        for tensor in tensors.INPUTS
        if tensor.name in inputs
    }
    prompt = values.get(tensors.TEXT_INPUT.name)
    if prompt is None:
        raise RequestError("text_input is missing; give the prompt")
    if not prompt:
        raise RequestError("text_input is empty; give at least one character")
    if len(prompt) > limits.max_prompt_bytes:
        raise RequestError(
            f"text_input has {len(prompt)} characters; a prompt of {limits.max_seq_len} tokens, "
            f"the most this model takes, has at most {limits.max_prompt_bytes}; shorten it"
        )
    sampling = {
        tensor.sampling: values[tensor.name]
        for tensor in tensors.INPUTS
        if tensor.sampling and tensor.name in values
    }
    if values.get(tensors.RETURN_LOG_PROBS.name, False):
        sampling["logprobs"] = 0
    params = parse(SamplingParams, sampling, "the request's inputs")
    if params.max_tokens > limits.max_seq_len:
        raise RequestError(
            f"max_tokens = {params.max_tokens} is more than the {limits.max_seq_len} tokens that "
            "this model can hold, prompt included; lower it"
        )
    return TextRequest(
        prompt=prompt,
        params=params,
        stream=values.get(tensors.STREAM.name, False),
        rectify_mode=_rectify_mode(values.get(tensors.RECTIFY_MODE.name)),
        echo=not values.get(tensors.EXCLUDE_INPUT.name, True),
        num_input_tokens=values.get(tensors.RETURN_INPUT_TOKENS.name, True),
        num_output_tokens=values.get(tensors.RETURN_OUTPUT_TOKENS.name, True),
    )


def _value(tensor: tensors.Tensor, array: npt.NDArray[Any]) -> Any:
    """A scalar, or a tuple of them for a tensor of any length."""
    flat = [_text(tensor, item) if tensor.kind == "STRING" else item for item in array.flat]
    items = [item.item() if isinstance(item, np.generic) else item for item in flat]
    return items[0] if tensor.shape == (1,) else tuple(items)


def _text(tensor: tensors.Tensor, item: Any) -> str:
    try:
        return item.decode("utf-8") if isinstance(item, bytes) else str(item)
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{tensor.name} is not UTF-8: byte 0x{error.object[error.start]:02x} at position "
            f"{error.start}; encode the text as UTF-8"
        ) from None


def _rectify_mode(value: str | None) -> RectifyMode | None:
    if value is None:
        return None
    return parse(
        SparseAttentionConfig, {"rectify_mode": value}, "the request's inputs"
    ).rectify_mode
