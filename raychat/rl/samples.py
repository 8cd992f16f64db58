"""Answers of every step for people to read: `rollouts/step_000012.md` in the stage's folder."""

from collections.abc import Sequence

from raychat import paths
from raychat.evals.generate import Group
from raychat.report.markdown import fenced
from raychat.rl.step import has_signal
from raychat.tokenizer import Tokenizer

_NUM_QUESTIONS = 2  # of a step
_MAX_CHARS = 2000  # of a question or an answer


def write_samples(folder: str, number: int, groups: Sequence[Group], tokenizer: Tokenizer) -> None:
    """Write the best and the worst answer to some questions of step `number`, to those that teach something first."""
    parts = [f"# Step {number}"]
    for group in sorted(groups, key=lambda group: not has_signal(group))[:_NUM_QUESTIONS]:
        best, *others = sorted(group, key=lambda rollout: -rollout.reward)
        rewards = " ".join(f"{rollout.reward:g}" for rollout in (best, *others))
        parts += [f"## Rewards {rewards}", _quoted(tokenizer.decode(best.prompt))]
        for rollout in (best, *others[-1:]):
            parts += [f"Reward {rollout.reward:g}:", _quoted(rollout.text)]
    paths.write_text(paths.join(folder, "rollouts", f"step_{number:06d}.md"), "\n\n".join(parts) + "\n")


def _quoted(text: str) -> str:
    return fenced(text[:_MAX_CHARS], "")
