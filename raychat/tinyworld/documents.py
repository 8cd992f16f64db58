"""The pretraining documents: a mixture of stories, facts and lessons."""

import random
from collections.abc import Callable, Iterator

from raychat.tinyworld import lessons
from raychat.tinyworld.functions import function_page
from raychat.tinyworld.stories import story
from raychat.tinyworld.world import TinyWorld

# shares of the documents, not of the characters
MIXTURE: tuple[tuple[Callable[[TinyWorld, random.Random], str], int], ...] = (
    (story, 24),
    (lessons.fact_page, 12),
    (lessons.value_page, 6),
    (lessons.questions_and_answers, 10),
    (lessons.quiz, 8),
    (lessons.who_found_what, 3),
    (lessons.sums, 4),
    (lessons.times_table, 1),
    (lessons.counting, 2),
    (lessons.spelling, 8),
    (lessons.repeating, 8),
    (lessons.opposite_words, 1),
    (lessons.word_problems, 4),
    (function_page, 1),
)


def documents(world: TinyWorld, rng: random.Random) -> Iterator[str]:
    """Yield documents without end; some are equal."""
    makers, weights = zip(*MIXTURE, strict=True)
    while True:
        yield rng.choices(makers, weights)[0](world, rng)
