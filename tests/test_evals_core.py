"""CORE against a slow reference written here: one candidate at a time, no padding, explicit log-softmax."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import yaml
from tiny import byte_tokenizer, scripted_model

from raychat.evals import core
from raychat.evals.bundle import KINDS, CoreTask, load_bundle, read_items
from raychat.evals.evaluation import LoadedModel, chosen
from raychat.model.gpt import GPT, GPTConfig
from raychat.tokenizer import Tokenizer

CONFIG = GPTConfig(sequence_len=160, vocab_size=toy.VOCAB_SIZE, n_layer=2, n_head=2, n_kv_head=2, n_embd=32)

CHOICE = [
    {"query": f"What is {i} plus one?", "choices": [str(i + 1), str(i + 2), "no idea"], "gold": i % 2} for i in range(9)
]
SCHEMA = [
    {
        "context_options": [f"Ann saw Bob {i} when the cat", f"Ann saw Bob {i} when she"],
        "continuation": "ran.",
        "gold": 1,
    }
    for i in range(5)
]
MODELING = [{"context": f" The letter after {c} is ", "continuation": chr(ord(c) + 1)} for c in "abcdef"]


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    tasks = [
        ("adding", "multiple_choice", 2, CHOICE, {"continuation_delimiter": "\nAnswer: "}),
        ("pronouns", "schema", 0, SCHEMA, {}),
        ("letters", "language_modeling", 3, MODELING, {}),
    ]
    entries = []
    for label, kind, shots, items, more in tasks:
        file = tmp_path / "eval_data" / "some" / f"{label}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(item) + "\n" for item in items))
        uri = f"some/{label}.jsonl"
        entries.append({"label": label, "dataset_uri": uri, "num_fewshot": [shots], "icl_task_type": kind, **more})
    (tmp_path / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": entries}))
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nadding,33\npronouns,50\nletters,0\n")
    return str(tmp_path)


def task(bundle: str, label: str) -> CoreTask:
    return load_bundle(bundle, [label])[0]


def lively(seed: int = 0) -> GPT:
    """A model whose predictions differ from token to token; a fresh one is nearly uniform."""
    model = toy.model(CONFIG, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "proj" in name or "lm_head" in name:
            torch.nn.init.normal_(p, std=0.3, generator=generator)
    return model.eval()


@torch.no_grad()
def slow_losses(model: GPT, row: list[int]) -> list[float]:
    logits = model(torch.tensor([row[:-1]]))[0]
    return [-torch.log_softmax(logits[t], -1)[row[t + 1]].item() for t in range(len(row) - 1)]


def test_bundle_is_read(bundle: str) -> None:
    adding, pronouns, letters = load_bundle(bundle)
    assert adding[:2] == ("adding", "multiple_choice")
    assert (adding.num_fewshot, adding.delimiter, adding.chance) == (2, "\nAnswer: ", 0.33)
    assert (pronouns.delimiter, pronouns.chance, letters.chance) == (" ", 0.5, 0.0)
    assert [len(read_items(t)) for t in (adding, pronouns, letters)] == [9, 5, 6]


def test_real_bundle_is_read(shared_data: Path) -> None:
    tasks = load_bundle(str(shared_data / "eval_bundle"))
    assert len(tasks) == 13
    assert {t.kind for t in tasks} == set(KINDS)
    tokenizer = byte_tokenizer()
    for t in tasks:
        items = read_items(t)
        for index in (0, len(items) - 1):
            rows, counts = core.candidate_rows(t, items, index, tokenizer)
            for continuation, row, count in zip(items[index].continuations, rows, counts, strict=True):
                judged = tokenizer.decode(row[-count:])
                assert continuation.endswith(judged.lstrip()) or judged.lstrip().endswith(continuation)


def test_missing_files_and_labels_are_named(bundle: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a CORE bundle: it has no core\.yaml"):
        load_bundle(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no task subtracting; it has adding, pronouns, letters"):
        load_bundle(bundle, ["subtracting"])
    (tmp_path / "eval_data" / "some" / "letters.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"letters: its items are not there: .*letters\.jsonl"):
        core.core_evaluation(load_bundle(bundle))
    (tmp_path / "eval_meta_data.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"eval_meta_data\.csv"):
        load_bundle(bundle)


@pytest.mark.parametrize("line", ["not json", '{"query": "q"}', '{"query": "q", "choices": ["a"], "gold": 1}', "[]"])
def test_line_that_is_no_item_is_named(bundle: str, tmp_path: Path, line: str) -> None:
    with open(tmp_path / "eval_data" / "some" / "adding.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"adding\.jsonl, line 10"):
        read_items(task(bundle, "adding"))


def test_prompt_is_shots_then_item(bundle: str) -> None:
    adding = task(bundle, "adding")
    items = read_items(adding)
    full, bare = core.prompts(adding, items, 4)
    blocks = [text.split("\n\n") for text in full]
    assert [b[-1] for b in blocks] == [f"What is 4 plus one?\nAnswer: {x}" for x in ("5", "6", "no idea")]
    assert bare == ["\n\n".join([*blocks[0][:-1], "What is 4 plus one?\nAnswer:"])] * 3
    assert len(blocks[0]) == 3
    for shot in blocks[0][:-1]:
        i = next(i for i, item in enumerate(items) if shot.startswith(item.contexts[0]))
        assert i != 4
        assert shot == f"{items[i].contexts[0]}\nAnswer: {items[i].continuations[items[i].gold]}"


def test_shots_are_others_and_the_same_every_time(bundle: str) -> None:
    letters = task(bundle, "letters")._replace(num_fewshot=5)
    items = read_items(letters)
    drawn = []
    for index, item in enumerate(items):
        (text,), _ = core.prompts(letters, items, index)
        assert ((text,), _) == (tuple(core.prompts(letters, items, index)[0]), _)
        *shots, last = text.split("\n\n")
        assert last == f"{item.contexts[0]} {item.continuations[0]}"
        assert sorted([*shots, last]) == sorted(f"{i.contexts[0]} {i.continuations[0]}" for i in items)
        drawn.append(tuple(shots))
    assert len(set(drawn)) > 1


def test_more_shots_than_items_takes_all_others(bundle: str) -> None:
    letters = task(bundle, "letters")._replace(num_fewshot=50)
    (text,), _ = core.prompts(letters, read_items(letters), 0)
    assert len(text.split("\n\n")) == 6


def judged(t: CoreTask, index: int, tokenizer: Tokenizer) -> list[str]:
    rows, counts = core.candidate_rows(t, read_items(t), index, tokenizer)
    assert all(row[0] == tokenizer.bos for row in rows)
    return [tokenizer.decode(row[-count:]) for row, count in zip(rows, counts, strict=True)]


def test_judged_tokens(bundle: str) -> None:
    """Of choices what differs; of a schema the continuation, also where contexts end alike; else what follows."""
    tokenizer = byte_tokenizer()
    assert judged(task(bundle, "adding"), 0, tokenizer) == ["1", "2", "no idea"]
    assert judged(task(bundle, "pronouns"), 0, tokenizer) == [" ran.", " ran."]
    assert judged(task(bundle, "letters"), 0, tokenizer) == [" b"]


def test_choice_that_begins_another_is_still_judged(bundle: str, tmp_path: Path) -> None:
    item = {"query": "Pick:", "choices": ["red", "red wine"], "gold": 0}
    (tmp_path / "eval_data" / "some" / "adding.jsonl").write_text(json.dumps(item) + "\n")
    assert judged(task(bundle, "adding"), 0, byte_tokenizer()) == ["d", " wine"]


def test_schema_whose_contexts_end_alike_is_judged_on_the_continuation_alone(bundle: str, tmp_path: Path) -> None:
    item = {"context_options": ["It was Ann's cat that", "It was Bob's cat that"], "continuation": "ran.", "gold": 1}
    (tmp_path / "eval_data" / "some" / "pronouns.jsonl").write_text(json.dumps(item) + "\n")
    assert judged(task(bundle, "pronouns"), 0, byte_tokenizer()) == [" ran.", " ran."]


def test_schema_is_judged_on_tokens_that_all_candidates_share(bundle: str, tmp_path: Path) -> None:
    """Where a token of one candidate spans context and continuation, neither half of it is judged."""
    item = {"context_options": ["take x", "take y"], "continuation": "b!", "gold": 1}
    (tmp_path / "eval_data" / "some" / "pronouns.jsonl").write_text(json.dumps(item) + "\n")
    merged = Tokenizer([*byte_tokenizer().tokens, b"xb"])
    assert judged(task(bundle, "pronouns")._replace(delimiter=""), 0, merged) == ["!", "!"]


def test_without_a_context_all_but_the_bos_is_judged(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "eval_data" / "some" / "letters.jsonl").write_text('{"context": "", "continuation": "abc"}\n')
    assert judged(task(bundle, "letters")._replace(delimiter=""), 0, byte_tokenizer()) == ["abc"]


@pytest.mark.parametrize("label", ["adding", "pronouns", "letters"])
@pytest.mark.parametrize("batch_tokens", [1, 700, 100_000])
def test_results_equal_those_of_one_candidate_at_a_time(bundle: str, label: str, batch_tokens: int) -> None:
    model, tokenizer, t = lively(), byte_tokenizer(), task(bundle, label)
    items = read_items(t)
    expected = []
    for index, item in enumerate(items):
        full, _ = core.prompts(t, items, index)
        rows = [[tokenizer.bos, *tokenizer.encode(text)][-CONFIG.sequence_len :] for text in full]
        spans = [len(s.encode()) for s in judged(t, index, tokenizer)]
        if label == "letters":
            with torch.no_grad():
                first = model(torch.tensor([rows[0]]))[0].argmax(-1).tolist()
            expected.append(first[-spans[0] - 1 : -1] == rows[0][-spans[0] :])
        else:
            losses = [sum(slow_losses(model, row)[-n:]) / n for row, n in zip(rows, spans, strict=True)]
            expected.append(losses.index(min(losses)) == item.gold)
    assert core.evaluate_items(LoadedModel(model, tokenizer), t, range(len(items)), batch_tokens) == expected


def test_language_modelling_is_right_where_the_letter_is_the_first_choice(bundle: str) -> None:
    """A model made to say "c" after such contexts gets the item whose letter that is, and no other."""
    model, tokenizer, t = toy.model(CONFIG).eval(), byte_tokenizer(), task(bundle, "letters")
    t = t._replace(delimiter="")  # then one token is judged: the letter
    items = tuple(i._replace(contexts=[i.contexts[0] + ":"]) for i in read_items(t))
    assert [tokenizer.decode(core.candidate_rows(t, items, i, tokenizer)[0][0][-1:]) for i in range(3)] == [
        "b",
        "c",
        "d",
    ]
    rows = [core.candidate_rows(t, items, i, tokenizer)[0][0] for i in range(len(items))]
    with torch.no_grad():
        model.lm_head.weight.zero_()
        state = {}
        model.lm_head.register_forward_pre_hook(lambda _, args: state.update(x=args[0]))
        model(torch.tensor([rows[0][:-1]]))
        model.lm_head.weight[ord("c")] = state["x"][0, -1]
    greedy = [judged.greedy for (judged,) in core.judge(model, [[row] for row in rows], [[1]] * len(rows), 1000)]
    assert greedy[1]  # "c" is what it says after such a context
    assert sum(greedy) == 1


def test_language_modelling_is_right_where_every_token_is_the_first_choice(bundle: str, tmp_path: Path) -> None:
    continuations = ["yz!", "yz?", "yx!", "az!"]
    lines = [json.dumps({"context": "x", "continuation": continuation}) for continuation in continuations]
    (tmp_path / "eval_data" / "some" / "letters.jsonl").write_text("\n".join(lines))
    t = task(bundle, "letters")._replace(delimiter="", num_fewshot=0)
    verdicts = core.evaluate_items(LoadedModel(scripted_model([[*b"xyz!"]]), byte_tokenizer()), t, range(4))
    assert verdicts == [True, False, False, False]


def test_continuations_longer_than_the_context_are_judged_by_all_that_fits(bundle: str, tmp_path: Path) -> None:
    """The first token of the tail has nothing before it and only conditions the rest."""
    draw, length = random.Random(0), 8
    lines = [
        {"query": "Pick:", "choices": ["".join(draw.choices("abcdef", k=30)) for _ in range(3)], "gold": 0}
        for _ in range(40)
    ]
    (tmp_path / "eval_data" / "some" / "adding.jsonl").write_text("\n".join(map(json.dumps, lines)))
    t, tokenizer = task(bundle, "adding"), byte_tokenizer()
    model = GPT(GPTConfig(**{**vars(CONFIG), "sequence_len": length}))
    model.load_state_dict(lively().state_dict())
    expected = []
    for line in lines:
        losses = [sum(slow_losses(model.eval(), tokenizer.encode(choice)[-length:])) for choice in line["choices"]]
        expected.append(losses.index(min(losses)) == 0)
    assert core.evaluate_items(LoadedModel(model, tokenizer), t, range(40)) == expected
    assert len(set(expected)) == 2


def test_long_prompts_keep_their_tail(bundle: str) -> None:
    t = task(bundle, "letters")._replace(num_fewshot=5)
    items, tokenizer, model = read_items(t), byte_tokenizer(), lively()
    row = core.candidate_rows(t, items, 0, tokenizer)[0][0]
    assert len(row) > 120
    short = GPT(GPTConfig(**{**vars(CONFIG), "sequence_len": 64}))
    short.load_state_dict(model.state_dict())
    ((expected,),) = core.judge(short, [[row[-64:]]], [[2]], 1000)
    assert core.evaluate_items(LoadedModel(short, tokenizer), t, [0]) == [expected.greedy]


def test_chosen_items_are_fixed_and_nested() -> None:
    assert chosen(7, None) == list(range(7)) == chosen(7, 100)
    assert chosen(400, 20) == chosen(400, 20) != list(range(20))
    assert set(chosen(400, 20)) < set(chosen(400, 50))


def test_centred_accuracy(bundle: str) -> None:
    pronouns = task(bundle, "pronouns")
    assert core.score(pronouns, [True, True, True, False]) == (0.75, 0.5, 4)
    assert core.score(pronouns, [True, False]).centred == 0
    with pytest.raises(ValueError, match="no items"):
        core.score(pronouns, [])


def test_evaluation_sums_up_all_tasks(bundle: str) -> None:
    loaded, tasks = LoadedModel(lively(), byte_tokenizer()), load_bundle(bundle)
    evaluation = core.core_evaluation(tasks, max_items=4)
    found: dict[str, Any] = evaluation.finish([call(loaded) for call in evaluation.calls])
    for t in tasks:
        right = core.evaluate_items(loaded, t, chosen(len(read_items(t)), 4))
        assert found["core_tasks"][t.label] == core.score(t, right)._asdict()
    assert found["core"] == pytest.approx(sum(s["centred"] for s in found["core_tasks"].values()) / 3)
