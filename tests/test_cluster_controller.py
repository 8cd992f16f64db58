"""What raychat adds to Ray Train's controller, called with the controller's own states."""

import threading
from typing import Any

import pytest

from raychat.cluster.board import start_board
from raychat.cluster.controller import Room, on_state
from raychat.train.stop import Stopped

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def board(ray_cluster: None) -> Any:
    """The board of a stage that workers have taken."""
    import ray

    board = start_board()
    ray.get(board.post.remote(["stage"]))
    assert ray.get(board.next_stage.remote(0)) == (1, ["stage"])
    return board


def states() -> dict[str, Any]:
    from ray.train.v2._internal.execution.controller import state
    from ray.train.v2.api.preemption import PreemptionInfo

    info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [0]})
    error: Any = RuntimeError("a worker died")
    return {
        "running": state.RunningState(),
        "resizing": state.ResizingState(scaling_decision=Any),  # type: ignore[arg-type]
        "preempting": state.PreemptingState(preemption_info=info, detected_at_s=0),
        "restarting": state.RestartingState(training_failed_error=error),
    }


def test_the_controller_waits_with_another_number_of_workers_until_these_have_saved(board: Any) -> None:
    import ray

    known, callback = states(), on_state(board, "2 workers", 3600)
    resizing = threading.Thread(
        target=callback.after_controller_state_update, args=(known["running"], known["resizing"])
    )
    resizing.start()
    ray.get(board.stopping.remote(1))  # the workers are asked to stop
    assert resizing.is_alive()
    ray.get(board.finish.remote(Stopped("at step 3")))
    resizing.join()
    assert ray.get(board.next_stage.remote(0)) == (1, ["stage"])


def test_a_notice_lets_the_workers_end_and_a_restart_forgets_them(board: Any) -> None:
    import ray

    known, callback = states(), on_state(board, "2 workers", 3600)
    callback.after_controller_state_update(known["running"], known["running"])
    callback.after_controller_state_update(known["running"], known["preempting"])
    ray.get(board.stopping.remote(1))
    callback.after_controller_state_update(known["preempting"], known["restarting"])
    assert not ray.get(board.stop.remote())


def test_waiting_for_room_is_said_and_ends(ray_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    room = Room("99 workers of 1 CPU", max_wait_s=60)
    for now in (1000.0, 1029.0):
        room.wait(now)
    assert capsys.readouterr().out == ""
    room.wait(1031.0)
    assert capsys.readouterr().out.startswith("no room for 31 s for 99 workers of 1 CPU; free now: ")
    room.found()
    room.wait(1061.0)
    with pytest.raises(ValueError, match=r"^no room for 60 s for 99 workers.*--cluster\.max-wait-s higher"):
        room.wait(1121.0)
