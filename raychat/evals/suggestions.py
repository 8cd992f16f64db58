"""First questions to suggest for a chat model: of held-out conversations, those that it answers as they do."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from raychat.chat import template
from raychat.engine.sampling import SamplingParams
from raychat.evals.chat import available, load
from raychat.evals.evaluation import Call, Evaluation, LoadedModel

NUM_TRIED = 64
NUM_SUGGESTED = 4
MAX_NEW_TOKENS = 128
TASK = "conversations"


def suggestions(root: str, otherwise: Sequence[str]) -> Evaluation:
    """Describe the choice of questions; the figure is `suggestions`.

    Args:
        root: of the tasks' data.
        otherwise: questions to suggest where there are no conversations, or none is answered as they are.
    """
    found = available((TASK,), root)
    calls = [Call("suggestions", partial(_answered, root=root), NUM_TRIED * MAX_NEW_TOKENS)] if found else []

    def finish(results: list[list[str]]) -> dict[str, Any]:
        answered = [question for result in results for question in result]
        return {"suggestions": varied(answered) or list(otherwise)[:NUM_SUGGESTED]}

    return Evaluation("suggestions", calls, finish)


def varied(questions: Sequence[str]) -> list[str]:
    """Choose a few questions, of each first word one before any second one.

    >>> varied(["What is a fox?", "What is a hen?", "Spell fox.", "Hello!", "Who are you?", "Tell me a story."])
    ['What is a fox?', 'Spell fox.', 'Hello!', 'Who are you?']
    """
    rank: dict[str, int] = {}
    ranked = []
    for question in questions:
        first = question.split()[0].lower()
        rank[first] = rank.get(first, -1) + 1
        ranked.append((rank[first], question))
    return [question for _, question in sorted(ranked, key=lambda pair: pair[0])][:NUM_SUGGESTED]


def _answered(loaded: LoadedModel, root: str) -> list[str]:
    """Return the openings' questions that the model answers token by token as they do, the surest answer first."""
    rendered = ((opening, template.render(loaded.tokenizer, opening).ids) for opening in _openings(root))
    tried = list(islice((pair for pair in rendered if len(pair[1]) <= loaded.engine.context), NUM_TRIED))
    prompts = [template.render_prompt(loaded.tokenizer, opening[:1]) for opening, _ in tried]
    completions = loaded.engine.generate(prompts, SamplingParams(0.0, max_new_tokens=MAX_NEW_TOKENS, logprobs=0))
    made = zip(tried, prompts, completions, strict=True)
    same = [(opening, done) for (opening, ids), prompt, done in made if prompt + done.ids == ids]
    same.sort(key=lambda pair: -sum(pair[1].logprobs))
    return [str(opening[0]["content"]) for opening, _ in same]


def _openings(root: str) -> Iterator[Sequence[template.Message]]:
    """Yield the first question and answer of every conversation that begins with them, each question once."""
    seen = set[str]()
    for problem in load(TASK, root).problems:
        question, answer = problem.messages[:2]
        text = str(question["content"])
        if (question["role"], answer["role"]) == ("user", "assistant") and text.strip() and text not in seen:
            seen.add(text)
            yield question, answer
