"""From a piece of output to the tensors of a Triton response."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trt_resa.runtime.outputs import RequestOutput
from trt_resa.runtime.serving import tensors
from trt_resa.runtime.serving.requests import TextRequest


def response_tensors(
    request: TextRequest, output: RequestOutput, first: bool
) -> dict[tensors.Tensor, npt.NDArray[Any]]:
    """The arrays of one response, batch dimension (1) included.

    A streamed piece counts and holds what is new since the last. ``first``: no response of this
    request came before.
    """
    completion = output.outputs[0]
    streamed = request.stream
    text = completion.text_diff if streamed else completion.text
    token_ids = completion.token_ids_diff if streamed else completion.token_ids
    if request.echo and first:
        text = request.prompt + text
    result: dict[tensors.Tensor, npt.NDArray[Any]] = {tensors.TEXT_OUTPUT: _texts(text)}
    if request.num_input_tokens:
        result[tensors.NUM_INPUT_TOKENS] = _counts(len(output.prompt_token_ids))
    if request.num_output_tokens:
        result[tensors.NUM_OUTPUT_TOKENS] = _counts(len(token_ids))
    if output.finished:
        result[tensors.FINISH_REASON] = _texts(str(completion.finish_reason))
    if completion.logprobs is not None:
        total = len(completion.token_ids)
        new = range(total - len(token_ids), total)
        chosen = [completion.logprobs[i][completion.token_ids[i]] for i in new]
        result[tensors.CUM_LOG_PROBS] = np.array(
            [[completion.cumulative_logprob]], dtype=np.float32
        )
        result[tensors.OUTPUT_LOG_PROBS] = np.array([[chosen]], dtype=np.float32)
    return result


def _texts(text: str) -> npt.NDArray[Any]:
    return np.array([[text.encode("utf-8")]], dtype=np.object_)


def _counts(count: int) -> npt.NDArray[Any]:
    return np.array([[count]], dtype=np.int32)
