"""Files that anybody may have written: plain ones are read, hostile ones are refused and nothing of them runs."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_tokenizer

from raychat.interchange import pickles
from raychat.interchange.tokenizers import read_tokenizer
from raychat.model.gpt import GPTConfig

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@settings(max_examples=200, deadline=None)
@given(PLAIN, st.sampled_from([3, 4, 5]))
def test_plain_values_are_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    assert pickles.read(pickle.dumps(value, protocol), {}) == value


ENCODING = pickle.dumps(byte_tokenizer().to_tiktoken())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(ENCODING) - 1), st.binary(min_size=1, max_size=9))
def test_damaged_bytes_are_refused_or_become_plain_values(at: int, damage: bytes) -> None:
    try:
        value = pickles.read(ENCODING[:at] + damage + ENCODING[at + len(damage) :], {"tiktoken.core Encoding": dict})
    except ValueError:
        return
    assert isinstance(value, dict | list | tuple | str | bytes | int | float | None)


class Calls:
    """Pickled, it is a call that unpickling makes."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def attacks(marker: Path) -> dict[str, Any]:
    """Values whose pickles write a file when they are loaded as usual."""
    write = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(eval, f"__import__('os').system('touch {marker}')"),
        "exec": Calls(exec, write),
        "getattr": Calls(Calls(getattr, os, "system"), f"touch {marker}"),
        "open": Calls(open, str(marker), "w"),
        "class": Calls(torch.serialization._open_file, str(marker), "w"),
    }


NAMES = ["system", "eval", "exec", "open", "class"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(name: str, protocol: int, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "tokenizer.pkl"
    file.write_bytes(pickle.dumps({"name": "x", "special_tokens": attacks(marker)[name]}, protocol))
    pickle.loads(file.read_bytes())
    assert marker.exists()  # as an attack it works
    marker.unlink()
    with pytest.raises(ValueError, match="refused: it"):
        read_tokenizer(str(file))
    assert not marker.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beside", ["model", "other"])
def test_tensors_beside_which_code_runs_are_refused_and_nothing_runs(name: str, beside: str, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", str(tmp_path / "model_000001.pt")
    torch.save({"weights": torch.ones(3), beside: attacks(marker)[name]}, file)
    torch.load(file, weights_only=False)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(ValueError, match="refused: it names"):
        pickles.load_tensors(file)
    assert not marker.exists()


def test_a_foreign_class_in_an_encodings_place_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    assert b"tiktoken.core" in ENCODING
    hostile = ENCODING.replace(b"\x8c\rtiktoken.core", b"\x8c\x02os").replace(b"\x8c\x08Encoding", b"\x8c\x06system")
    (tmp_path / "tokenizer.pkl").write_bytes(hostile)
    with pytest.raises(ValueError, match=r"names 'os.system'"):
        read_tokenizer(str(tmp_path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x.",  # bytes
        b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"x.",  # str
        b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b"x.",  # bytearray
        b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"x.",  # int
        b"I" + b"9" * 10_000_000 + b"\n.",
        b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02c__main__\nx\n" + b"(" * 100_000 + b".",
        b"\x80\x04" + b")" + b"\x85" * 1_000_000 + b"}\x94" + b"h\x00" + b"\x85" * 5 + b".",
        b"\x80\x04})" + b"\x85" * 1_000_000 + b"Ns.",  # a key whose hash would end the stack
        b"\x80\x04]\x94" + b"]\x94h\x00a0" * 10 + b".",
        b"\x80\x04}N.",
        b"\x80\x04a.",
        b"\x80\x04s.",
        b"\x80\x04h\x07.",
        b"\x80\x04\x93.",
        b"\x80\x04)R.",
        b"\x80\x04.",
        b"",
    ],
)
def test_what_would_exhaust_memory_or_the_stack_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=r"tokenizer\.pkl"):
        read_tokenizer(str(tmp_path))


@pytest.mark.parametrize("cut", [1, 10, 300, 3000])
def test_a_torn_tokenizer_is_refused(cut: int, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(ENCODING[:-cut])
    with pytest.raises(ValueError, match="refused"):
        read_tokenizer(str(tmp_path))


def test_an_encodings_state_becomes_a_tokenizer_and_no_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_tokenizer()
    (tmp_path / "tokenizer.pkl").write_bytes(ENCODING)
    monkeypatch.setattr(tiktoken.Encoding, "__setstate__", None)
    assert read_tokenizer(str(tmp_path)).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    "change, message",
    [
        ({"explicit_n_vocab": 9}, "explicit_n_vocab"),
        ({"special_tokens": {"<|bos|>": 999}}, "missing or occur twice"),
        ({"special_tokens": {}}, "no special tokens"),
        ({"mergeable_ranks": {"a": 0}}, "other tokens than bytes"),
        ({"pat_str": 3}, "pat_str"),
        ({"pat_str": "("}, "does not compile"),
    ],
)
def test_a_state_that_is_no_encodings_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    ranks = {token: i for i, token in enumerate(tokenizer.tokens)}
    state = {"name": "x", "pat_str": tokenizer.pattern, "mergeable_ranks": ranks, "special_tokens": tokenizer.special}
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(state | change))
    with pytest.raises(ValueError) as refused:
        read_tokenizer(str(tmp_path))
    assert message in str(refused.value)


def saved(value: Any, file: Path) -> Path:
    torch.save(value, file)
    return file


def rewritten(file: Path, compression: int = zipfile.ZIP_STORED, **contents: bytes) -> Path:
    """Write an archive of torch.save anew, with other entries in place of some."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, contents.get(name.rpartition("/")[2].replace(".", "_"), data))
    return file


def test_tensors_and_plain_values_are_read(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    value = {
        "model": OrderedDict(a=shared, b=shared.t(), c=torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))),
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(shared)]).state_dict(),
        "model_args": {"bias": False, "dropout": 0.0, "n": 3, "none": None},
    }
    got = pickles.load_tensors(str(saved(value, tmp_path / "ckpt.pt")))
    assert got["model_args"] == value["model_args"]
    assert all(torch.equal(tensor, value["model"][name]) for name, tensor in got["model"].items())
    assert got["optimizer"] == value["optimizer"]


def test_a_compressed_archive_is_refused_as_a_bomb(tmp_path: Path) -> None:
    file = rewritten(saved({"a": torch.zeros(2**20)}, tmp_path / "m.pt"), zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 2**16
    with pytest.raises(ValueError, match="is compressed"):
        pickles.load_tensors(str(file))


@pytest.mark.parametrize("num", [2**62, 2**40, 1000])
def test_a_storage_larger_than_its_file_is_refused(num: int, tmp_path: Path) -> None:
    data, large = torch_pickle(tmp_path), b"\x8a\x09" + num.to_bytes(9, "little")
    data = data.replace(b"K\x03tq", large + b"tq", 1).replace(b"K\x03\x85q", large + b"\x85q", 1)
    file = rewritten(saved({"a": torch.ones(3)}, tmp_path / "m.pt"), data_pkl=data)
    with pytest.raises(ValueError, match="refused"):
        pickles.check_weights(str(file), pickles.load_tensors(str(file)))


def torch_pickle(tmp_path: Path) -> bytes:
    with zipfile.ZipFile(saved({"a": torch.ones(3)}, tmp_path / "plain.pt")) as archive:
        data = archive.read("plain/data.pkl")
    assert b"K\x03tq" in data  # elements of the storage
    assert b"K\x03\x85q" in data  # shape of the tensor
    return data


@pytest.mark.parametrize(
    "value",
    [
        Calls(bytearray, 2**40),
        Calls(torch.empty, 2**40),
        GPTConfig(),
        torch.nn.Linear(2, 2),
        {(1, 2): torch.ones(2)},
        {"a": {3.5: torch.ones(2)}},
        {"a": torch.ones(2).to_sparse()},
    ],
)
def test_what_is_neither_tensor_nor_plain_value_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"refused: it (names|has)"):
        pickles.load_tensors(str(saved(value, tmp_path / "m.pt")))


def test_tensors_that_say_they_are_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    views = {"a": torch.ones(1).expand(2**40)}
    file = str(saved(views, tmp_path / "m.pt"))
    with pytest.raises(ValueError, match="more than the file holds"):
        pickles.check_weights(file, pickles.load_tensors(file))


@pytest.mark.parametrize("cut", [1, 100, 600])
def test_a_torn_archive_is_refused(cut: int, tmp_path: Path) -> None:
    file = saved({"a": torch.ones(300)}, tmp_path / "m.pt")
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(ValueError, match="refused"):
        pickles.load_tensors(str(file))


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    file = saved({"a": torch.ones(3), "b": torch.ones(2000)}, tmp_path / "m.pt")
    data = bytearray(file.read_bytes())
    central = data.rindex(b"PK\x01\x02", 0, data.index(b"m/data/1", data.index(b"PK\x01\x02")))
    small = data.rindex(b"PK\x01\x02", 0, data.index(b"m/data/0", data.index(b"PK\x01\x02")))
    data[small + 20 : small + 28] = data[central + 20 : central + 28]  # the sizes of the large one
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="refused"):
        pickles.check_weights(str(file), pickles.load_tensors(str(file)))


def test_older_files_and_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    (tmp_path / "text.pt").write_text("text")
    for name in ("old.pt", "script.pt", "text.pt"):
        with pytest.raises(ValueError, match="refused"):
            pickles.load_tensors(str(tmp_path / name))


def test_a_list_of_weights_is_refused(tmp_path: Path) -> None:
    file = saved([torch.ones(2)], tmp_path / "m.pt")
    with pytest.raises(ValueError, match="holds a list"):
        pickles.load_tensors(str(file))
    for weights in ({}, {"a": 3}, {"a": torch.ones(2).long()}, {2: torch.ones(2)}, None):
        with pytest.raises(ValueError, match=r"no weights|no tensor"):
            pickles.check_weights(str(file), weights)


def test_an_archive_with_a_comment_is_refused(tmp_path: Path) -> None:
    """An archive with a comment could have a second directory in it, which another reader takes."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    (tmp_path / "m.pt").write_bytes(buffer.getvalue())
    with zipfile.ZipFile(tmp_path / "m.pt", "a") as archive:
        archive.comment = b"comment"
    with pytest.raises(ValueError, match="comment"):
        pickles.load_tensors(str(tmp_path / "m.pt"))
