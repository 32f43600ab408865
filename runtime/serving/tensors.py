"""The tensors of the Triton model: names, types and shapes, stated once.

The names are those of TensorRT-LLM's Triton models, so that its clients, and the OpenAI frontend of
Triton, work unmodified. A shape here leaves out the batch dimension, which is always 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from trt_resa.cli_options import field_descriptions
from trt_resa.sampling_params import SamplingParams


@dataclass(frozen=True)
class Tensor:
    """One tensor. ``kind`` is Triton's data type; ``shape`` holds -1 for any length.

    ``sampling``: the field of SamplingParams that an input fills, if it is one.
    """

    name: str
    kind: str
    description: str
    shape: tuple[int, ...] = (1,)
    sampling: str | None = None


def _sampling(kind: str, field: str, name: str = "", shape: tuple[int, ...] = (1,)) -> Tensor:
    default = next(f.default for f in dataclasses.fields(SamplingParams) if f.name == field)
    note = "" if default in ((), None) else f" [default: {str(default).lower()}]"
    description = field_descriptions(SamplingParams)[field] + note
    return Tensor(name or field, kind, description, shape, sampling=field)


TEXT_INPUT = Tensor("text_input", "STRING", "prompt, UTF-8; the only input that must be given")
STREAM = Tensor(
    "stream", "BOOL", "a response per piece of new text instead of one for all [default: false]"
)
RECTIFY_MODE = Tensor(
    "rectify_mode",
    "STRING",
    "fused, separate, verify, none or dense, for this request [default: the engine's]",
)
EXCLUDE_INPUT = Tensor(
    "exclude_input_in_output", "BOOL", "false puts the prompt before the text [default: true]"
)
RETURN_LOG_PROBS = Tensor("return_log_probs", "BOOL", "send the log_probs outputs [default: false]")
RETURN_INPUT_TOKENS = Tensor(
    "return_num_input_tokens", "BOOL", "send num_input_tokens [default: true]"
)
RETURN_OUTPUT_TOKENS = Tensor(
    "return_num_output_tokens", "BOOL", "send num_output_tokens [default: true]"
)

INPUTS = (
    TEXT_INPUT,
    STREAM,
    _sampling("INT32", "max_tokens"),
    _sampling("STRING", "stop", "stop_words", (-1,)),
    _sampling("INT32", "stop_token_ids", shape=(-1,)),
    _sampling("STRING", "bad", "bad_words", (-1,)),
    _sampling("INT32", "bad_token_ids", shape=(-1,)),
    _sampling("INT32", "end_id"),
    _sampling("BOOL", "ignore_eos"),
    _sampling("FP32", "temperature"),
    _sampling("INT32", "top_k"),
    _sampling("FP32", "top_p"),
    _sampling("FP32", "min_p"),
    _sampling("UINT64", "seed"),
    _sampling("FP32", "repetition_penalty"),
    _sampling("FP32", "presence_penalty"),
    _sampling("FP32", "frequency_penalty"),
    RECTIFY_MODE,
    EXCLUDE_INPUT,
    RETURN_LOG_PROBS,
    RETURN_INPUT_TOKENS,
    RETURN_OUTPUT_TOKENS,
)

TEXT_OUTPUT = Tensor("text_output", "STRING", "new text: all of it, or this piece of a stream")
NUM_INPUT_TOKENS = Tensor("num_input_tokens", "INT32", "tokens of the prompt")
NUM_OUTPUT_TOKENS = Tensor("num_output_tokens", "INT32", "tokens of this response's text")
FINISH_REASON = Tensor("finish_reason", "STRING", "stop or length; in the last response alone")
CUM_LOG_PROBS = Tensor("cum_log_probs", "FP32", "log probability of all tokens so far")
OUTPUT_LOG_PROBS = Tensor(
    "output_log_probs", "FP32", "log probability of each token of this response", (-1, -1)
)

OUTPUTS = (
    TEXT_OUTPUT,
    NUM_INPUT_TOKENS,
    NUM_OUTPUT_TOKENS,
    FINISH_REASON,
    CUM_LOG_PROBS,
    OUTPUT_LOG_PROBS,
)
