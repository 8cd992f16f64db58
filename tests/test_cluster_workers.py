"""The board between driver and workers, as a plain object, and which errors end the training at once."""

import asyncio

import pytest

from raychat.cluster.workers import _Board, _one_attempt
from raychat.train.stop import Stopped


def test_a_stage_that_workers_have_taken_is_stopped_by_them() -> None:
    async def talk() -> None:
        board = _Board()
        await board.post(["stage"])
        assert await board.next_stage(0) == (1, ["stage"])
        stopping = asyncio.create_task(board.stopping(1))
        await asyncio.sleep(0)
        assert not stopping.done()
        assert await board.stop()
        await stopping
        await board.finish(Stopped("at step 3"))
        assert str(await board.next_event()) == "at step 3"
        assert await board.next_stage(1) is None
        assert await board.stop()  # the driver may say it again

    asyncio.run(talk())


def test_a_stage_that_no_worker_has_taken_is_not_begun() -> None:
    async def talk() -> None:
        board = _Board()
        await board.post(["stage"])
        assert not await board.stop()
        assert await board.next_stage(0) is None

    asyncio.run(talk())


def test_asking_whether_to_stop_ends_with_the_stage() -> None:
    async def talk() -> None:
        board = _Board()
        await board.post(["stage"])
        stopping = asyncio.create_task(board.stopping(1))
        await board.post(["the next one"])
        await stopping

    asyncio.run(talk())


@pytest.mark.parametrize("error", [ValueError("no such file"), FloatingPointError("NaN")])
def test_an_error_that_would_come_again_ends_the_training(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        _one_attempt().after_exception(None, {0: RuntimeError("connection closed by peer"), 1: error})


def test_a_worker_that_died_is_replaced() -> None:
    _one_attempt().after_exception(None, {0: RuntimeError("connection closed by peer"), 1: OSError("disk")})
