"""The pretraining documents: a mixture of stories, facts and lessons, no document twice."""

import random
from collections.abc import Iterator

from raychat.tinyworld import functions, lessons
from raychat.tinyworld.stories import story
from raychat.tinyworld.world import World

# shares of the documents, not of the characters
MIXTURE: tuple[tuple[lessons.Lesson, int], ...] = (
    (story, 24),
    (lessons.fact_page, 12),
    (lessons.value_page, 6),
    (lessons.questions_and_answers, 10),
    (lessons.quiz, 30),
    (lessons.who_has_what, 3),
    (lessons.sums, 4),
    (lessons.times_table, 1),
    (lessons.counting, 2),
    (lessons.spelling, 4),
    (lessons.opposites, 1),
    (lessons.word_problems, 4),
    (lambda world, rng: functions.page(rng), 1),
)


def documents(world: World, rng: random.Random, seen: set[str]) -> Iterator[str]:
    """Yield documents without end, none that is in `seen`, which grows by each."""
    makers, weights = zip(*MIXTURE, strict=True)
    while True:
        text = rng.choices(makers, weights)[0](world, rng)
        if text not in seen:
            seen.add(text)
            yield text
