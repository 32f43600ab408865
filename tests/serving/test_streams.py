"""Generation through the real server: gRPC, generate, generate_stream, many at once, cancelling."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tritonclient.utils import InferenceServerException

from tests.serving.client import (
    Stream,
    events,
    generate,
    metrics,
    texts,
    wait_idle,
    wait_until,
)
from tests.serving.server import TritonServer

FRANCE = "The capital of France is"
PROMPTS = [
    FRANCE,
    "Water boils at",
    "Once upon a time there was",
    "def fibonacci(n):",
    "The three primary colours are",
    "In 1969, the first man",
    "To bake bread you need",
    "The opposite of hot is",
]


def test_generate(server: TritonServer) -> None:
    answer = generate(server, text_input=FRANCE, max_tokens=12)
    assert answer["text_output"].startswith(" Paris")
    assert answer["finish_reason"] == "length"
    assert (answer["num_input_tokens"], answer["num_output_tokens"]) == (5, 12)
    assert "cum_log_probs" not in answer
    in_parameters = {"id": "42", "text_input": FRANCE, "parameters": {"max_tokens": 12}}
    assert generate(server, **in_parameters) == {"id": "42", **answer}


def test_every_way_gives_the_same_text(server: TritonServer) -> None:
    whole = generate(server, text_input=FRANCE, max_tokens=20)
    over_grpc = list(Stream(server, text_input=FRANCE, max_tokens=20))
    over_http = list(events(server, text_input=FRANCE, max_tokens=20))
    (in_one,) = Stream(server, text_input=FRANCE, max_tokens=20, stream=False)
    assert texts(over_grpc) == whole["text_output"]
    assert "".join(piece["text_output"] for piece in over_http) == whole["text_output"]
    assert in_one["text_output"][0].decode() == whole["text_output"]
    assert len(over_grpc) > 10
    assert len(over_http) > 10
    assert sum(piece["num_output_tokens"][0] for piece in over_grpc) == 20
    assert sum(piece["num_output_tokens"] for piece in over_http) == 20
    for pieces in (over_grpc, over_http):
        assert [piece for piece in pieces if "finish_reason" in piece] == [pieces[-1]]
    assert over_grpc[-1]["finish_reason"] == [b"length"]


def test_eight_at_once_say_what_each_says_alone(server: TritonServer) -> None:
    def run(prompt: str) -> str:
        return texts(list(Stream(server, text_input=prompt, max_tokens=16, ignore_eos=True)))

    alone = [run(prompt) for prompt in PROMPTS]
    wait_idle(server)
    before = metrics(server)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(run, PROMPTS))
    assert together == alone
    assert len(set(alone)) == len(PROMPTS)
    wait_idle(server)
    after = metrics(server)
    # Shared forwards: far fewer than 8 x 16.
    forwards = sum(after[n] - before[n] for n in ("sparse_steps_total", "dense_passes_total"))
    assert forwards < 70
    assert after["generated_tokens_total"] - before["generated_tokens_total"] == 8 * 16


def test_cancelling_a_stream_frees_its_blocks(server: TritonServer) -> None:
    wait_idle(server)
    before = metrics(server)["generated_tokens_total"]
    stream = Stream(server, text_input=FRANCE, max_tokens=900, ignore_eos=True)
    pieces = iter(stream)
    for _ in range(3):
        next(pieces)
    wait_until(lambda: metrics(server)["kv_blocks_used"] > 0)
    assert metrics(server)["requests_active"] == 1
    stream.cancel()
    wait_idle(server)
    assert metrics(server)["generated_tokens_total"] - before < 200
    assert generate(server, text_input=FRANCE, max_tokens=3)["text_output"].startswith(" Paris")


def test_a_client_of_generate_that_goes_ends_its_request(server: TritonServer) -> None:
    wait_idle(server)
    before = metrics(server)["generated_tokens_total"]
    pieces = events(server, text_input=FRANCE, max_tokens=900, ignore_eos=True)
    next(pieces)
    pieces.close()
    wait_idle(server)
    assert metrics(server)["generated_tokens_total"] - before < 200


def test_stop_words_and_bad_words(server: TritonServer) -> None:
    free = generate(server, text_input=FRANCE, max_tokens=16)["text_output"]
    assert "Paris" in free
    stopped = generate(server, text_input=FRANCE, max_tokens=16, stop_words=["zzz", "answer"])
    assert stopped["text_output"] == free[: free.index("answer")]
    assert stopped["finish_reason"] == "stop"
    streamed = list(Stream(server, text_input=FRANCE, max_tokens=16, stop_words=["zzz", "answer"]))
    assert texts(streamed) == stopped["text_output"]
    assert streamed[-1]["finish_reason"] == [b"stop"]
    other = generate(server, text_input=FRANCE, max_tokens=16, bad_words=["Paris"])
    assert "Paris" not in other["text_output"]


def test_seeds(server: TritonServer) -> None:
    def sample(seed: int) -> str:
        sampling = {"temperature": 1.2, "top_p": 0.95, "seed": seed}
        return str(generate(server, text_input=FRANCE, max_tokens=16, **sampling)["text_output"])

    largest = 2**64 - 1
    assert sample(1) == sample(1)
    assert sample(largest) == sample(largest)
    assert len({sample(1), sample(2), sample(largest)}) > 1


def test_log_probs_prompt_and_counts_as_asked(server: TritonServer) -> None:
    whole = generate(server, text_input=FRANCE, max_tokens=6, return_log_probs=True)
    assert len(whole["output_log_probs"]) == 6
    assert sum(whole["output_log_probs"]) == pytest.approx(whole["cum_log_probs"], abs=1e-4)
    streamed = list(Stream(server, text_input=FRANCE, max_tokens=6, return_log_probs=True))
    each = [value for piece in streamed for value in piece["output_log_probs"]]
    assert each == pytest.approx(whole["output_log_probs"], abs=1e-4)
    assert streamed[-1]["cum_log_probs"][0] == pytest.approx(whole["cum_log_probs"], abs=1e-4)

    echoed = generate(server, text_input=FRANCE, max_tokens=6, exclude_input_in_output=False)
    assert echoed["text_output"] == FRANCE + whole["text_output"]
    first, *rest = Stream(server, text_input=FRANCE, max_tokens=6, exclude_input_in_output=False)
    assert texts([first, *rest]) == echoed["text_output"]

    bare = generate(
        server,
        text_input=FRANCE,
        max_tokens=2,
        return_num_input_tokens=False,
        return_num_output_tokens=False,
    )
    assert not {"num_input_tokens", "num_output_tokens"} & set(bare)


@pytest.mark.parametrize("mode", ["dense", "verify"])
def test_rectify_mode_of_one_request(server: TritonServer, mode: str) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 12
    wait_idle(server)
    before = metrics(server)
    answer = generate(server, text_input=prompt, max_tokens=24, rectify_mode=mode)
    assert answer["num_output_tokens"] == 24
    wait_idle(server)
    after = metrics(server)
    change = {name: after[name] - before.get(name, 0) for name in after}
    if mode == "dense":
        assert change["sparse_steps_total"] == 0
    else:
        assert change["sparse_steps_total"] > 0
        assert 0 < change["drafts_accepted_total"] <= change["drafts_proposed_total"]
        assert change["blocks_attended_total"] > 0


def test_time_per_token(server: TritonServer) -> None:
    wait_idle(server)
    before = metrics(server)
    generate(server, text_input=FRANCE, max_tokens=11)
    wait_until(lambda: metrics(server)["decode_tokens_total"] - before["decode_tokens_total"] == 10)
    after = metrics(server)
    assert after["first_tokens_total"] - before["first_tokens_total"] == 1
    assert 0 < after["first_token_seconds_total"] - before["first_token_seconds_total"] < 10
    assert 0 < after["decode_seconds_total"] - before["decode_seconds_total"] < 10
    assert after["kv_blocks_total"] == 8192 / 16


def test_an_error_leaves_other_requests_alone(server: TritonServer) -> None:
    running = iter(Stream(server, text_input=FRANCE, max_tokens=30, ignore_eos=True))
    next(running)
    with pytest.raises(InferenceServerException, match="a stop string is empty"):
        list(Stream(server, text_input=FRANCE, stop_words=[""]))
    assert sum(piece["num_output_tokens"][0] for piece in running) == 29
