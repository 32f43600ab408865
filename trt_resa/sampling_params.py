"""How the next token is chosen and when a sequence ends; one frozen object per request."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from trt_resa.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingParams:
    """Sampling and stopping, with the names of TensorRT-LLM.

    ``temperature`` 0 (the default) is greedy. ``stop`` strings are cut from the text. A ``bad``
    string is kept from being said as the tokens that the tokenizer writes it with at the beginning
    of a text and after a space; other tokens may still spell it. ``end_id`` replaces the model's
    end-of-sequence ids. ``logprobs`` k returns the k most likely tokens of each position besides
    the chosen one.
    """

    max_tokens: Annotated[int, Field(ge=1, description="new tokens at most")] = 32
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False, description="0 is greedy")] = 0.0
    top_k: Annotated[int, Field(ge=0, description="most likely tokens kept; 0 keeps all")] = 0
    top_p: Annotated[float, Field(gt=0, le=1, description="nucleus: probability mass kept")] = 1.0
    min_p: Annotated[
        float, Field(ge=0, le=1, description="drops tokens below this share of the likeliest")
    ] = 0.0
    seed: Annotated[
        int, Field(ge=0, lt=1 << 64, description="seed of the request's random stream")
    ] = 0
    stop: Annotated[tuple[str, ...], Field(description="strings that end the text")] = ()
    stop_token_ids: Annotated[tuple[int, ...], Field(description="tokens that end it")] = ()
    bad: Annotated[tuple[str, ...], Field(description="strings that are not generated")] = ()
    bad_token_ids: Annotated[tuple[int, ...], Field(description="tokens that are not")] = ()
    end_id: Annotated[int | None, Field(description="replaces the end-of-sequence ids")] = None
    repetition_penalty: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="1 is none")
    ] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2, description="0 is none")] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, description="0 is none")] = 0.0
    ignore_eos: Annotated[bool, Field(description="go on after an end-of-sequence token")] = False
    logprobs: Annotated[int | None, Field(ge=0, le=20, description="likeliest to report")] = None
    n: Annotated[int, Field(ge=1, description="completions per prompt")] = 1

    @model_validator(mode="before")
    @classmethod
    def _one_string(cls, values: object) -> object:
        """Accept ``stop="text"`` for ``stop=("text",)``, and so ``bad``, as TensorRT-LLM does."""
        given = getattr(values, "kwargs", values)
        if isinstance(given, dict):
            for key in ("stop", "bad"):
                if isinstance(given.get(key), str):
                    given[key] = (given[key],)
        return values

    @model_validator(mode="after")
    def _strings_are_not_empty(self) -> Self:
        for kind, texts in (("stop", self.stop), ("bad", self.bad)):
            if "" in texts:
                raise ValueError(f"a {kind} string is empty; give at least one character")
        return self

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0
