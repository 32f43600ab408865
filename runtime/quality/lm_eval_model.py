"""The tasks of lm-evaluation-harness in any mode: ``lm_eval.simple_evaluate(model=ResaLM(...))``.

Needs ``pip install 'trt-resa[lm-eval]'``. Answers are generated, and given continuations scored, on
the path of a request: the first token from the prompt's dense pass, the next from sparse steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from trt_resa.errors import RequestError
from trt_resa.runtime.quality.forcing import ForcedText, ForcingLLM
from trt_resa.sampling_params import SamplingParams

#: Tokens of an answer where a task does not say.
_NEW_TOKENS = 256


class ResaLM(TemplateLM):
    """A model of lm-eval over an engine directory; ``options`` are those of ``LLM``."""

    def __init__(self, model: str | Path, **options: Any) -> None:
        super().__init__()
        self._llm = ForcingLLM(model, **options)
        if self._llm.tokenizer is None:
            raise RequestError("lm-eval's tasks are texts; the engine directory has no tokenizer")
        self._tokenizer = self._llm.tokenizer

    def shutdown(self) -> None:
        self._llm.shutdown()

    @property
    def eot_token_id(self) -> int:
        return self._llm.model_config.eos_token_ids[0]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        special = add_special_tokens is not False
        return self._tokenizer.backend.encode(string, add_special_tokens=special).ids

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts, params = [], []
        for context, options in (request.args for request in requests):
            until = options.get("until") or []
            stop = [until] if isinstance(until, str) else until
            new = int(options.get("max_gen_toks", _NEW_TOKENS))
            sampled = options.get("do_sample", options.get("temperature", 0) > 0)
            room = min(self._llm.limits.max_input_len, self._llm.limits.max_seq_len - new)
            prompts.append(self.tok_encode(context)[-room:])
            params.append(
                SamplingParams(
                    max_tokens=new,
                    stop=tuple(stop),
                    temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
                    top_p=float(options.get("top_p", 1.0)) if sampled else 1.0,
                )
            )
        return [request.outputs[0].text for request in self._llm.generate(prompts, params)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        longest = min(self._llm.limits.max_input_len, self._llm.limits.max_seq_len - 1)
        sums = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.eot_token_id, max_seq_len=longest, context_len=1
            )
            pairs = [(("", ""), *make_disjoint_window(window)) for window in windows]
            sums.append(sum(found for found, _ in self._loglikelihood_tokens(pairs)))
        return sums

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Per (texts, context, continuation): log likelihood, and whether it is greedy."""
        texts = [ForcedText([*context, *more], len(context)) for _, context, more in requests]
        scores = [_Score(text.forced) for text in texts]
        self._llm.force(texts, [score.observe for score in scores])
        return [(sum(score.found), all(score.likeliest)) for score in scores]


class _Score:
    """Per token its log likelihood, and whether it is the likeliest; the last to come counts."""

    def __init__(self, forced: Sequence[int]) -> None:
        self._forced = forced
        self.found = [0.0] * len(forced)
        self.likeliest = [False] * len(forced)

    def observe(self, index: int, position: int, logits: torch.Tensor) -> None:
        token = self._forced[index]
        self.found[index] = float(torch.log_softmax(logits, dim=-1)[token])
        self.likeliest[index] = int(logits.argmax()) == token
