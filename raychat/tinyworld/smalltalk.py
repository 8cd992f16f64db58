"""Small talk, and honest answers to what raychat cannot know, each with an offer of something that it can do."""

import random
from string import ascii_lowercase

from raychat.tinyworld.facts import asked
from raychat.tinyworld.phrases import draw, phrases, sections, words
from raychat.tinyworld.relations import relations
from raychat.tinyworld.turns import Turn
from raychat.tinyworld.words import spelling_words, strangers
from raychat.tinyworld.world import Fact, TinyWorld, subject_of

STRANGE_KINDS = ("people", "animals", "food", "things", "places")  # the lists of both strangers.txt and words.txt
SAID_FIRST = ("hello", "how are you", "thanks", "bye", "help")  # topics that begin or end most conversations
OFTEN = 4  # times as often as their wordings' number says


def small_talk_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Return small talk: topics of many wordings come more often, and most often what users say first."""
    topics = sections("smalltalk")
    weights = [len(said) * (OFTEN if title in SAID_FIRST else 1) for title, (said, _) in topics.items()]
    ((said, answers),) = rng.choices(list(topics.values()), weights)
    fields = _fields(rng)
    return [Turn(rng.choice(said).format_map(fields), rng.choice(answers).format_map(fields))]


def unknown_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Return a question about the real world, or for what the small world does not tell."""
    titles = sections("unknown").keys() - {"answers", "offers"}
    questions = [text for title in sorted(titles) for text in phrases("unknown", title)]
    return [Turn(rng.choice(questions).format_map(_fields(rng)), not_known(rng))]


def stranger_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Return a question as for a fact of the world, about someone or something that is not in it."""
    relation = rng.choice([relation for relation in relations() if relation.kind in STRANGE_KINDS])
    entity = rng.choice(strangers()[relation.kind])
    if rng.random() < 0.2:
        subject = subject_of(relation.kind, entity)
        return [Turn(draw(rng, "chats", f"about {relation.kind}", subject=subject), not_known(rng))]
    fact = Fact(entity, relation, rng.choice(relation.values))
    return [Turn(asked(fact, rng).asked, not_known(rng))]


def not_known(rng: random.Random) -> str:
    """Return an honest answer with an offer."""
    return draw(rng, "unknown", "answers", **_fields(rng))


def _fields(rng: random.Random) -> dict[str, object]:
    """Return the fields of smalltalk.txt and unknown.txt."""
    fields = _world_fields(rng) | {"offer": draw(rng, "unknown", "offers", **_world_fields(rng))}
    fields["mash"] = "".join(rng.choices(ascii_lowercase, k=rng.randint(3, 9)))
    for name, names in strangers().items():
        fields[f"strange_{name}" if name in STRANGE_KINDS else name] = rng.choice(names)
    for kind in ("people", "animals", "places"):
        *first, last = rng.sample(words(kind), 4)
        fields[kind] = f"{', '.join(first)} and {last}"
    return fields


def _world_fields(rng: random.Random) -> dict[str, object]:
    lists = {"person": "people", "animal": "animals", "place": "places", "food": "food"}
    fields: dict[str, object] = {name: rng.choice(words(kind)) for name, kind in lists.items()}
    return fields | {"word": rng.choice(spelling_words()), "a": rng.randint(11, 99), "b": rng.randint(2, 11)}
