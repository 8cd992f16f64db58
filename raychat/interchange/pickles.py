"""Read pickles and PyTorch's files that anybody may have written: they become plain values and tensors, nothing runs.

`read` is a small pickle machine of its own. It knows the opcodes that plain values need, calls only the functions that
its caller admits, and refuses everything else by name. Python's own unpickler would call any function, allocate what a
length says before it looks for the bytes, and hash tuples of tuples until the stack ends.
"""

import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from raychat import paths

MAX_BYTES = 2**28  # of a pickle without tensors; a tokenizer of a million tokens has 30 MB

Admitted = Mapping[str, Callable[..., Any]]  # "module name" -> what is called in its place

_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME", "STOP"}

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_TENSORS: Admitted = {  # what a state dict, an optimizer's state and plain settings need
    "collections OrderedDict": dict,
    "torch._utils _rebuild_tensor_v2": lambda *_: None,
    "torch._utils _rebuild_parameter": lambda *_: None,
    **{f"torch {kind}Storage": lambda *_: None for kind in _STORAGES},
}


def read(data: bytes, admitted: Admitted) -> Any:
    """Return what a pickle holds: None, bool, int, float, str, bytes, tuple, list, dict, and what `admitted` returns.

    A state that is given to an object updates it, so that what `admitted` returns for a class must be a dict.

    Raises:
        ValueError: It is torn, or holds an opcode, a class or a function beyond these.
    """
    machine = _Machine(admitted)
    try:
        for opcode, arg, position in pickletools.genops(data):
            machine.do(opcode.name, arg, position)
        return machine.stack.pop()
    except _Refused:
        raise
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(f"it is no whole pickle: {error!r:.200}") from error


class _Refused(ValueError):
    """The pickle wants more than plain values."""


class _Name(str):
    """A class or function that is admitted."""


class _Machine:
    """The stack of a pickle that is being read."""

    def __init__(self, admitted: Admitted) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._admitted = admitted

    def do(self, opcode: str, arg: Any, position: int | None) -> None:
        """Do what one opcode says. Source: pickletools.opcodes."""
        stack = self.stack
        if opcode in _VALUES:
            stack.append(arg)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if arg is None else arg] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[arg])
        elif opcode == "MARK":
            self._marks.append(len(stack))
        elif opcode in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if opcode == "EMPTY_DICT" else [])
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if opcode == "SETITEM" else self._pop_to_mark()
            self._update(dict(zip(map(_key, items[::2]), items[1::2], strict=True)))
        elif opcode in ("APPEND", "APPENDS"):
            _expect(stack[-2 if opcode == "APPEND" else self._marks[-1] - 1], list)
            items = self._pop(1) if opcode == "APPEND" else self._pop_to_mark()
            stack[-1].extend(items)
        elif opcode in _TUPLES or opcode == "TUPLE":
            items = self._pop(_TUPLES[opcode]) if opcode in _TUPLES else self._pop_to_mark()
            stack.append(tuple(items))
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            self._push_global(arg if opcode == "GLOBAL" else " ".join(map(str, self._pop(2))))
        elif opcode in ("REDUCE", "NEWOBJ"):
            name, args = self._pop(2)
            stack.append(self._admitted[_expect(name, _Name)](*_expect(args, tuple)))
        elif opcode == "BINPERSID":  # a tensor's storage
            stack[-1] = None
        elif opcode == "BUILD":
            self._update(_expect(stack.pop(), dict))
        elif opcode not in _NOTHING:
            raise _Refused(f"its opcode {opcode} at byte {position} is none of plain values")

    def _push_global(self, name: str) -> None:
        if name not in self._admitted:
            expected = ", ".join(sorted(self._admitted)) or "none"
            raise _Refused(
                f"it names {name.replace(' ', '.', 1)!r:.200}; expected no classes and functions but {expected}"
            )
        self.stack.append(_Name(name))

    def _update(self, items: dict[Any, Any]) -> None:
        _expect(self.stack[-1], dict).update(items)

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("stack is empty")
        cut = len(self.stack) - count
        items = self.stack[cut:]
        del self.stack[cut:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        return self._pop(len(self.stack) - self._marks.pop())


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _Refused(f"it uses a {type(value).__name__} as a {kind.__name__.strip('_').lower()}")
    return value


def _key(value: Any) -> Any:
    """Return a key of a dictionary. A tuple of tuples of tuples would be hashed recursively, until the stack ends."""
    if not isinstance(value, str | bytes | int):
        raise _Refused(f"it has a {type(value).__name__} as the key of a dictionary; expected str, bytes or int")
    return value


def read_file(path: str, admitted: Admitted) -> Any:
    """Return what a pickle of at most `MAX_BYTES` holds, as `read` does. Raises ValueError, with the file's name."""
    if (size := paths.size(path)) > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; expected a pickle of at most {MAX_BYTES:,}")
    try:
        return read(paths.read_bytes(path), admitted)
    except ValueError as error:
        raise ValueError(f"{path} is refused: {error}") from error


def load_tensors(path: str) -> dict[str, Any]:
    """Return the dictionary that `torch.save` wrote; its tensors stay in the file until they are read.

    Raises:
        ValueError: The file is compressed or torn, or holds anything but tensors and plain values in a dictionary.
    """
    file = paths.local(path)
    try:
        _check_archive(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except (
        ValueError,
        OSError,
        RuntimeError,
        LookupError,
        TypeError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(f"{path} is refused: {str(error) or repr(error):.500}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; expected a dictionary of tensors")
    return loaded


def _check_archive(file: str) -> None:
    """Check, before PyTorch reads the file, that its entries are what they say and that its pickle is a plain one."""
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not a zip archive, which torch.save writes since PyTorch 1.6, or it is torn")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if archive.comment or len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("it is a zip archive with a comment, or with two entries of one name")
        for entry in entries:
            if (
                entry.compress_type != zipfile.ZIP_STORED
                or entry.file_size != entry.compress_size
                or entry.flag_bits & 1
            ):
                raise ValueError(
                    f"its entry {entry.filename!r:.100} is compressed; torch.save stores entries as they are"
                )
            archive.open(entry).close()  # compares the header before the entry
        if sum(entry.file_size for entry in entries) > paths.size(file):
            raise ValueError("its entries are larger than the file, so they overlap")
        pickles = [entry for entry in entries if entry.filename.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} entries data.pkl; expected one, as torch.save writes")
        if pickles[0].file_size > MAX_BYTES:
            raise ValueError(f"its data.pkl has {pickles[0].file_size:,} bytes; expected at most {MAX_BYTES:,}")
        read(archive.read(pickles[0]), _TENSORS)


def check_weights(path: str, weights: Any) -> dict[str, Tensor]:
    """Return a state dict of tensors by name.

    Raises:
        ValueError: It is something else, or its tensors say that they are larger than the file: views of one another.
    """
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{path} holds no weights: got {type(weights).__name__}, expected tensors by name")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ValueError(f"{path} has {name!r:.100}, which is no tensor of floating point numbers")
    # GPT-2's head is its embedding, in one storage: twice is enough.
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    if num_bytes > 2 * paths.size(path):
        raise ValueError(f"{path} has {num_bytes:,} bytes of weights, more than the file holds")
    return weights
