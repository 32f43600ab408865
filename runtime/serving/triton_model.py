"""``TritonPythonModel``: what Triton's Python backend calls.

Imported by the ``model.py`` of the model repository, inside Triton's stub process; the module
``triton_python_backend_utils`` exists only there. Triton imports the model a second time to ask for
its configuration, so what is slow to import waits for ``initialize``.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from trt_resa.errors import TrtResaError

if TYPE_CHECKING:
    from trt_resa.runtime.outputs import RequestOutput
    from trt_resa.runtime.serving.requests import TextRequest


class TritonPythonModel:
    """One model of a repository written by ``trt-resa triton-repo``."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine that config.pbtxt names; an error makes the model unavailable."""
        from trt_resa.runtime.llm import LLM
        from trt_resa.runtime.serving.parameters import llm_arguments
        from trt_resa.runtime.serving.requests import RequestLimits
        from trt_resa.runtime.serving.service import Service
        from trt_resa.runtime.serving.triton_metrics import TritonMetrics

        config = json.loads(args["model_config"])
        strings = {name: value["string_value"] for name, value in config["parameters"].items()}
        version_dir = Path(args["model_repository"]) / args["model_version"]
        llm = LLM(**llm_arguments(strings, version_dir))
        if llm.tokenizer is None:
            raise pb_utils.TritonModelException(
                f"{strings['engine_dir']} holds no tokenizer, and this model takes text; build the "
                "engine from a checkpoint with a tokenizer"
            )
        self._limits = RequestLimits(
            max_seq_len=llm.limits.max_seq_len,
            max_prompt_bytes=llm.limits.max_seq_len * llm.tokenizer.longest_token_bytes,
        )
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._service = Service(llm, TritonMetrics(pb_utils, labels), pb_utils.Logger.log_error)
        # Else a full collection looks at all that is loaded by now, for a tenth of a second.
        gc.collect()
        gc.freeze()

    def execute(self, requests: list[Any]) -> None:
        """Read the requests and return; their responses follow from the service's thread."""
        for request in requests:
            self._submit(request)

    def finalize(self) -> None:
        """Finish the requests under way and free the model."""
        self._service.close()

    def _submit(self, request: Any) -> None:
        from trt_resa.runtime.serving import tensors
        from trt_resa.runtime.serving.requests import read_request

        sender = request.get_response_sender()
        try:
            given = {
                tensor.name: pb_utils.get_input_tensor_by_name(request, tensor.name)
                for tensor in tensors.INPUTS
            }
            text_request = read_request(
                {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None},
                json.loads(request.parameters()),
                self._limits,
            )
        except TrtResaError as error:
            _send_error(sender, str(error), pb_utils.TritonError.INVALID_ARG)
        else:
            self._service.submit(text_request, _TritonAnswer(text_request, sender))


class _TritonAnswer:
    """The responses of one request, through Triton's response sender."""

    def __init__(self, request: TextRequest, sender: Any) -> None:
        self._request, self._sender = request, sender

    def send(self, output: RequestOutput, first: bool) -> None:
        from trt_resa.runtime.serving.responses import response_tensors

        arrays = response_tensors(self._request, output, first)
        response = pb_utils.InferenceResponse(
            [pb_utils.Tensor(tensor.name, array) for tensor, array in arrays.items()]
        )
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if output.finished else 0
        self._sender.send(response, flags=final)

    def refuse(self, error: TrtResaError) -> None:
        _send_error(self._sender, str(error), pb_utils.TritonError.INVALID_ARG)

    def fail(self, error: BaseException) -> None:
        message = f"generation failed ({type(error).__name__}: {error}); see the server's log"
        _send_error(self._sender, message, pb_utils.TritonError.INTERNAL)

    def cancelled(self) -> None:
        _send_error(self._sender, "the request was cancelled", pb_utils.TritonError.CANCELLED)

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


def _send_error(sender: Any, message: str, code: Any) -> None:
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
