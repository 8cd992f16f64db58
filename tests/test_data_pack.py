"""Folders of tokens from documents and from conversations: what their rows hold, what is lost, how they are named."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raychat_bpe
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from raychat import paths, tasks, tinyworld
from raychat.chat import template
from raychat.data import corpus, reading
from raychat.data.pack import _VERSION, Packing, conversations, documents, make_block, pretraining
from raychat.data.shards import BlockCounts, TokenRows, manifest, write_plan
from raychat.tasks import Problem, mixture
from raychat.tokenizer import SPLIT_PATTERN, Tokenizer

BYTES = Tokenizer([bytes([i]) for i in range(256)])  # a token is a byte, so that rows are easy to read
T = 63


def packed_rows(packing: Packing) -> np.ndarray:
    return np.concatenate([packing.pack(packing.read(block)).rows for block in packing.blocks])


def counts(packing: Packing) -> BlockCounts:
    """The counts of all blocks together."""
    packed = [packing.pack(packing.read(block)) for block in packing.blocks]
    figures = [BlockCounts(len(p.rows), p.documents, p.used, p.lost) for p in packed]
    return BlockCounts(*map(sum, zip(*figures, strict=True)))


def split_at_bos(row: list[int]) -> list[list[int]]:
    starts = [at for at, token in enumerate(row) if token == BYTES.bos]
    assert starts[0] == 0
    return [row[a:b] for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]


def lines_of(path: Path, texts: list[str]) -> str:
    paths.write_text(str(path), "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def trained(texts: list[str], vocab_size: int) -> Tokenizer:
    return Tokenizer.train(raychat_bpe.Counts(texts, SPLIT_PATTERN), vocab_size)


def test_one_text_is_split_by_characters_into_consecutive_rows(tmp_path: Path) -> None:
    text = "".join(f"{i} ümläut 漢字\n\n" for i in range(700))
    paths.write_text(str(tmp_path / "x.txt"), text)
    cut = int(0.9 * len(text))
    for packing, part in zip(
        pretraining([f"{tmp_path}/x.txt"], BYTES, T, "unused"), (text[:cut], text[cut:]), strict=True
    ):
        rows = packed_rows(packing)
        assert packing.plan.one_text
        assert (rows[:, 0] == BYTES.bos).all()
        kept = len(rows) * T
        assert bytes(rows[:, 1:].ravel().tolist()) == part.encode()[:kept]
        assert counts(packing) == (len(rows), 1, kept, len(part.encode()) - kept)
        assert len(part.encode()) - kept < T


def test_parts_of_a_text_have_folders_of_their_own_which_its_content_names(tmp_path: Path) -> None:
    names = set()
    for content in ("one " * 999, "two " * 999):
        paths.write_text(str(tmp_path / "x.txt"), content)
        names |= {packing.folder for packing in pretraining([f"{tmp_path}/x.txt"], BYTES, T, "unused")}
    assert len(names) == 4


def test_a_corpus_of_documents_is_split_by_shards(tmp_path: Path) -> None:
    files = [lines_of(tmp_path / f"{name}.jsonl", [f"{name} " * 200]) for name in ("a", "b", "c")]
    for packing, part in zip(pretraining([str(tmp_path)], BYTES, T, "unused"), (files[:2], files[2:]), strict=True):
        assert packing.folder == documents(part, BYTES, T, "unused").folder
        assert not packing.plan.one_text
    with pytest.raises(ValueError, match="at least 2 shards"):
        pretraining(files[:1], BYTES, T, "unused")


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("ü".encode("latin-1") * 9)
    packing, _ = pretraining([str(tmp_path / "x.txt")], BYTES, T, "unused")
    with pytest.raises(ValueError, match=r"x\.txt is not UTF-8 at byte 0"):
        packed_rows(packing)


def test_rows_hold_every_document_but_for_the_last_row(tmp_path: Path) -> None:
    texts = [f"{i} " + "abc " * (i * 7 % 40) for i in range(1200)]
    packing = documents([lines_of(tmp_path / "x.jsonl", texts)], BYTES, T, "unused")
    assert len(packing.blocks) == 1
    rows = packed_rows(packing)
    assert rows.shape == (len(rows), T + 1)
    parts = [BYTES.decode(part[1:]) for row in rows.tolist() for part in split_at_bos(row)]
    whole = set(texts) & set(parts)
    assert len(whole) > 300
    assert sum(map(len, parts)) > sum(map(len, texts)) - T
    found = counts(packing)
    assert found.rows == len(rows)
    assert found.used + found.lost == sum(len(text) + 1 for text in texts)


def test_packing_is_named_by_its_inputs(tmp_path: Path) -> None:
    shards = [lines_of(tmp_path / f"{i}.jsonl", [f"{i} abc", "def"]) for i in range(3)]
    other = Tokenizer([*BYTES.tokens, b"ab"])
    packings = [
        documents(shards, BYTES, T, "s3://bucket"),
        documents(shards, BYTES, T, "s3://bucket"),
        documents(shards, BYTES, T + 1, "s3://bucket"),
        documents(shards, other, T, "s3://bucket"),
        documents(shards[:-1], BYTES, T, "s3://bucket"),
    ]
    paths.write_text(shards[0], paths.read_text(shards[0]).replace("abc", "abd"))
    packings.append(documents(shards, BYTES, T, "s3://bucket"))
    folders = [packing.folder for packing in packings]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 5
    assert folders[0].startswith("s3://bucket/tokens/documents-")


def test_shard_rewritten_with_the_same_size_and_time_gets_other_tokens(tmp_path: Path) -> None:
    shard = lines_of(tmp_path / "x.jsonl", ["abc"])
    before, time_ns = documents([shard], BYTES, T, "unused").folder, os.stat(shard).st_mtime_ns
    lines_of(tmp_path / "x.jsonl", ["abd"])
    os.utime(shard, ns=(time_ns, time_ns))
    assert documents([shard], BYTES, T, "unused").folder != before


def test_moved_copied_and_touched_shards_share_their_tokens(tmp_path: Path) -> None:
    shards = [lines_of(tmp_path / "a" / f"{i}.jsonl", [f"{i} abc"]) for i in range(3)]
    moved = [lines_of(tmp_path / "b" / f"part-{i}.jsonl", [f"{i} abc"]) for i in range(3)]
    os.utime(moved[0], (1, 1))
    folder = documents(shards, BYTES, T, "unused").folder
    assert documents(moved, BYTES, T, "unused").folder == folder
    assert documents(moved[::-1], BYTES, T, "unused").folder != folder
    as_text = [str(Path(shard).rename(f"{shard}.txt")) for shard in shards]  # other documents: a line is text
    assert documents(as_text, BYTES, T, "unused").folder != folder


def test_conversation_that_changes_in_a_file_gets_other_tokens(tmp_path: Path) -> None:
    """With the number of conversations, their lengths, the file's size and its time as they were."""
    folders = []
    for answer in ("four", "five"):
        root, path = chat_file(tmp_path, [turns("How many?", answer), turns("Hi", "Hello!")])
        os.utime(path, (1, 1))
        problems = tasks.load("conversations", root, "train").problems
        folders.append(conversations(problems, BYTES, T, "unused", masked=True).folder)
    assert len(set(folders)) == 2


def test_rows_of_one_version_stay_the_same(tmp_path: Path) -> None:
    """If this fails on purpose, raise `pack._VERSION`: older tokens would be taken for those of the new code."""
    texts = [f"{i} " + "abc " * (i * 7 % 40) for i in range(300)]
    talks = [problem([(f"question {i}", "answer " * (i % 30 + 1))]) for i in range(300)]
    packings = [documents([lines_of(tmp_path / "x.jsonl", texts)], BYTES, T, "unused")]
    packings += [conversations(talks, BYTES, T, "unused", masked=masked) for masked in (False, True)]
    rows = b"".join(packed_rows(packing).astype("<u2").tobytes() for packing in packings)
    assert (_VERSION, hashlib.sha256(rows).hexdigest()[:16]) == (3, "f8972e95bc02119f")


def test_manifest_says_what_the_rows_were_made_from(tmp_path: Path) -> None:
    texts = [f"{i} " + "abc " * (i * 7 % 40) for i in range(1200)]
    shard = lines_of(tmp_path / "x.jsonl", [*texts, ""])
    packing = documents([shard], BYTES, T, str(tmp_path))
    write_plan(packing.folder, packing.plan, packing.sources)
    assert manifest(packing.folder) | {"sources": None} == {
        "folder": packing.folder, "inputs": packing.plan.inputs, "blocks": 0, "of_blocks": 1, "rows": 0,
        "documents": 0, "tokens": 0, "lost": 0, "sources": None,
    }  # fmt: skip
    make_block(packing.folder, 0, packing.pack, packing.read(packing.blocks[0]))
    found, data = manifest(packing.folder), Path(shard).read_bytes()
    assert found["sources"] == {shard: f".jsonl, {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"}
    assert (found["blocks"], found["documents"]) == (1, 1200)
    assert found["rows"] == TokenRows(packing.folder).num_rows() == len(packed_rows(packing))
    assert found["tokens"] + found["lost"] == sum(len(text) + 1 for text in texts)
    assert 0 < found["lost"] <= T


@pytest.mark.parametrize("masked", [False, True])
def test_manifest_of_conversations_counts_them_by_file(tmp_path: Path, masked: bool) -> None:
    root, path = chat_file(tmp_path, TALKS)
    problems = [*mixture([(tasks.load("conversations", root, "train"), 2)]), problem([("Hi", "Hello! " * 99)])]
    packing = conversations(problems, BYTES, T, str(tmp_path), masked=masked)
    write_plan(packing.folder, packing.plan, packing.sources)
    made = make_block(packing.folder, 0, packing.pack, packing.blocks[0])
    found = manifest(packing.folder)
    assert found["sources"] == {str(path): 6, "generated": 1}
    assert BlockCounts(found["rows"], found["documents"], found["tokens"], found["lost"]) == made
    assert made.documents == 7


@pytest.mark.parametrize("sequence_len", [256, 512, 2048])
def test_small_corpora_have_several_blocks_and_lose_at_most_a_hundredth(tmp_path: Path, sequence_len: int) -> None:
    rng = np.random.default_rng(0)
    texts = ["x" * int(n) for n in rng.integers(20, 200, size=40_000)]  # about 4.4 MB
    packing = documents([lines_of(tmp_path / "x.jsonl", texts)], BYTES, sequence_len, "unused")
    assert len(packing.blocks) >= 2
    found = counts(packing)
    assert found.used + found.lost == sum(len(text) + 1 for text in texts)
    assert found.lost_frac < 0.01


@pytest.mark.parametrize("sequence_len", [512, 2048])
def test_long_documents_lose_at_most_a_hundredth(tmp_path: Path, sequence_len: int) -> None:
    rng = np.random.default_rng(0)
    texts = ["word " * int(n) for n in rng.integers(5_000, 10_000, size=60)]  # 38,000 characters in the mean
    packing = documents([lines_of(tmp_path / "x.jsonl", texts)], BYTES, sequence_len, "unused")
    assert counts(packing).lost_frac < 0.01


@pytest.mark.parametrize("sequence_len", [512, 2048])
def test_real_english_loses_at_most_a_hundredth(shared_data: Path, sequence_len: int) -> None:
    _, shards = corpus.split(corpus.shards([str(shared_data / "english")], "unused"))
    tokenizer = trained(reading.texts(reading.blocks(shards)[0]).to_pylist()[:500], 2048)
    packing = documents(shards, tokenizer, sequence_len, "unused")
    assert len(packing.blocks) > 5
    assert counts(packing).lost_frac < 0.01


def test_tinyworld_loses_at_most_a_hundredth(tmp_path: Path) -> None:
    """With the vocabulary and the row length of the tiny preset, on a quarter of its text."""
    tinyworld.write(str(tmp_path), scale=0.25)
    train, val = corpus.split(corpus.shards([str(tmp_path / "pretrain")], "unused"))
    tokenizer = trained(reading.texts(reading.blocks(val)[0]).to_pylist(), 1024)
    for shards in (train, val):
        assert counts(documents(shards, tokenizer, 256, "unused")).lost_frac < 0.01


said = st.text("ab \nü", min_size=1, max_size=25)
parts = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "python", "python_output"]), "text": said}),
    min_size=1,
    max_size=3,
)
exchange = st.tuples(said, st.one_of(said, parts))


def problem(exchanges: list[tuple[str, Any]]) -> Problem:
    messages = [{"role": r, "content": c} for e in exchanges for r, c in zip(("user", "assistant"), e, strict=True)]
    return Problem(messages)


problems_strategy = st.lists(st.lists(exchange, min_size=1, max_size=3).map(problem), min_size=1, max_size=12)


@settings(max_examples=50)
@given(problems_strategy)
def test_masked_rows_carry_loss_exactly_on_the_assistants_tokens(problems: list[Problem]) -> None:
    packing = conversations(problems, BYTES, T, "unused", masked=True)
    found = []
    for row, mask in packed_rows(packing).tolist():
        texts = split_at_bos(row)
        ends = np.cumsum([0, *map(len, texts)]).tolist()
        found += [(text, mask[a:b]) for text, a, b in zip(texts, ends[:-1], ends[1:], strict=True)]
    padding = ([BYTES.bos], [0])
    rendered = [template.render(BYTES, p.messages) for p in problems]
    assert sorted(f for f in found if f != padding) == sorted((r.ids[: T + 1], r.mask[: T + 1]) for r in rendered)


def test_unmasked_conversation_rows_are_full_and_hold_every_token_but_for_the_last_row(tmp_path: Path) -> None:
    problems = [problem([(f"question {i}", "answer " * (i % 5 + 1))]) for i in range(200)]
    packing = conversations(problems, BYTES, T, str(tmp_path), masked=False)
    write_plan(packing.folder, packing.plan)
    made = [make_block(packing.folder, i, packing.pack, block) for i, block in enumerate(packing.blocks)]
    rows = TokenRows(packing.folder)
    tokens, mask = rows.rows(np.arange(rows.num_rows()))
    assert mask.all()
    assert rows.num_valid(np.arange(10)) == 10 * T
    assert (tokens[:, 0] == BYTES.bos).all()
    rendered = [tuple(template.render(BYTES, p.messages).ids) for p in problems]
    found = {tuple(text) for row in tokens.tolist() for text in split_at_bos(row)}
    assert len(found.intersection(rendered)) > 100  # whole conversations
    assert sum(c.used + c.lost for c in made) == sum(map(len, rendered))
    assert sum(c.lost for c in made) <= T
    assert sum(c.rows for c in made) == len(tokens)


def test_unmasked_conversations_come_from_a_window() -> None:
    """A long conversation shares its row with neighbours, not with the first conversations of the block."""
    problems = [problem([(f"question {i:03}", "long " * 20 if i == 200 else "short")]) for i in range(300)]
    packing = conversations(problems, BYTES, 255, "unused", masked=False)
    assert len(packing.blocks) == 1
    (row,) = [text for text in map(BYTES.decode, packed_rows(packing).tolist()) if "long long" in text]
    beside = [int(found) for found in re.findall(r"question (\d{3})", row) if found != "200"]
    assert len(beside) >= 2
    assert min(beside) > 100


def test_many_conversations_are_cut_into_blocks_in_their_order() -> None:
    problems = [problem([(f"question {i}", "answer " * 300)]) for i in range(1000)]
    packing = conversations(problems, BYTES, T, "unused", masked=True)
    assert 4 <= len(packing.blocks) <= 8
    assert [m for block in packing.blocks for m in block] == [p.messages for p in problems]
    assert packing.folder != conversations(problems, BYTES, T, "unused", masked=False).folder
    assert packing.folder != conversations(problems[::-1], BYTES, T, "unused", masked=True).folder


def test_no_conversations_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        conversations([], BYTES, T, "unused", masked=True)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


TALKS = [
    turns("Hi", "Hello!"),
    turns("Hi", ""),  # an empty message
    turns("Hi", "Hello!", "And", "then"),
    turns("Hi", "Hello!", "Still there?"),  # ends with the user
    turns("Anyone?"),  # the user alone
    [{"role": "system", "content": "Be brief."}, *turns("Hi")],
    [{"role": "assistant", "content": "Hello!"}],
    [{"role": "user"}],
]


def chat_file(tmp_path: Path, talks: list[list[dict[str, str]]]) -> tuple[str, Path]:
    path = tmp_path / "chat" / "train.jsonl"
    paths.write_text(str(path), "".join(json.dumps({"messages": messages}) + "\n" for messages in talks))
    return str(tmp_path), path


@pytest.mark.parametrize("masked", [False, True])
def test_talks_that_cannot_be_trained_on_are_left_out_and_named(tmp_path: Path, masked: bool) -> None:
    root, path = chat_file(tmp_path, TALKS)
    logged: list[str] = []
    problems = mixture([(tasks.load("conversations", root, "train"), 2)], seed=1)
    packing = conversations(problems, BYTES, T, "unused", masked=masked, log=logged.append)
    kept = [messages for block in packing.blocks for messages in block]
    assert sorted(map(str, kept)) == sorted(map(str, [TALKS[0], TALKS[2], TALKS[3][:2]] * 2))
    (line,) = logged
    assert line.startswith("conversations: 5 left out, 1 shortened to their last answer: ")  # each once
    assert line.endswith("; and 1 more")
    assert line.count(str(path)) == 5
    packed_rows(packing)  # they render


def test_left_out_talks_are_named_with_line_and_cause(tmp_path: Path) -> None:
    root, path = chat_file(tmp_path, TALKS[:5])
    logged: list[str] = []
    problems = tasks.load("conversations", root, "train").problems
    conversations(problems[:1], BYTES, T, "unused", masked=True, log=logged.append)
    assert not logged
    conversations(problems, BYTES, T, "unused", masked=True, log=logged.append)
    (line,) = logged
    assert f"{path}, line 2 (message 1 (assistant) is empty)" in line
    assert f"{path}, line 5 (no message of the assistant)" in line
    assert f"{path}, line 4 (ends with the user)" in line


def test_left_out_rows_of_the_hub_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset.from_list([{"messages": talk} for talk in TALKS[:5]])
    monkeypatch.setattr("raychat.tasks.source.load_dataset", lambda repo, config, split: data)
    logged: list[str] = []
    task, held_out = tasks.hold_out(tasks.load("conversations", tasks.HUB, "train"), 0.0)
    assert len(held_out.problems) == 0
    conversations(task.problems, BYTES, T, "unused", masked=True, log=logged.append)
    assert "HuggingFaceTB/smol-smoltalk, train, row 1 (message 1 (assistant) is empty)" in logged[0]
    assert "HuggingFaceTB/smol-smoltalk, train, row 3 (ends with the user)" in logged[0]


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path) -> None:
    root, _ = chat_file(tmp_path, [TALKS[1], TALKS[4]])
    with pytest.raises(ValueError, match=r"all 2 conversations were left out, such as .*train.jsonl, line \d"):
        conversations(tasks.load("conversations", root, "train").problems, BYTES, T, "unused", masked=True)
