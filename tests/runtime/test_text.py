from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from trt_resa.runtime.text import TextStream


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token per byte, so that characters of several bytes arrive in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    result = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    return result


def stream(tokenizer: Tokenizer, text: str, *stops: str) -> tuple[list[str], str | None]:
    out = TextStream(tokenizer, stops)
    pieces = []
    for token in tokenizer.encode(text).ids:
        pieces.append(out.push(token))
        if out.stopped_by:
            break
    pieces.append(out.flush())
    return pieces, out.stopped_by


def test_pieces_are_whole_characters(tokenizer: Tokenizer) -> None:
    pieces, _ = stream(tokenizer, "né€😀!")
    assert "".join(pieces) == "né€😀!"
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_stop_string_is_cut_and_never_shown_in_part(tokenizer: Tokenizer) -> None:
    pieces, stopped = stream(tokenizer, "one STOP two", "STOP")
    assert "".join(pieces) == "one "
    assert stopped == "STOP"
    pieces, stopped = stream(tokenizer, "one STO two", "STOP")
    assert "".join(pieces) == "one STO two"
    assert stopped is None


def test_what_could_begin_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    out = TextStream(tokenizer, ["aab"])
    shown = [out.push(token) for token in tokenizer.encode("xaaab").ids]
    assert shown == ["x", "", "", "a", ""]
    assert out.stopped_by == "aab"


def test_the_earliest_stop_wins(tokenizer: Tokenizer) -> None:
    pieces, stopped = stream(tokenizer, "abcd", "cd", "bc")
    assert ("".join(pieces), stopped) == ("a", "bc")
