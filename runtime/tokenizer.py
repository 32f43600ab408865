"""The tokenizer of an engine directory."""

from __future__ import annotations

import functools
from pathlib import Path

from tokenizers import Tokenizer

from trt_resa.errors import EngineError, RequestError


class TextTokenizer:
    """Text to token ids, chats to text. ``backend`` decodes."""

    def __init__(self, directory: Path, backend: Tokenizer) -> None:
        self.backend = backend
        self._directory = directory

    @functools.cached_property
    def longest_token_bytes(self) -> int:
        """No token stands for more bytes of a text than this."""
        return max(len(token.encode()) for token in self.backend.get_vocab())

    @classmethod
    def load(cls, directory: Path) -> TextTokenizer | None:
        """None when the directory holds no tokenizer: token ids only."""
        file = directory / "tokenizer.json"
        if not file.is_file():
            return None
        try:
            return cls(directory, Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises bare Exception
            raise EngineError(
                f"{file} is damaged ({error}); build the engine again with trt-resa build-engine"
            ) from None

    @functools.cached_property
    def _added(self) -> list[int]:
        """Special tokens that the tokenizer adds by itself: mostly the one that begins a text."""
        return list(self.backend.encode("").ids)

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the tokenizer adds by itself.

        A text that begins with them already, as many chat templates write it, gets them once.
        """
        ids, count = self.backend.encode(text).ids, len(self._added)
        return ids[count:] if ids[:count] == ids[count : 2 * count] == self._added else ids

    def chat(self, user_message: str) -> str:
        """``user_message`` as a chat ready for the model's answer, by the model's own template."""
        from transformers import AutoTokenizer  # slow to import, and only chats need it

        tokenizer = AutoTokenizer.from_pretrained(self._directory)
        if not tokenizer.chat_template:
            raise RequestError("this model has no chat template; leave out --chat")
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": user_message}],
                tokenize=False,
                add_generation_prompt=True,
            )
        )
