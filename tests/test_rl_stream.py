"""One continuous batch: what it answers, new weights in the middle of answers, the versions of tokens."""

import pytest
import tiny
import tiny_rl
import torch
from tiny_rl import PARAMS, ascii_reward, ascii_task, assert_same

from raychat.engine.engine import Engine
from raychat.evals.generate import Question
from raychat.model.gpt import GPT
from raychat.model.linear import Linear
from raychat.rl.sampler import Sampler
from raychat.rl.step import Padding, logprobs_of, question_at
from raychat.rl.stream import Stream

WEIGHTS = tiny_rl.model().state_dict()
OTHER_WEIGHTS = {name: tensor + 0.05 for name, tensor in WEIGHTS.items()}


def question(place: int, samples: int = 3) -> Question:
    return question_at(ascii_task().problems, place, samples=samples, seed=0)


def sampler(model: GPT | None = None, max_sequences: int = 4) -> Sampler:
    engine = Engine(model or tiny_rl.model(), tiny.byte_tokenizer(), max_sequences=max_sequences)
    return Sampler(engine, ascii_reward, PARAMS)


def drain(stream: Stream) -> dict[int, list]:
    found = {}
    while groups := stream.finished():
        found |= groups
    return found


def test_answers_are_those_of_calls_and_join_at_any_step() -> None:
    stream = sampler().stream()
    stream.publish(7, WEIGHTS)
    stream.ask({0: question(0)})
    assert stream.finished(max_steps=2) == {}
    stream.ask({1: question(1), 2: question(2)})
    found = drain(stream)
    assert found.keys() == {0, 1, 2}
    for place, group in found.items():
        without = [rollout._replace(versions=()) for rollout in group]
        assert_same([[without]], [sampler().rollout([question(place)])])
        assert all(rollout.versions == [7] * len(rollout.completion) for rollout in group)


def test_weights_change_in_the_middle_of_answers_and_every_token_is_of_its_version() -> None:
    """The log-probability that is recorded for a token is that of the weights of its version."""
    stream = sampler().stream()
    stream.publish(3, WEIGHTS)
    stream.ask({0: question(0)})
    assert stream.finished(max_steps=2) == {}
    stream.publish(4, OTHER_WEIGHTS)
    (group,) = drain(stream).values()
    assert all(rollout.versions == [3, 3] + [4] * (len(rollout.completion) - 2) for rollout in group)
    assert all(len(rollout.completion) > 2 for rollout in group)

    group.sort(key=lambda rollout: -len(rollout.completion))
    padding, model = Padding(0, 64, 1, torch.device("cpu")), tiny_rl.model()
    by_version = {3: logprobs_of(model.nll, group, padding)}
    model.load_state_dict(OTHER_WEIGHTS)
    by_version[4] = logprobs_of(model.nll, group, padding)
    for i, rollout in enumerate(group):
        expected = [by_version[version][i][n] for n, version in enumerate(rollout.versions)]
        assert rollout.logprobs == pytest.approx(expected, abs=1e-4)
        assert rollout.logprobs != pytest.approx(by_version[3][i].tolist(), abs=1e-3)


def test_weights_of_a_shared_model_are_not_copied_and_change_the_answers() -> None:
    model = tiny_rl.model()
    shared = sampler(model)
    before = shared.rollout([question(0)])
    linear = [layer for layer in model.modules() if isinstance(layer, Linear)]
    read = [layer for layer in linear if layer.packed and layer.packed._weight.numel()]
    # the head, the gate of the smear, and the three matrices of each layer that are not joined, as q, k and v are
    assert len(read) == 2 + 3 * model.config.n_layer
    assert all(layer.packed._weight.data_ptr() == layer.weight.data_ptr() for layer in read)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05)
    shared.load_weights(model.state_dict())
    changed = shared.rollout([question(0)])
    assert changed != before
    separate = sampler()
    separate.load_weights(model.state_dict())
    assert [r.completion for r in separate.rollout([question(0)])[0]] == [r.completion for r in changed[0]]


def test_closed_stream_forgets_what_was_asked() -> None:
    one = sampler()
    stream = one.stream()
    stream.publish(0, WEIGHTS)
    stream.ask({0: question(0)})
    stream.finished(max_steps=1)
    stream.close()
    assert stream.finished() == {}
    assert not one.engine.busy
