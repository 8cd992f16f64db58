"""Chat with a model in the terminal, in this process, without Ray.

python jobs/chat_cli.py  (the newest run)

python jobs/chat_cli.py --run d20 --stage sft --prompt "What is 12 * 34?"

python jobs/chat_cli.py --temperature 0 < questions.txt > answers.txt  (one conversation, a question a line)

/help lists the commands: other models and saved steps, settings, saving, taking back. Ctrl-C stops an answer, Ctrl-D
ends the chat.
"""

import signal
import sys
from dataclasses import dataclass, field
from typing import Literal

from raychat.cluster import Cluster


@dataclass(frozen=True)
class Args:
    run: str | None = None  # name of the run; None = the one that wrote a chat checkpoint last
    stage: Literal["rl", "sft", "mid", "base"] | None = None  # which model of the run; None = its latest, but not base
    prompt: str | None = None  # answer this one question and end; None = a conversation
    system: str = ""  # system prompt: what the model should know or do throughout the conversation
    temperature: float = 0.7  # of sampling: higher is more varied, 0 = always the most likely token
    top_k: int | None = 50  # sample only among the k most likely tokens; None or 0 = all
    top_p: float | None = None  # sample only among the most likely tokens that hold this much probability; None = all
    min_p: float | None = None  # sample only tokens at least this many times as likely as the likeliest; None = all
    max_tokens: int = 512  # longest answer, in tokens
    seed: int | None = None  # of sampling: the same seed gives the same answers; None = new ones every time
    cluster: Cluster = field(default_factory=Cluster)  # only its storage path matters here


def run(args: Args) -> str:
    """Chat, or answer the one prompt; return the text of the last answer.

    Raises:
        ValueError: there is no such checkpoint, a setting is out of its range, or the prompt outgrows the context.
    """
    from raychat.engine.sampling import SamplingParams
    from raychat.runs import find_checkpoint
    from raychat.serve.sampling_settings import SETTINGS, changed
    from raychat.serve.terminal import Terminal

    params = SamplingParams()
    for name in SETTINGS:
        params = changed(params, name, getattr(args, name))
    storage = args.cluster.storage()
    terminal = Terminal(storage, find_checkpoint(storage, args.run, args.stage), params)
    terminal.conversation.system = args.system
    if args.prompt is None:
        terminal.talk()
    else:
        terminal.show(terminal.conversation.ask(args.prompt))
    return terminal.text


if __name__ == "__main__":
    import tyro

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the reader of a pipe may end first, as `head` does
    try:
        run(tyro.cli(Args, description=__doc__))
    except ValueError as error:
        sys.exit(f"chat_cli: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
