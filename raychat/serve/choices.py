"""One choice of an answer: from the engine's events to deltas."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

from raychat.chat.stream import TextStream
from raychat.engine.request import Alternatives, Event, Finish, PromptLogprob
from raychat.serve.loop import Work
from raychat.serve.types import Delta, PartType, TokenLogprob
from raychat.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # what the OpenAI API writes for less; JSON has no minus infinity


class Choice:
    """Turn the events of one sequence into deltas.

    Args:
        prompt_tokens: of the whole request.
        stop: strings that end the answer.
        echo: begin the text with the prompt.
        only_echo: leave out what is generated; the engine generates one token at least.
    """

    def __init__(
        self,
        index: int,
        work: Work,
        tokenizer: Tokenizer,
        prompt_tokens: int,
        *,
        stop: Sequence[str] = (),
        echo: bool = False,
        only_echo: bool = False,
    ) -> None:
        self.index, self.work = index, work
        self.finish: Finish | None = None
        self._tokenizer, self._prompt_tokens, self._echo, self._only_echo = tokenizer, prompt_tokens, echo, only_echo
        self._text = TextStream(tokenizer, stop)
        self._count = 0  # tokens
        self._start = 0  # of the generated text in the answer, which may begin with the prompt
        self._end = 0  # of what has become deltas, from `_start` on
        self._new, self._logprobs = "", list[TokenLogprob]()  # for the next delta

    @property
    def done(self) -> bool:
        """The choice has its last token."""
        return self.finish is not None

    def push(self, event: Event) -> None:
        """Take the next event; there is none after the choice is done."""
        assert not self.done
        if self._echo:
            self._push_prompt(event.prompt or ())
            self._echo = False
        if self._only_echo:
            self.finish = "length"
            return
        self._count += 1
        start = self._start + self._text.length
        self._new += self._text.push(event.token)
        if event.logprob is not None and event.finish != "stop":  # the stop token is no part of the answer
            self._logprobs.append(self._scored(event.token, event.logprob, event.top, start))
        self.finish = "stop" if self._text.stopped else event.finish
        if self.finish:
            self._new += self._text.close()

    def deltas(self) -> Iterator[Delta]:
        """Yield what is new, one delta for each part of the text: one, as a rule."""
        end = self._end + len(self._new)
        bounds = [self._end, *(at for at, _ in self._text.parts if self._end < at < end), end]
        spans = list(pairwise(bounds))
        for begin, stop in spans:
            last = stop == end
            yield Delta(
                self._new[begin - self._end : stop - self._end],
                self._prompt_tokens,
                self._count,
                self.finish if last else None,
                self.index,
                self._part_at(begin),
                tuple(self._logprobs) if last else (),
            )
        self._end, self._new, self._logprobs = end, "", []

    def _part_at(self, position: int) -> PartType:
        return next((cast(PartType, part) for at, part in reversed(self._text.parts) if at <= position), "text")

    def _push_prompt(self, scores: tuple[PromptLogprob, ...]) -> None:
        """Put the prompt before the answer; the first of its tokens has no log-probability."""
        text = TextStream(self._tokenizer)
        for place, token in enumerate(self.work.prompt):
            start = text.length
            self._new += text.push(token)
            if self.work.params.prompt_logprobs is not None:
                logprob, top = scores[place - 1] if place else (None, ())
                self._logprobs.append(self._scored(token, logprob, top, start))
        self._new += text.close()
        self._start = text.length
        self._end = -self._start

    def _scored(self, token: int, logprob: float | None, top: Alternatives, offset: int) -> TokenLogprob:
        name, data = self._name(token)
        likeliest = tuple(TokenLogprob(*self._name(id), max(value, LEAST_LOGPROB)) for id, value in top)
        return TokenLogprob(name, data, None if logprob is None else max(logprob, LEAST_LOGPROB), likeliest, offset)

    def _name(self, token: int) -> tuple[str, bytes]:
        """Return a token as text and in bytes; bytes that are no text get a name, as in the OpenAI API."""
        data = self._tokenizer.decode_bytes([token])
        try:
            return data.decode(), data
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data
