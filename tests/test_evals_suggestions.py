"""Questions to suggest: those that the model answers as held-out conversations do."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import byte_tokenizer, scripted_model

from raychat.engine.engine import Engine
from raychat.engine.request import Completion
from raychat.evals.evaluation import LoadedModel
from raychat.evals.suggestions import NUM_SUGGESTED, suggestions, varied

TOKENIZER = byte_tokenizer()
SPECIAL = TOKENIZER.special
FROM = SPECIAL["<|assistant_start|>"]


def suggested(root: Path, talks: list[list[str]]) -> list[str]:
    """Return what is suggested for a model that answers "abc" to everything."""
    if talks:
        (root / "chat").mkdir()
        roles = ("user", "assistant", "user", "assistant")
        rows = [[{"role": r, "content": c} for r, c in zip(roles, talk, strict=False)] for talk in talks]
        (root / "chat" / "test.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    loaded = LoadedModel(scripted_model([[FROM, *b"abc", SPECIAL["<|assistant_end|>"]]]), TOKENIZER)
    evaluation = suggestions(str(root), ("Who are you?",))
    found: list[str] = evaluation.finish([call(loaded) for call in evaluation.calls])["suggestions"]
    return found


def test_questions_that_are_answered_as_in_the_conversations(tmp_path: Path) -> None:
    talks = [["Say ab.", "ab"], ["Say abc.", "abc"], ["Say abcd.", "abcd"], ["Now abc!", "abc", "Bye.", "Bye."]]
    assert suggested(tmp_path, talks) == ["Say abc.", "Now abc!"]


def test_the_surest_answers_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter((-0.5, -0.1, -0.3))
    generate = Engine.generate

    def scored(self: Engine, *args: Any) -> list[Completion]:
        return [done._replace(logprobs=[next(scores), 0.0]) for done in generate(self, *args)]

    monkeypatch.setattr(Engine, "generate", scored)
    talks = [["Say abc.", "abc"], ["Now abc!", "abc"], ["And abc?", "abc"]]
    assert suggested(tmp_path, talks) == ["Now abc!", "And abc?", "Say abc."]


def test_other_questions_where_none_is(tmp_path: Path) -> None:
    assert suggested(tmp_path, [["Say ab.", "ab"]]) == ["Who are you?"]


def test_other_questions_where_there_are_no_conversations(tmp_path: Path) -> None:
    assert suggested(tmp_path, []) == ["Who are you?"]


def test_few_of_different_first_words() -> None:
    questions = [f"What is {i}?" for i in range(9)] + ["Who is Mia?", "Hello"]
    assert varied(questions) == ["What is 0?", "Who is Mia?", "Hello", "What is 1?"]
    assert len(varied(questions)) == NUM_SUGGESTED
