from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chisquare

from tests.checkpoints import byte_tokenizer
from trt_resa.errors import RequestError
from trt_resa.runtime.sampling import Draft, Sampler, bad_words
from trt_resa.sampling_params import SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def probabilities(**changes: object) -> list[float]:
    params = SamplingParams(**{"temperature": 1.0, **changes})
    drawn = Sampler(params, [0]).draw(LOGITS, []).probabilities
    assert drawn is not None
    assert float(drawn.sum()) == pytest.approx(1, abs=1e-6)
    return drawn.tolist()


def test_greedy_takes_the_first_maximum() -> None:
    assert Sampler(SamplingParams(), [0]).draw(torch.tensor([0.0, 3.0, 3.0]), []).token == 1


def test_temperature() -> None:
    expected = torch.softmax(LOGITS / 0.5, -1).tolist()
    assert probabilities(temperature=0.5) == pytest.approx(expected)
    assert probabilities(temperature=1e-30)[0] == 1.0


def test_filters_keep_the_right_tokens() -> None:
    plain = probabilities()
    assert [p > 0 for p in probabilities(top_k=2)] == [True, True, False, False, False, False]
    assert probabilities(top_k=2)[0] == pytest.approx(plain[0] / (plain[0] + plain[1]))
    # 0.58 + 0.21 + 0.13: the third crosses 0.85 and is the last that stays.
    assert [p > 0 for p in probabilities(top_p=0.85)] == [True, True, True, False, False, False]
    assert [p > 0 for p in probabilities(top_p=1e-9)] == [True] + [False] * 5
    assert [p > 0 for p in probabilities(min_p=0.2)] == [True, True, True, False, False, False]
    assert probabilities(top_k=100) == pytest.approx(plain)


def test_penalties() -> None:
    def adjusted(prompt: list[int], output: list[int], **changes: float) -> list[float]:
        sampler = Sampler(SamplingParams(**changes), prompt)
        return (sampler._penalized(LOGITS, output) - LOGITS).tolist()

    # Repetition sees the prompt too, divides what is positive and multiplies what is negative.
    assert adjusted([0, 5], [3], repetition_penalty=2.0) == pytest.approx([-1, 0, 0, 0, 0, -3])
    assert adjusted([0], [1, 1], presence_penalty=0.5) == pytest.approx([0, -0.5, 0, 0, 0, 0])
    assert adjusted([0], [1, 1, 2], frequency_penalty=0.5) == pytest.approx([0, -1, -0.5, 0, 0, 0])


def test_bad_words_are_never_completed() -> None:
    def likeliest(prompt: list[int], output: list[int], bad: list[tuple[int, ...]]) -> int:
        return Sampler(SamplingParams(), prompt, bad=bad).draw(LOGITS, output).token

    assert likeliest([5], [], [(0,)]) == 1
    assert likeliest([5], [], [(0,), (1,)]) == 2
    # Several tokens: the last is forbidden only after the others, which may stand in the prompt.
    assert likeliest([5], [], [(3, 4, 0)]) == 0
    assert likeliest([5], [3, 4], [(3, 4, 0)]) == 1
    assert likeliest([5, 3], [4], [(3, 4, 0)]) == 1
    assert likeliest([3, 4], [], [(3, 4, 0)]) == 1
    assert likeliest([4, 3], [5], [(3, 4, 0)]) == 0
    everything = [(token,) for token in range(6)]
    assert likeliest([5], [], everything) == 0
    drawn = Sampler(SamplingParams(temperature=0.5), [5], bad=everything).draw(LOGITS, [])
    assert drawn.probabilities is not None
    assert drawn.probabilities.isfinite().all()


def test_sampling_never_draws_a_bad_word() -> None:
    sampler = Sampler(SamplingParams(temperature=2.0), [1], bad=[(0,), (1, 2)])
    output = [1]
    for _ in range(300):
        output.append(sampler.draw(LOGITS, output).token)
    pairs = set(itertools.pairwise(output))
    assert (1, 2) not in pairs
    assert (3, 2) in pairs
    assert 0 not in output


def test_verification_forbids_bad_words_with_the_drafts_as_context() -> None:
    rows = torch.tensor([[1.0, 0.9, 0.0], [1.0, 0.9, 0.0]])
    sampler = Sampler(SamplingParams(), [2], bad=[(0, 0)])
    assert sampler.verify([Draft(0, None)], rows, []) == (1, 1)
    assert sampler.verify([Draft(0, None)], rows, [0]) == (0, 1)


def test_bad_strings_are_forbidden_at_the_beginning_and_after_a_space() -> None:
    tokenizer = byte_tokenizer().backend_tokenizer

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text).ids)

    params = SamplingParams(bad="no", bad_token_ids=(7, 7))
    assert bad_words(params, tokenizer) == [(7,), ids("no"), ids(" no")]
    assert bad_words(SamplingParams(bad_token_ids=(7,)), None) == [(7,)]
    with pytest.raises(RequestError, match="bad strings need a tokenizer"):
        bad_words(params, None)
    with pytest.raises(ValidationError, match="a bad string is empty"):
        SamplingParams(bad=("x", ""))


def test_seeds_of_64_bits() -> None:
    largest = SamplingParams(temperature=1.0, seed=2**64 - 1)
    assert Sampler(largest, [0], index=1).draw(LOGITS, []) is not None
    with pytest.raises(ValidationError):
        SamplingParams(seed=2**64)


def test_a_seed_fixes_the_stream_and_completions_differ() -> None:
    def draws(seed: int, index: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), [0], index)
        return [sampler.draw(LOGITS, []).token for _ in range(50)]

    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(2, 0)
    assert draws(1, 0) != draws(1, 1)


def test_greedy_verification_stops_at_the_first_difference() -> None:
    rows = torch.eye(4)[[2, 1, 3]]
    sampler = Sampler(SamplingParams(), [0])
    assert sampler.verify([Draft(2, None), Draft(1, None)], rows, []) == (2, 3)
    assert sampler.verify([Draft(2, None), Draft(0, None)], rows, []) == (1, 1)
    assert sampler.verify([Draft(0, None), Draft(1, None)], rows, []) == (0, 2)
    assert sampler.verify([], rows[:1], []) == (0, 2)


def test_greedy_verification_applies_penalties_with_the_drafts_as_context() -> None:
    rows = torch.tensor([[1.0, 0.9, 0.0], [1.0, 0.9, 0.0], [1.0, 0.9, 0.0]])
    sampler = Sampler(SamplingParams(presence_penalty=0.5), [2])
    # After 0 is drafted, 0 is penalized and 1 follows; after both, 0 is likeliest again.
    assert sampler.verify([Draft(0, None), Draft(1, None)], rows, []) == (2, 0)


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.9}, {"top_k": 3, "temperature": 1.5}])
def test_sampled_verification_is_distributed_as_dense_sampling(changes: dict[str, float]) -> None:
    """The first token after verification, over many seeds, against the dense distribution."""
    draft_logits = torch.tensor([0.0, 2.0, 0.5, 0.2, 0.0, -1.0])
    dense = torch.stack((LOGITS, LOGITS.flip(0)))
    counts, seeds = torch.zeros(6), 4000
    accepted_drafts = 0
    for seed in range(seeds):
        params = SamplingParams(**{"temperature": 1.0, "seed": seed, **changes})
        sampler = Sampler(params, [0])
        draft = sampler.draw(draft_logits, [])
        accepted, token = sampler.verify([draft], dense, [])
        accepted_drafts += accepted
        counts[draft.token if accepted else token] += 1
    expected = torch.tensor(probabilities(**changes)) * seeds
    kept = expected > 0
    assert counts[~kept].sum() == 0
    assert 0 < accepted_drafts < seeds
    scale = counts.sum() / expected.sum()
    assert (
        chisquare(counts[kept].double(), (expected[kept] * scale).double(), sum_check=False).pvalue
        > 0.01
    )
