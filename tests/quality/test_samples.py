"""The tasks' own answers, worked out again from their texts by other means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.checkpoints import byte_tokenizer
from trt_resa.errors import ConfigError
from trt_resa.runtime.quality.chains import arithmetic, lists
from trt_resa.runtime.quality.prompt_file import UserPrompt, read_prompts
from trt_resa.runtime.quality.retrieval import RETRIEVAL_TASKS, retrieval, retrieval_questions
from trt_resa.runtime.quality.scoring import found_share, score_chain
from trt_resa.runtime.quality.tasks import PromptMaker
from trt_resa.runtime.quality.texts import machine_texts, read_texts
from trt_resa.runtime.tokenizer import TextTokenizer


@pytest.mark.parametrize(
    ("task", "keys", "values"), [("single", 1, 1), ("multi_key", 16, 1), ("multi_value", 1, 4)]
)
@pytest.mark.parametrize("seed", range(3))
def test_needles_are_in_the_text(task: str, keys: int, values: int, seed: int) -> None:
    questions = retrieval_questions(task, seed, 60, 0.5)
    assert len(questions) == keys
    for sample in questions:
        key = re.search(r"(\S+) mentioned in the provided text\?$", sample.body)
        assert key
        text = sample.body.rsplit("\n", 1)[0]
        found = re.findall(rf"magic numbers for {key[1]} is: (\d+)\.", text)
        assert found == list(sample.expected)
        assert len(found) == values
        assert key[1] in sample.prefix
        assert found_share(sample.expected, sample.answer) == 1


@pytest.mark.parametrize("seed", range(5))
def test_variables_lead_back_to_the_number(seed: int) -> None:
    sample = retrieval("variable_tracking", seed, 40, 0.25)
    known: dict[str, str] = {}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", sample.body):
        # A variable is handed on only after it got its value.
        known[name] = known.get(source, source)
    assert len(known) == 10
    number = re.search(r"the value (\d+) in the text", sample.body)
    assert number
    reached = {name for name, value in known.items() if value == number[1]}
    assert reached == set(sample.expected)


@pytest.mark.parametrize("task", RETRIEVAL_TASKS)
def test_depth_and_seed(task: str) -> None:
    def place(depth: float) -> float:
        sample = retrieval(task, 3, 100, depth)
        return sample.body.index(sample.expected[0]) / len(sample.body)

    if task != "multi_value":  # four needles: the asked depth is that of one of them
        assert place(0.0) < 0.2 < place(0.5) < 0.8
    assert retrieval(task, 3, 100, 0.5) == retrieval(task, 3, 100, 0.5)
    assert retrieval(task, 4, 100, 0.5).expected != retrieval(task, 3, 100, 0.5).expected
    # The needles stay the same when hay is added, which `fitting` relies on.
    assert retrieval(task, 3, 200, 0.5).expected == retrieval(task, 3, 100, 0.5).expected


@pytest.mark.parametrize("seed", range(4))
def test_arithmetic_is_right(seed: int) -> None:
    sample = arithmetic(seed, 50)
    start = re.search(r"number (\d\d)", sample.body)
    assert start
    value, lines = int(start[1]), []
    for number, order, operand in re.findall(r"^Step (\d+): (\w+) (\d)$", sample.body, re.M):
        signed = int(operand) if order == "add" else -int(operand)
        result = (value + signed) % 100
        lines.append(f"Step {number}: {value:02d} {'+' if signed > 0 else '-'} {operand} = "
                     f"{result:02d}")  # fmt: skip
        value = result
    assert len(lines) == 50
    assert score_chain(lines, sample.prefix + sample.answer).exact


@pytest.mark.parametrize("seed", range(4))
def test_lists_are_right(seed: int) -> None:
    sample = lists(seed, 30)
    start = re.search(r"Start with the list: ([\w ]+)\.", sample.body)
    assert start
    words, lines = start[1].split(), []
    for number, order in re.findall(r"^Step (\d+): ([a-z ]+)$", sample.body, re.M):
        match order.split():
            case ["move", "the", "first", *_]:
                words.append(words.pop(0))
            case ["move", "the", "last", *_]:
                words.insert(0, words.pop())
            case ["swap", "the", "first", *_]:
                words[0], words[1] = words[1], words[0]
            case ["swap", "the", "last", *_]:
                words[-1], words[-2] = words[-2], words[-1]
            case _:
                words.reverse()
        lines.append(f"Step {number}: {' '.join(words)}")
    assert len(lines) == 30
    assert score_chain(lines, sample.prefix + sample.answer).exact


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> PromptMaker:
    directory = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(directory)
    return PromptMaker(TextTokenizer.load(directory), chat=True)


@pytest.mark.parametrize("task", RETRIEVAL_TASKS)
def test_prompts_are_as_long_as_asked(maker: PromptMaker, task: str) -> None:
    question = maker.retrieval(task, 0, 3000, 0.5)
    used = len(question.prompt) + len(maker.ids(question.sample.answer))
    assert 3000 - 120 < used <= 3000
    assert question.params.max_tokens > len(maker.ids(question.sample.answer))


def test_chains_are_as_long_as_asked(maker: PromptMaker) -> None:
    question = maker.chain("arithmetic", 0, 1000, 0)
    assert 1000 - 25 < len(maker.ids(question.sample.answer)) <= 1000
    assert question.params.stop == (f"\nStep {len(question.sample.expected) + 1}:",)


def test_a_chain_behind_a_text_is_the_same_chain(maker: PromptMaker) -> None:
    alone, behind = (maker.chain("lists", 3, 300, tokens) for tokens in (0, 2000))
    assert 2000 - 120 < len(behind.prompt) - len(alone.prompt) <= 2000
    assert behind.sample.body.endswith(f".\n\n{alone.sample.body}")
    assert behind.sample.expected == alone.sample.expected


def test_the_chat_template_is_around_the_body(maker: PromptMaker) -> None:
    text = maker.prompt("body", "prefix")
    assert text == "<|im_start|>user\nbody<|im_end|>\n<|im_start|>assistant\nprefix"


def test_a_users_prompt_is_left_as_it_is(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    plain = PromptMaker(TextTokenizer.load(tmp_path), chat=False)
    assert plain.prompt("as it is") == "as it is"
    assert plain.prompt("question", "answer") == "question\nanswer"


def test_too_short_a_length_is_refused(maker: PromptMaker) -> None:
    with pytest.raises(ConfigError, match=r"task multi_key takes at least \d+ tokens and 100"):
        maker.retrieval("multi_key", 0, 100, 0.5)


def test_machine_texts_are_long() -> None:
    texts = machine_texts()
    assert set(texts) == {"documentation", "source", "licence"}
    assert all(len(text) > 20_000 for text in texts.values())
    with pytest.raises(ConfigError, match="cannot be read"):
        read_texts([Path("/does/not/exist")])


def test_prompt_files(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "id": 7}\n\n{"prompt": "b", "answers": ["x", "y"]}\n')
    assert read_prompts(file) == [UserPrompt("a"), UserPrompt("b", ("x", "y"))]
    for content, message in (
        ("", "holds no prompt"),
        ("{", "line 1 is not JSON"),
        ('{"prompt": "a"}\n{"text": "b"}', 'line 2 must be an object with a text "prompt"'),
        ('["a"]', "line 1 must be an object"),
        ('{"prompt": "a", "answers": "x"}', '"answers" must be a list'),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_prompts(file)
