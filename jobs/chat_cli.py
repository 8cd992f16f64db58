"""Chat with a model in the terminal, in this process, without Ray.

python jobs/chat_cli.py  (the newest run)

python jobs/chat_cli.py --run d20 --stage sft --prompt "What is 12 * 34?"

/new starts a new conversation. An empty line, Ctrl-D or /quit ends the chat. Ctrl-C stops an answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raychat.cluster import Cluster

if TYPE_CHECKING:
    from raychat.engine.engine import Engine


@dataclass(frozen=True)
class Args:
    run: str | None = None  # name of the run; None = the one that wrote a chat checkpoint last
    stage: Literal["rl", "sft", "mid"] | None = None  # None = the latest that the run has reached
    prompt: str | None = None  # answer this one question and end; None = a conversation
    temperature: float = 0.7  # 0 = always the most likely token
    top_k: int | None = 50  # only among the k most likely tokens; None = all
    top_p: float | None = None  # only among the most likely tokens that hold this much probability; None = all
    max_new_tokens: int = 512  # of one answer
    seed: int | None = None  # the same seed gives the same answers; None = new ones every time
    cluster: Cluster = field(default_factory=Cluster)  # only its storage path matters here


def run(args: Args) -> str:
    """Chat, or answer the one prompt; return the text of the last answer."""
    from raychat.engine.engine import Engine
    from raychat.runs import find_checkpoint

    found = find_checkpoint(args.cluster.storage(), args.run, args.stage)
    engine = Engine.load(found.path, max_sequences=1)
    if args.prompt is not None:
        return _show(answer(engine, [{"role": "user", "content": args.prompt}], args))
    print(f"{found.name} from {found.path}\n/new: new conversation, empty line: end, Ctrl-C: stop the answer\n")
    return _converse(engine, args)


def _converse(engine: "Engine", args: Args) -> str:
    from raychat.chat.notation import content_of

    messages: list[dict[str, Any]] = []
    text = ""
    while (asked := _ask()) not in ("", "/quit"):
        if asked == "/new":
            messages = []
            continue
        question = {"role": "user", "content": asked}
        try:
            text = _show(answer(engine, [*messages, question], args))
        except ValueError as e:  # the conversation has outgrown the context
            print(f"{e}\n/new starts a new conversation\n")
            continue
        if text:
            messages += [question, {"role": "assistant", "content": content_of(text)}]
        print()
    return text


def _ask() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return ""


def _show(deltas: Iterator[str]) -> str:
    """Print an answer while it is generated; return its text, up to Ctrl-C."""
    text = ""
    try:
        for delta in deltas:
            print(delta, end="", flush=True)
            text += delta
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    print()
    return text


def answer(engine: "Engine", messages: list[dict[str, Any]], args: Args) -> Iterator[str]:
    """Yield the text of an answer while the engine generates it; closing the iterator cancels the request.

    Raises:
        ValueError: the conversation is longer than the context.
    """
    from raychat.chat.stream import TextStream
    from raychat.chat.template import render_prompt
    from raychat.engine.sampling import SamplingParams

    params = SamplingParams(args.temperature, args.top_k, args.top_p, args.max_new_tokens, args.seed)
    request = engine.add(render_prompt(engine.tokenizer, messages), params)
    text = TextStream(engine.tokenizer)
    try:
        while engine.busy:
            for event in engine.step():
                yield text.push(event.token)
        yield text.close()
    finally:
        engine.cancel(request)


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))
