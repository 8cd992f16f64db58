"""A conversation with one engine: what the model is shown, and what stays after an answer."""

import json
from collections.abc import Callable, Sequence

import pytest
from tiny import byte_tokenizer, random_model, scripted_model

from raychat.chat.template import render_prompt
from raychat.engine.engine import Engine
from raychat.engine.sampling import SamplingParams
from raychat.serve.conversation import Conversation
from raychat.tokenizer import Tokenizer

TOKENIZER = byte_tokenizer()
SPECIAL = TOKENIZER.special
CALL = [SPECIAL["<|python_start|>"], *b"6*7", SPECIAL["<|python_end|>"]]
REST = [SPECIAL["<|output_end|>"], *"é!".encode(), SPECIAL["<|assistant_end|>"]]
GREEDY = SamplingParams(temperature=0, max_new_tokens=50)


class Recording(Engine):
    """An engine that keeps the prompts it was given."""

    prompts: tuple[list[int], ...] = ()

    def add(self, prompt: Sequence[int], params: SamplingParams = GREEDY) -> int:
        self.prompts += (list(prompt),)
        return super().add(prompt, params)


def calculating(sequence_len: int = 128) -> Recording:
    """An engine whose model answers everything with a call of the calculator and `é!`."""
    scripts = [[SPECIAL["<|assistant_start|>"], *CALL], REST]
    return Recording(scripted_model(scripts, sequence_len), TOKENIZER, max_sequences=1)


def saying(text: bytes) -> Recording:
    """An engine whose model answers everything with this text."""
    script = [SPECIAL["<|assistant_start|>"], *text, SPECIAL["<|assistant_end|>"]]
    return Recording(scripted_model([script]), TOKENIZER, max_sequences=1)


def test_second_question_continues_the_tokens_of_the_first_answer() -> None:
    engine = calculating()
    talk = Conversation(engine, GREEDY)
    assert "".join(talk.ask("6 times 7?")) == "<<6*7=42>>é!"
    assert "".join(talk.ask("Really?")) == "<<6*7=42>>é!"
    answer = [*CALL, SPECIAL["<|output_start|>"], *b"42", *REST]
    question = [SPECIAL["<|user_start|>"], *b"Really?", SPECIAL["<|user_end|>"], SPECIAL["<|assistant_start|>"]]
    assert engine.prompts[1] == engine.prompts[0] + answer + question


def test_text_that_looks_like_a_call_stays_text() -> None:
    tokenizer = Tokenizer([*TOKENIZER.tokens, b"<<1+1=2>>"])
    script = [tokenizer.special["<|assistant_start|>"], 256, tokenizer.special["<|assistant_end|>"]]
    model = scripted_model([script], vocab_size=tokenizer.vocab_size)
    talk = Conversation(Engine(model, tokenizer, max_sequences=1), GREEDY)
    assert "".join(talk.ask("Hi")) == "<<1+1=2>>"
    assert talk.turns[-1]["content"] == "<<1+1=2>>"


def test_system_prompt_can_change_between_two_answers() -> None:
    engine = saying(b"ok")
    talk = Conversation(engine, GREEDY, system="Be kind.")
    list(talk.ask("Hi"))
    talk.system = ""
    list(talk.ask("Ho"))
    user = {"role": "user", "content": "Hi"}
    assert engine.prompts[0] == render_prompt(TOKENIZER, [{"role": "system", "content": "Be kind."}, user])
    ok = {"role": "assistant", "content": "ok"}
    assert engine.prompts[1] == render_prompt(TOKENIZER, [user, ok, {"role": "user", "content": "Ho"}])


def test_stopped_answer_stays_as_far_as_it_went() -> None:
    engine = saying(b"abcdef")
    talk = Conversation(engine, GREEDY)
    answer = talk.ask("Hi")
    assert next(answer) + next(answer) == "ab"
    answer.close()
    assert talk.turns == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "ab"},
    ]
    assert not engine.busy
    assert talk.stats is not None
    assert talk.stats.finish is None


def test_regenerated_answer_takes_the_place_of_the_old_one() -> None:
    talk = Conversation(saying(b"old"), GREEDY)
    list(talk.ask("Hi"))
    talk.engine = saying(b"new")
    list(talk.regenerate())
    assert [turn["content"] for turn in talk.turns] == ["Hi", "new"]


def test_old_answer_stays_when_there_is_no_new_one() -> None:
    talk = Conversation(saying(b"old"), GREEDY)
    list(talk.ask("Hi"))
    before = list(talk.turns)
    answer = talk.regenerate()
    answer.close()  # before the first step
    talk.engine = saying(b"")
    assert "".join(talk.regenerate()) == ""
    assert talk.turns == before


def test_undo_takes_back_one_question_at_a_time() -> None:
    talk = Conversation(saying(b"ok"), GREEDY)
    list(talk.ask("one"))
    list(talk.ask("two"))
    assert talk.undo() == "two"
    assert [turn["content"] for turn in talk.turns[::2]] == ["one"]
    assert talk.undo() == "one"
    assert talk.turns == []


@pytest.mark.parametrize("needs_a_turn", [Conversation.undo, Conversation.regenerate, lambda talk: talk.as_json("m")])
def test_empty_conversation_says_so(needs_a_turn: Callable[[Conversation], object]) -> None:
    with pytest.raises(ValueError, match="ask something first"):
        needs_a_turn(Conversation(saying(b"ok"), GREEDY))


def test_question_that_does_not_fit_leaves_the_conversation_as_it_was() -> None:
    talk = Conversation(calculating(sequence_len=100), GREEDY)
    list(talk.ask("x" * 40))
    before = list(talk.turns)
    with pytest.raises(ValueError, match="expected 1 to 100"):
        list(talk.ask("y" * 60))
    assert talk.turns == before


def test_stats_count_what_the_engine_did() -> None:
    talk = Conversation(calculating(), GREEDY)
    list(talk.ask("6 times 7?"))
    stats = talk.stats
    assert stats is not None
    assert stats.prompt_tokens == len(render_prompt(TOKENIZER, [{"role": "user", "content": "6 times 7?"}]))
    assert stats.tokens == talk.engine.stats().generated_tokens == len(CALL) + len(b"42") + 1 + len(REST)
    assert stats.finish == "stop"
    assert stats.tokens_per_s is not None


def test_limit_of_tokens_is_the_reason_for_the_end() -> None:
    talk = Conversation(Engine(random_model(), TOKENIZER, max_sequences=1), SamplingParams(max_new_tokens=1, seed=0))
    list(talk.ask("Hi"))
    assert talk.stats is not None
    assert (talk.stats.tokens, talk.stats.finish, talk.stats.tokens_per_s) == (1, "length", None)


def test_json_has_the_whole_conversation() -> None:
    talk = Conversation(saying("é".encode()), GREEDY, system="Be kind.")
    list(talk.ask("Hi"))
    assert json.loads(talk.as_json("r-sft")) == {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "é"},
        ],
        "model": "r-sft",
    }
