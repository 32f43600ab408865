from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from trt_resa.runtime.tokenizer import TextTokenizer

BOS, A, B = 0, 1, 2


def tokenizer(*, adds_bos: bool) -> TextTokenizer:
    backend = Tokenizer(models.WordLevel({"<s>": BOS, "a": A, "b": B, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>"])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return TextTokenizer(Path(), backend)


@pytest.mark.parametrize(
    ("adds_bos", "text", "ids"),
    [
        (True, "a b", [BOS, A, B]),
        (True, "<s>a b", [BOS, A, B]),  # as a chat template writes it
        (True, "", [BOS]),
        (True, "<s>", [BOS]),
        (True, "a <s> b", [BOS, A, BOS, B]),
        (False, "a b", [A, B]),
        (False, "<s>a b", [BOS, A, B]),
        (False, "<s><s>a", [BOS, BOS, A]),
        (False, "", []),
    ],
)
def test_the_token_that_begins_a_text_comes_once(adds_bos: bool, text: str, ids: list[int]) -> None:
    assert tokenizer(adds_bos=adds_bos).encode(text) == ids
