"""Tokenizer and rows of a batch: documents end to end, each row full."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from documents import FIRST_SEED, TEXT, WEIGHTS, Document, Documents, task_pieces
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trt_resa.runtime.quality.texts import machine_texts

END = "<|endoftext|>"
#: Shorter pieces of a row are filled with text.
_SHORTEST = 256


def train_tokenizer(vocab_size: int, documents: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the tasks and the texts; a token per digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def corpus() -> Iterator[str]:
        for number in range(documents):
            for task in WEIGHTS:
                if task != TEXT:
                    pieces = task_pieces(task, FIRST_SEED + number, 20, 0.5)
                    yield "".join(piece.text for piece in pieces)
        for text in machine_texts().values():
            yield text[:200_000]

    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False
    )


class Rows(torch.utils.data.IterableDataset):
    """Batches without end: ids int64 [batch, length + 1] and the Kind of each.

    Every worker draws from a random stream of its own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, length: int, batch: int, seed: int
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._end = tokenizer.eos_token_id
        self._length, self._batch, self._seed = length, batch, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self._seed} {self._length} {0 if worker is None else worker.id}")
        documents = Documents(lambda text: self._backend.encode(text).ids)
        while True:
            rows = [self._row(rng, documents) for _ in range(self._batch)]
            yield (
                torch.tensor([ids for ids, _ in rows]),
                torch.tensor([kinds for _, kinds in rows], dtype=torch.uint8),
            )

    def _row(self, rng: random.Random, documents: Documents) -> Document:
        """Half of the documents fill the row, the others are shorter, on a logarithmic scale."""
        ids, kinds = list[int](), list[int]()
        size = self._length + 1
        while (room := size - len(ids) - 1) >= _SHORTEST:
            if rng.random() < 0.5:
                room = int(_SHORTEST * (room / _SHORTEST) ** rng.random())
            more, their_kinds = documents.draw(rng, room)
            ids += [*more, self._end]
            kinds += [*their_kinds, their_kinds[-1]]
        more, their_kinds = documents.text(rng, size - len(ids))
        return ids + more, kinds + their_kinds
