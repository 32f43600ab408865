from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from trt_resa.blocks import attended_blocks, num_blocks, num_selected
from trt_resa.config import SparseAttentionConfig


@given(st.integers(1, 1 << 20), st.sampled_from([16, 32, 64]))
def test_blocks_hold_all_tokens_and_none_is_empty(tokens: int, size: int) -> None:
    count = num_blocks(tokens, size)
    assert (count - 1) * size < tokens <= count * size


@given(
    st.integers(1, 65536),
    st.floats(0, 1, exclude_min=True, allow_subnormal=False),
    st.integers(1, 64),
)
def test_selection_size(blocks: int, ratio: float, least: int) -> None:
    count = num_selected(blocks, ratio, least)
    assert 1 <= count <= blocks
    assert count >= min(blocks, least)
    # At least the ratio, up to the rounding of one product in double precision.
    assert count >= min(blocks, Fraction(ratio) * blocks) * (1 - Fraction(1, 1 << 50))
    assert count <= max(min(blocks, least), Fraction(ratio) * blocks + 1)


def test_selection_size_by_hand() -> None:
    assert [num_selected(n, 0.1, 16) for n in (1, 15, 16, 17, 160, 161, 16384)] == [
        1, 15, 16, 16, 16, 17, 1639,
    ]  # fmt: skip
    assert num_selected(10, 1.0, 1) == 10


def test_short_sequences_attend_to_everything() -> None:
    config = SparseAttentionConfig(dense_below=1000, keep_ratio=0.1, min_blocks=4)
    assert attended_blocks(1000, config) == 63
    assert attended_blocks(1001, config) == 7
