"""Forwards that run when their results are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trt_resa.contract import Phase, Step
from trt_resa.runtime.executors.deferred import ForwardQueue


class Model:
    """Logits are highest for the token after the row's own; notes the ids of every forward."""

    def __init__(self) -> None:
        self.ran: list[list[int]] = []
        self.broken = False
        self.queue = ForwardQueue(self.compute)

    def compute(self, step: Step) -> torch.Tensor:
        if self.broken:
            raise RuntimeError("broken")
        self.ran.append(step.input_ids.tolist())
        ids = torch.from_numpy(step.input_ids[step.logit_rows]).long()
        return torch.nn.functional.one_hot(ids + 1, 10).float()


def step(*ids: int, logit_rows: tuple[int, ...] | None = None) -> Step:
    count = len(ids)
    one = np.arange(count, dtype=np.int32)
    rows = one if logit_rows is None else np.array(logit_rows, dtype=np.int32)
    cu = np.arange(count + 1, dtype=np.int32)
    return Step(Phase.SPARSE, np.array(ids, dtype=np.int32), one, cu, one, one[:, None], rows)


def test_nothing_runs_before_it_is_read_and_then_in_order() -> None:
    model = Model()
    first = model.queue.submit(step(3, 4)).tokens()
    second = model.queue.submit(step(5)).tokens()
    assert model.ran == []
    assert second.get().tolist() == [6]
    assert model.ran == [[3, 4], [5]]
    assert first.get().tolist() == [4, 5]
    assert model.ran == [[3, 4], [5]]


def test_negative_ids_are_tokens_of_the_forward_before() -> None:
    model = Model()
    model.queue.submit(step(1, 5, 7, logit_rows=(2, 1)))
    forward = model.queue.submit(step(-1, 0, -2))
    assert forward.logits([2, 0]).get().argmax(-1).tolist() == [7, 9]
    assert model.ran[1] == [8, 0, 6]


def test_a_forward_without_logit_rows_runs_when_its_tokens_are_read() -> None:
    model = Model()
    assert model.queue.submit(step(1, 2, logit_rows=())).tokens().get().tolist() == []
    assert model.ran == [[1, 2]]


def test_results_are_asked_for_before_the_next_forward() -> None:
    model = Model()
    first = model.queue.submit(step(1))
    model.queue.submit(step(2))
    for ask in (first.tokens, first.logits):
        with pytest.raises(RuntimeError, match="before the next one only"):
            ask()


def test_a_dropped_forward_never_runs() -> None:
    model = Model()
    first = model.queue.submit(step(1))
    tokens = first.tokens()
    first.drop([0])
    assert model.queue.submit(step(2)).tokens().get().tolist() == [3]
    assert model.ran == [[2]]
    with pytest.raises(RuntimeError, match="failed or was dropped"):
        tokens.get()
    first.drop([0])


def test_dropped_sequences_are_left_out_and_the_others_keep_their_rows() -> None:
    model = Model()
    forward = model.queue.submit(step(1, 3, 5, 7, logit_rows=(3, 1, 2)))
    tokens, logits = forward.tokens(), forward.logits([0, 2])
    forward.drop([1])
    forward.drop([0])
    following = model.queue.submit(step(-1, -3)).tokens()
    assert tokens.get()[[0, 2]].tolist() == [8, 6]
    assert logits.get().argmax(-1).tolist() == [8, 6]
    assert following.get().tolist() == [9, 7]
    assert model.ran == [[5, 7], [8, 6]]
    forward.drop([2])
    assert tokens.get()[[0, 2]].tolist() == [8, 6]


def test_a_failure_is_that_of_its_forward_alone() -> None:
    model = Model()
    model.broken = True
    tokens = model.queue.submit(step(1)).tokens()
    with pytest.raises(RuntimeError, match="broken"):
        tokens.get()
    model.broken = False
    assert model.queue.submit(step(2)).tokens().get().tolist() == [3]
    with pytest.raises(RuntimeError, match="failed or was dropped"):
        tokens.get()
