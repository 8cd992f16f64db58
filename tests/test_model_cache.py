"""The key/value cache: any way of reading sequences into it gives the logits of a model without one."""

import random
from typing import Any

import pytest
import torch
from tiny import extend, first_generation, gpt2, random_model
from torch.utils._python_dispatch import TorchDispatchMode

from raychat.model.base import Model

MODELS = {
    "current": random_model(sequence_len=600),  # windows of 256, 600 and 600
    "first": first_generation(sequence_len=300),
    "gpt2": gpt2(sequence_len=300),
}
NUM = 4  # sequences


def ids(length: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(265) for _ in range(length)] for _ in range(NUM)]


@torch.inference_mode()
def whole(model: Model, rows: list[list[int]]) -> torch.Tensor:
    return model(torch.tensor(rows))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MODELS)
def test_any_schedule_gives_the_logits_of_the_whole(name: str, seed: int) -> None:
    """Single tokens beside chunks of any size, slots that change places, and slots that grow on the way."""
    model, draw = MODELS[name], random.Random(seed)
    length = model.config.sequence_len - draw.randrange(100)
    rows, cache = ids(length, seed), model.new_cache(NUM + 1, 8)
    at, order, got = [0] * NUM, list(range(NUM)), [[] for _ in rows]  # order: the sequence in each slot
    while min(at) < length:
        a, b = draw.choices(range(NUM), k=2)
        cache.swap(a, b)
        order[a], order[b] = order[b], order[a]
        num_singles = draw.randrange(3)
        while any(at[row] >= length for row in order[:num_singles]):
            num_singles -= 1
        sizes = [1] * num_singles
        sizes += [min(draw.randrange(cache.max_chunk + 1), length - at[row]) for row in order[num_singles:]]
        read = [rows[row][at[row] : at[row] + n] for row, n in zip(order, sizes, strict=True)]
        need = max(at[row] + n for row, n in zip(order, sizes, strict=True))
        if need > cache.max_len:
            cache.resize(NUM + 1, min(max(need, 2 * cache.max_len), model.config.sequence_len))
            continue  # with the size of chunks that fits now
        if not any(read):
            continue
        chunks = {slot: read[slot] for slot in range(num_singles, NUM) if read[slot]}
        logits = extend(model, cache, [tokens[0] for tokens in read[:num_singles]], chunks)
        for slot, part in zip([*range(num_singles), *chunks], logits.split([n for n in sizes if n]), strict=True):
            got[order[slot]].append(part)
            at[order[slot]] += len(part)
    for row, expected in zip(got, whole(model, rows), strict=True):
        torch.testing.assert_close(torch.cat(row), expected, rtol=1e-4, atol=1e-4)  # fp32 sums in another order


@pytest.mark.parametrize("length", [1, 100, 256, 400])
def test_a_copied_prefix_is_continued(length: int) -> None:
    model, (row, other, *_) = MODELS["current"], ids(450)
    cache = model.new_cache(3)
    for start in range(0, 450, 150):
        extend(model, cache, [], {2: row[start : start + 150]})
    assert cache.holds(2, length)
    joined = row[:length] + other[:50]
    assert cache.match(torch.tensor(joined).numpy()).tolist() == [0, 0, length]
    cache.copy(2, 0, length)
    logits = extend(model, cache, [], {0: other[:50]})
    torch.testing.assert_close(logits, whole(model, [joined])[0, length:], rtol=1e-4, atol=1e-4)


def test_a_prefix_whose_window_is_gone_is_not_held() -> None:
    """A window of 256 keeps 512 entries, and drops to 256 when they are full."""
    model, (row, *_) = MODELS["current"], ids(520)
    cache = model.new_cache(1)
    for start in range(0, 520, 130):
        extend(model, cache, [], {0: row[start : start + 130]})
    assert [n for n in range(521) if cache.holds(0, n)] == list(range(390, 521))
    assert [tensor.size(1) for tensor in cache.keys] == [512, 600, 600]


def test_a_reset_slot_starts_anew() -> None:
    model, (row, other, *_) = MODELS["current"], ids(40)
    cache = model.new_cache(1)
    extend(model, cache, [], {0: other})
    cache.reset(0)
    torch.testing.assert_close(extend(model, cache, [], {0: row}), extend(model, model.new_cache(1), [], {0: row}))


def test_match_is_the_longest_common_beginning() -> None:
    model = MODELS["current"]
    cache = model.new_cache(3)
    extend(model, cache, [7], {1: [1, 2, 3], 2: [1, 2, 4, 5]})
    assert cache.match(torch.tensor([1, 2, 4]).numpy()).tolist() == [0, 2, 3]
    assert cache.match(torch.tensor([7]).numpy()).tolist() == [1, 0, 0]
    cache.reset(2)
    assert cache.match(torch.tensor([1, 2, 4, 5]).numpy()).tolist() == [0, 2, 0]


def test_what_does_not_fit_is_refused_and_leaves_the_cache() -> None:
    model = MODELS["current"]
    cache = model.new_cache(1, 8)
    extend(model, cache, [1], {})
    with pytest.raises(ValueError, match=r"up to positions \[9\] does not fit"):
        extend(model, cache, [], {0: [1] * 8})
    with pytest.raises(ValueError, match="chunks of at most 256"):
        extend(model, model.new_cache(1), [], {0: [1] * 257})
    assert cache.lengths.tolist() == [1]


class Largest(TorchDispatchMode):
    """Note how many elements the largest new tensor has; a view is none."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view:
            known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
            if out.untyped_storage().data_ptr() not in known:  # else it was changed in place
                self.elements = max(self.elements, out.numel())
        return out


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_single_tokens_copies_no_layer(name: str) -> None:
    model, rows = MODELS[name], ids(200)
    model.pack()
    cache = model.new_cache(NUM, 300)
    while (at := int(cache.lengths[0])) < 195:
        extend(model, cache, [], {i: row[at : min(at + 50, 195)] for i, row in enumerate(rows)})
    extend(model, cache, [row[195] for row in rows], {})  # lays the weights out
    with Largest() as largest:
        extend(model, cache, [row[196] for row in rows], {})
    keys = NUM * 197 * cache.keys[0][0, 0].numel()
    assert 0 < largest.elements < keys
