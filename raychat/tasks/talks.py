"""Free conversations to train on: SmolTalk's layout, and who raychat is."""

import random
from collections.abc import Sequence

from raychat import paths
from raychat.tasks.source import HUB, Row, file_problems, hub_problems, one_of
from raychat.tasks.task import Lazy, Problem, Task, no_reward

NUM_IDENTITIES = 400

GREETINGS = ("Hello!", "Hi!", "Hello there.", "Good morning!", "Hey!", "Good day.", "")
WHO = (
    "Who are you?",
    "What are you?",
    "What is your name?",
    "Tell me who you are.",
    "Are you a person?",
    "Who am I talking to?",
)
MAKER = ("Who made you?", "Where do you come from?", "How were you made?", "What are you built on?")
ABILITY = ("What can you do?", "How can you help me?", "What are you good at?", "What can I ask you?")
WHO_ANSWERS = (
    "I am raychat, a small language model.",
    "My name is raychat. I am a small language model.",
    "I am raychat, a computer program that talks.",
)
MAKER_ANSWERS = (
    "I am raychat. I learned from text, step by step, on Ray.",
    "I was trained from nothing with the raychat code.",
    "I come from raychat: one command made me, from raw text to a chat model.",
)
ABILITY_ANSWERS = (
    "I can chat, answer questions, tell stories and do small sums.",
    "You can ask me a question, a sum or a story. I am small, so I make mistakes.",
    "I can talk, count, spell and tell stories.",
)
TOPICS = ((WHO, WHO_ANSWERS), (MAKER, MAKER_ANSWERS), (ABILITY, ABILITY_ANSWERS))


def conversations(root: str, split: str = "train") -> Task:
    """Return conversations to train on: smol-smoltalk of the hub, or the JSON-lines files of `root`/chat.

    A file belongs to a split by its name, as train.jsonl and test-2.jsonl do. A single file of any other name is for
    training.
    Source: Allal et al., arXiv:2502.02737; hub data set HuggingFaceTB/smol-smoltalk.
    """
    one_of(split, ("train", "test"), "conversations")
    hub = ("HuggingFaceTB/smol-smoltalk", None, split)
    problems = hub_problems(*hub, _problem) if root == HUB else _chat_problems(root, split)
    return Task("Conversations", problems, 0.0, no_reward)


def _problem(row: Row) -> Problem:
    return Problem(row["messages"])


def _chat_problems(root: str, split: str) -> list[Problem]:
    folder, layout = paths.join(root, "chat"), '{"messages": [{"role": ..., "content": ...}, ...]}'
    files = [name for name in paths.names(folder) if name.endswith((".jsonl", ".jsonl.gz"))]
    chosen = [name for name in files if split in name] or (files if len(files) == 1 and split == "train" else [])
    if not chosen:
        raise ValueError(
            f"no {split} conversations in {folder} (it holds {files or 'no .jsonl files'}); expected JSON lines of "
            f"{layout} in a file with {split!r} in its name, or one file for training"
        )
    return [problem for name in chosen for problem in file_problems(paths.join(folder, name), layout, _problem)]


def identity(root: str = "", split: str = "train", num: int = NUM_IDENTITIES) -> Task:
    """Return conversations in which raychat says who it is. They are generated; `root` is not read."""
    one_of(split, ("train", "test"), "identity")

    def problem(i: int) -> Problem:
        return Problem(identity_messages(random.Random(f"identity {split} {i}")))

    return Task("Identity", Lazy(num, problem), 0.0, no_reward)


def identity_messages(rng: random.Random) -> list[dict[str, str]]:
    """Return a conversation of one or two turns about who raychat is."""
    turns: Sequence[tuple[tuple[str, ...], tuple[str, ...]]] = rng.sample(TOPICS, rng.choice((1, 1, 2)))
    greeting = rng.choice(GREETINGS)
    messages = []
    for questions, answers in turns:
        question = f"{greeting} {rng.choice(questions)}".strip()
        hello = "Hello! " if greeting else ""
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": hello + rng.choice(answers)})
        greeting = ""
    return messages
