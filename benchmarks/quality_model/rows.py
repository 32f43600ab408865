"""Tokenizer and rows of a batch: documents end to end, each row full."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import torch
from documents import FIRST_SEED, TASKS, Document, Documents, task_pieces
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trt_resa.runtime.quality.texts import machine_texts

END = "<|endoftext|>"
#: A shorter rest of a row is filled with text.
_SHORTEST = 400


def train_tokenizer(vocab_size: int, documents: int = 400) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the tasks and the texts; a token per digit, and per letter of names.

    So the words of the tasks become tokens, and what must be copied has one form only.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex("[A-Z](?=[A-Z])|(?<=[A-Z])[A-Z]"), "isolated"),
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
            for task in TASKS:
                pieces = task_pieces(task, FIRST_SEED + number, 20, 0.5)
                yield "".join(piece.text for piece in pieces)
        for text in machine_texts().values():
            yield text[:200_000]

    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False
    )


class Rows(torch.utils.data.IterableDataset):
    """Batches of ``tokens`` without end: ids int32 [batch, length + 1] and the Kind of each, uint8.

    ``mix``: how often each length is drawn. Every worker draws from a random stream of its own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, mix: Mapping[int, float], tokens: int, seed: int
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._end = tokenizer.eos_token_id
        self._mix, self._tokens, self._seed = mix, tokens, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self._seed} {self._mix} {0 if worker is None else worker.id}")
        documents = Documents(lambda text: self._backend.encode(text).ids)
        while True:
            length = rng.choices(list(self._mix), list(self._mix.values()))[0]
            count = max(1, self._tokens // length)
            rows = [self._row(rng, documents, length + 1) for _ in range(count)]
            yield (
                torch.tensor([ids for ids, _ in rows], dtype=torch.int32),
                torch.tensor([kinds for _, kinds in rows], dtype=torch.uint8),
            )

    def _row(self, rng: random.Random, documents: Documents, size: int) -> Document:
        """Half of the documents fill the row, the others are shorter, on a logarithmic scale.

        So there is a document of every length: a model that has learnt chains of 1,000 and of
        8,000 tokens alone gets those between wrong.
        """
        ids, kinds = list[int](), list[int]()
        while (room := size - len(ids) - 1) >= _SHORTEST:
            if rng.random() < 0.5:
                room = int(_SHORTEST * (room / _SHORTEST) ** rng.random())
            more, their_kinds = documents.draw(rng, room)
            ids += [*more, self._end]
            kinds += [*their_kinds, their_kinds[-1]]
        more, their_kinds = documents.text(rng, size - len(ids))
        return ids + more, kinds + their_kinds
