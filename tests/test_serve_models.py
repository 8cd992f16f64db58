"""Many checkpoints behind one backend: real ones of tiny models, each of which answers with letters of its own."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import toy
from tiny import byte_tokenizer, scripted_model

from raychat import paths
from raychat.checkpoint import save_checkpoint
from raychat.runs import Found
from raychat.serve import catalog, models, pool
from raychat.serve.catalog import Catalog
from raychat.serve.models import Models
from raychat.serve.service import ChatService, card_of
from raychat.serve.types import ChatRequest, Delta, DetokenizeRequest, Failure, TokenizeRequest

TOKENIZER = byte_tokenizer()
START = TOKENIZER.special["<|assistant_start|>"]


@pytest.fixture(autouse=True)
def fresh_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage is read at every question: tests write and ask at once. Newer weights have time to load."""
    monkeypatch.setattr(catalog, "REFRESH_S", 0.0)
    monkeypatch.setattr(models, "NEWER_TIMEOUT_S", 60.0)


def write(storage: Path, stage: str, step: int, letters: str, run: str = "tiny") -> str:
    """Write a checkpoint that repeats two letters until the context is full."""
    first, second = letters.encode()
    model = scripted_model([[START, first, second, first]])
    return save_checkpoint(str(storage / "runs" / run / stage), model, None, TOKENIZER, toy.meta(step, model), keep=9)


def flip_a_bit(file: Path) -> None:
    """Damage a file in a way that its size does not show."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


class Loader:
    """Loads checkpoints, and remembers which; waits before a path in `gates`, and fails where there is an error."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.engines: list[weakref.ref[object]] = []

    def __call__(self, found: Found) -> ChatService:
        if gate := self.gates.get(found.path):
            assert gate.wait(200)
        service = ChatService.load(found.path, card_of(found), max_sequences=2)
        self.engines.append(weakref.ref(service._engine.model))
        self.loaded.append(found.id)
        return service

    @property
    def alive(self) -> int:
        gc.collect()
        return sum(engine() is not None for engine in self.engines)


def served(storage: Path, max_loaded: int = 2, run: str | None = None) -> tuple[Models, Loader]:
    loader = Loader()
    return Models(Catalog(str(storage), "tiny-sft", run), loader, max_loaded), loader


def request(model: str | None, tokens: int = 4) -> ChatRequest:
    fields = {"model": model, "messages": [{"role": "user", "content": "?"}], "temperature": 0, "max_tokens": tokens}
    return ChatRequest.model_validate(fields)


async def ask(backend: Models, model: str | None = None) -> str | Failure:
    text = ""
    async for delta in backend.stream(request(model)):
        if isinstance(delta, Failure):
            return delta
        text += delta.text
    return text


async def begin(backend: Models, model: str | None = None) -> tuple[str, Callable[[], Awaitable[str]]]:
    """Begin an answer; return its first text, and what reads the rest. Until then the model is in use."""
    deltas = backend.stream(request(model, 100))
    first = await anext(deltas)
    assert isinstance(first, Delta)

    async def rest() -> str:
        return "".join([delta.text async for delta in deltas if isinstance(delta, Delta)])

    return first.text, rest


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen within 200 s")


def test_every_checkpoint_has_a_card_the_default_first(tmp_path: Path) -> None:
    write(tmp_path, "base", 100, "ab")
    write(tmp_path, "sft", 100, "cd")
    write(tmp_path, "sft", 200, "ef")
    write(tmp_path, "rl", 10, "gh", run="other")
    paths.write_json(str(tmp_path / "runs" / "tiny" / "rl" / "step_000001" / "meta.json"), {"format": 99})
    cards = asyncio.run(served(tmp_path)[0].cards())
    assert [card.id for card in cards] == ["tiny-sft", "other-rl", "tiny-base", "tiny-sft@100"]
    newest, old = cards[0], cards[3]
    assert (newest.run, newest.stage, newest.step, newest.latest) == ("tiny", "sft", 200, True)
    assert (old.step, old.latest, old.max_model_len) == (100, False, 128)
    only = asyncio.run(served(tmp_path, run="other")[0].cards())
    assert [card.id for card in only] == ["other-rl"]


def test_cards_suggest_what_the_evaluation_of_their_stage_found_answered_well(tmp_path: Path) -> None:
    write(tmp_path, "base", 100, "ab")
    write(tmp_path, "sft", 100, "cd")
    write(tmp_path, "sft", 200, "ef")
    backend, evaluated = served(tmp_path)[0], str(tmp_path / "runs" / "tiny" / "sft" / "eval.json")

    def suggested() -> dict[str, list[str]]:
        return {card.id: card.suggestions for card in asyncio.run(backend.cards())}

    assert suggested() == {"tiny-sft": [], "tiny-sft@100": [], "tiny-base": []}
    for ideas in (["What is 2 + 2?"], ["Who are you?", "Spell fox."]):  # it may be evaluated anew
        paths.write_json(evaluated, {"suggestions": ideas})
        assert suggested() == {"tiny-sft": ideas, "tiny-sft@100": ideas, "tiny-base": []}
    Path(evaluated).write_text("{")  # it is being written
    assert suggested() == {"tiny-sft": [], "tiny-sft@100": [], "tiny-base": []}
    texts = [{"prompt": f"Once {i}", "text": "..."} for i in range(6)]
    paths.write_json(str(tmp_path / "runs" / "tiny" / "base" / "eval.json"), {"samples": texts})
    assert suggested()["tiny-base"] == ["Once 0", "Once 1", "Once 2", "Once 3"]


def test_each_checkpoint_answers_with_its_own_weights(tmp_path: Path) -> None:
    write(tmp_path, "base", 100, "ab")
    write(tmp_path, "sft", 100, "cd")
    write(tmp_path, "sft", 200, "ef")
    backend, loader = served(tmp_path)
    asked = [None, "raychat", "tiny-sft", "tiny-sft@200", "tiny-sft@100", "tiny-base", "tiny-base@100"]

    async def answers() -> list[str | Failure]:
        return [await ask(backend, model) for model in asked]

    assert asyncio.run(answers()) == ["efef"] * 4 + ["cdcd"] + ["abab"] * 2
    assert loader.loaded == ["tiny-sft", "tiny-sft@100", "tiny-base"]


def test_unknown_model_is_404(tmp_path: Path) -> None:
    write(tmp_path, "sft", 100, "ab")
    write(tmp_path, "sft", 100, "ab", run="other")
    backend, loader = served(tmp_path, run="tiny")
    for name in ("tiny-rl", "other-sft", "tiny-sft@7", "../runs/tiny-sft"):
        failure = asyncio.run(ask(backend, name))
        assert isinstance(failure, Failure)
        assert (failure.status, failure.code) == (404, "model_not_found")
        assert "this server has 'tiny-sft'" in failure.message
    assert loader.loaded == []


def test_tokenize_and_detokenize_use_the_model_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "sft", 100, "ab")
    backend, _ = served(tmp_path)

    async def both() -> None:
        tokens = await backend.tokenize(TokenizeRequest(prompt="hi", model="tiny-sft@100", add_special_tokens=False))
        assert not isinstance(tokens, Failure)
        assert tokens.tokens == list(b"hi")
        text = await backend.detokenize(DetokenizeRequest(tokens=tokens.tokens))
        assert not isinstance(text, Failure)
        assert text.prompt == "hi"
        missing = await backend.tokenize(TokenizeRequest(prompt="hi", model="tiny-rl"))
        assert isinstance(missing, Failure)
        assert missing.status == 404

    asyncio.run(both())


def test_concurrent_askers_wait_for_one_load(tmp_path: Path) -> None:
    write(tmp_path, "sft", 100, "ab")
    backend, loader = served(tmp_path)

    async def together() -> list[str | Failure]:
        return await asyncio.gather(*(ask(backend) for _ in range(5)))

    assert asyncio.run(together()) == ["abab"] * 5
    assert loader.loaded == ["tiny-sft"]


def test_other_models_answer_while_one_loads(tmp_path: Path) -> None:
    write(tmp_path, "sft", 100, "ab")
    slow = write(tmp_path, "base", 100, "cd")
    backend, loader = served(tmp_path)
    gate = loader.gates[slow] = threading.Event()

    async def both() -> None:
        waiting = asyncio.create_task(ask(backend, "tiny-base"))
        assert await ask(backend) == "abab"
        assert not waiting.done()
        gate.set()
        assert await waiting == "cdcd"

    asyncio.run(both())


def test_asker_that_goes_away_does_not_end_the_load_for_others(tmp_path: Path) -> None:
    slow = write(tmp_path, "sft", 100, "ab")
    backend, loader = served(tmp_path)
    gate = loader.gates[slow] = threading.Event()

    async def two() -> None:
        first, second = asyncio.create_task(ask(backend)), asyncio.create_task(ask(backend))
        await until(lambda: backend.loaded() == ["tiny-sft"])
        first.cancel()
        gate.set()
        assert await second == "abab"

    asyncio.run(two())
    assert loader.loaded == ["tiny-sft"]


def test_least_recently_used_model_is_unloaded_and_its_memory_freed(tmp_path: Path) -> None:
    for stage in ("base", "sft", "rl"):
        write(tmp_path, stage, 100, "ab")
    backend, loader = served(tmp_path, max_loaded=2)

    def num_threads() -> int:
        return sum(thread.name == "engine" for thread in threading.enumerate())

    before = num_threads()

    async def in_turn() -> None:
        for model in ("tiny-base", "tiny-sft", "tiny-base", "tiny-rl"):
            await ask(backend, model)
        assert backend.loaded() == ["tiny-base", "tiny-rl"]
        await until(lambda: loader.alive == 2)
        assert num_threads() == before + 2

    asyncio.run(in_turn())


def test_model_in_use_is_not_unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "sft", 100, "ab")
    write(tmp_path, "base", 100, "cd")
    backend, _ = served(tmp_path, max_loaded=1)

    async def three() -> None:
        text, rest = await begin(backend)
        monkeypatch.setattr(pool, "ROOM_TIMEOUT_S", 0.05)
        refused = await ask(backend, "tiny-base")
        assert isinstance(refused, Failure)
        assert (refused.status, "in use" in refused.message) == (429, True)
        monkeypatch.setattr(pool, "ROOM_TIMEOUT_S", 200)
        waiting = asyncio.create_task(ask(backend, "tiny-base"))
        await asyncio.sleep(0.05)
        assert set(text + await rest()) == {"a", "b"}
        assert await waiting == "cdcd"
        assert backend.loaded() == ["tiny-base"]

    asyncio.run(three())


def test_newer_checkpoint_answers_new_requests_and_running_ones_finish_on_the_old(tmp_path: Path) -> None:
    write(tmp_path, "sft", 100, "ab")
    backend, loader = served(tmp_path, max_loaded=1)

    async def across() -> None:
        text, rest = await begin(backend)
        write(tmp_path, "sft", 200, "cd")
        assert await ask(backend) == "cdcd"
        assert await ask(backend, "tiny-sft@200") == "cdcd"
        assert loader.alive == 2
        assert set(text + await rest()) == {"a", "b"}
        await until(lambda: loader.alive == 1)

    asyncio.run(across())
    assert loader.loaded == ["tiny-sft", "tiny-sft"]


def test_run_trained_anew_at_the_same_step_is_newer(tmp_path: Path) -> None:
    path = write(tmp_path, "sft", 100, "ab")
    backend, _ = served(tmp_path)

    async def again() -> None:
        assert await ask(backend) == "abab"
        shutil.rmtree(path)
        write(tmp_path, "sft", 100, "cd")
        assert await ask(backend) == "cdcd"

    asyncio.run(again())


def test_older_weights_answer_while_newer_ones_load_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "NEWER_TIMEOUT_S", 0.05)
    write(tmp_path, "sft", 100, "ab")
    backend, loader = served(tmp_path, max_loaded=1)

    async def meanwhile() -> None:
        assert await ask(backend) == "abab"
        gate = loader.gates[write(tmp_path, "sft", 200, "cd")] = threading.Event()
        assert await ask(backend) == "abab"
        gate.set()
        await until(lambda: len(loader.loaded) == 2)
        await until(lambda: loader.alive == 1)  # the old one is unloaded when the new one is in service
        assert await ask(backend) == "cdcd"

    asyncio.run(meanwhile())


def test_broken_newer_checkpoint_leaves_the_older_one_in_service(tmp_path: Path) -> None:
    write(tmp_path, "sft", 100, "ab")
    backend, _ = served(tmp_path)

    async def with_broken() -> None:
        assert await ask(backend) == "abab"
        broken = Path(write(tmp_path, "sft", 200, "cd"))
        flip_a_bit(broken / "model.safetensors")
        assert [await ask(backend) for _ in range(3)] == ["abab"] * 3
        refused = await ask(backend, "tiny-sft@200")
        assert isinstance(refused, Failure)
        assert (refused.status, "safetensors" in refused.message) == (503, True)
        assert await ask(backend) == "abab"

    asyncio.run(with_broken())


def test_newer_checkpoint_without_room_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are saved faster than they load: the second finds its room taken by the first, which is broken."""
    monkeypatch.setattr(models, "NEWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(pool, "ROOM_TIMEOUT_S", 0.05)
    write(tmp_path, "sft", 100, "ab")
    backend, loader = served(tmp_path, max_loaded=1)

    async def saved() -> None:
        assert await ask(backend) == "abab"
        broken = write(tmp_path, "sft", 200, "cd")
        flip_a_bit(Path(broken, "model.safetensors"))
        gate = loader.gates[broken] = threading.Event()
        assert await ask(backend) == "abab"
        write(tmp_path, "sft", 300, "ef")
        assert await ask(backend) == "abab"
        gate.set()
        await until(lambda: len(backend.loaded()) == 1)
        monkeypatch.setattr(models, "NEWER_TIMEOUT_S", 60.0)
        assert await ask(backend) == "efef"

    asyncio.run(saved())


def test_checkpoint_deleted_meanwhile_is_404_and_the_stage_goes_on(tmp_path: Path) -> None:
    write(tmp_path, "sft", 100, "ab")
    newest = write(tmp_path, "sft", 200, "cd")
    backend, loader = served(tmp_path)
    gate = loader.gates[newest] = threading.Event()

    async def deleted() -> None:
        asked = [asyncio.create_task(ask(backend, model)) for model in ("tiny-sft", "tiny-sft@200")]
        await until(lambda: bool(backend.loaded()))
        shutil.rmtree(newest)  # found, but not loaded yet
        gate.set()
        text, failure = await asyncio.gather(*asked)
        assert text == "abab"
        assert isinstance(failure, Failure)
        assert failure.status == 404
        assert await ask(backend, "tiny-sft@100") == "abab"

    asyncio.run(deleted())


def test_failed_engine_is_loaded_again(tmp_path: Path) -> None:
    write(tmp_path, "sft", 100, "ab")
    backend, loader = served(tmp_path)

    async def broken() -> None:
        assert await ask(backend) == "abab"
        model = loader.engines[0]()
        model.wte.weight.data.fill_(float("nan"))  # type: ignore[union-attr]
        failure = await ask(backend)
        assert isinstance(failure, Failure)
        assert failure.status == 500
        with pytest.raises(RuntimeError, match="the engine has failed"):
            await backend.check()
        assert await ask(backend, "tiny-sft@100") == "abab"
        await backend.check()

    asyncio.run(broken())
    assert loader.loaded == ["tiny-sft", "tiny-sft"]


def test_statistics_name_each_model_in_memory(tmp_path: Path) -> None:
    write(tmp_path, "sft", 100, "ab")
    write(tmp_path, "base", 100, "ab")
    backend, _ = served(tmp_path)

    async def metrics() -> str:
        await ask(backend)
        await ask(backend, "tiny-base")
        return await backend.metrics()

    text = asyncio.run(metrics())
    assert 'model="tiny-sft"' in text
    assert 'model="tiny-base"' in text


def test_storage_that_fails_for_a_moment_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "sft", 100, "ab")
    backend, _ = served(tmp_path)

    def fails(*_: object) -> None:
        raise OSError("the network is away")

    async def away() -> None:
        assert await ask(backend) == "abab"
        monkeypatch.setattr(catalog, "checkpoint_named", fails)
        assert await ask(backend) == "abab"

    asyncio.run(away())


def test_there_must_be_room_for_one_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_loaded is 0"):
        served(tmp_path, max_loaded=0)


def test_preload_says_what_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, "sft", 100, "ab")
    backend, _ = served(tmp_path)
    asyncio.run(backend.preload())
    assert backend.loaded() == ["tiny-sft"]
    flip_a_bit(Path(path, "model.safetensors"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        asyncio.run(served(tmp_path)[0].preload())
