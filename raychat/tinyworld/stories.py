"""Stories that agree with the facts of the world; plots.txt lists the fields."""

import random

from raychat.tinyworld.phrases import phrases, sections, words
from raychat.tinyworld.words import article, number_name, pronouns, upper_first
from raychat.tinyworld.world import TinyWorld


def story(world: TinyWorld, rng: random.Random) -> str:
    """Return a story of one or two paragraphs."""
    fields = _cast(world, rng, rng.choice(words("people")), rng.choice(words("animals")))
    beats = rng.choice(list(sections("plots").values()))
    opening = rng.choice(phrases("stories", "openings"))
    habits = " ".join(rng.sample(phrases("stories", "habits"), rng.choice((1, 2, 2, 3))))
    middle = " ".join(rng.choice(beat) for beat in beats)
    gap = rng.choice((" ", "\n\n"))
    page = rng.choice(phrases("stories", "pages"))
    text = f"{opening} {habits}{gap}{middle} {rng.choice(phrases('stories', 'endings'))}"
    return page.format_map({**fields, "story": text.format_map(fields)})


def short_story(
    world: TinyWorld, rng: random.Random, hero: str | None = None, animal: str | None = None, topic: str | None = None
) -> str:
    """Return a story of three to six sentences, short enough for an answer in a chat, about a topic if one is given."""
    fields = _cast(world, rng, hero or rng.choice(words("people")), animal or rng.choice(words("animals")))
    plots = sections("plots")
    beats = plots["the animal"] if animal else rng.choice(list(plots.values()))
    if topic:
        beats = sections("stories")["about a topic"]
        fields |= {"topic": topic, "a_topic": article(topic)}
    middle = [rng.choice(beat) for beat in beats[: rng.choice((2, 3))]]
    opening, ending = (rng.choice(phrases("stories", part)) for part in ("short openings", "endings"))
    return " ".join([opening, *middle, ending]).format_map(fields)


def _cast(world: TinyWorld, rng: random.Random, hero: str, animal: str) -> dict[str, str]:
    """Return the fields of a story: facts about the hero and the friend, and some drawn by chance."""

    def facts(prefix: str, entity: str, *names: str) -> dict[str, str]:
        return {prefix + name: world.value(entity, name) for name in names}

    fields = {"A": hero, "animal": animal, "food": rng.choice(words("food"))}
    fields |= facts("", hero, "job", "home", "pet", "meal", "colour", "thing", "hobby")
    fields |= {"B": world.value(hero, "friend"), "town": world.value(fields["home"], "neighbour")}
    fields["C"] = rng.choice([person for person in words("people") if person not in (hero, fields["B"])])
    fields |= facts("b_", fields["B"], "job", "home", "hobby")
    fields |= facts("pet_", fields["pet"], "colour", "home", "food")
    fields |= facts("thing_", fields["thing"], "colour") | facts("", fields["thing"], "room", "material")
    fields |= facts("", fields["home"], "weather", "sight") | facts("", fields["job"], "tool", "product")
    fields |= facts("town_", fields["town"], "weather", "sight") | facts("", fields["town"], "mayor")
    fields |= facts("animal_", animal, "colour", "home", "food", "skill") | facts("", fields["food"], "taste", "source")
    fields |= _moods_and_numbers(rng)
    fields |= {f"a_{name}": article(fields[name]) for name in ("job", "b_job", "pet", "thing", "animal")}
    fields |= {"A_animal": upper_first(fields["a_animal"]), "Food": upper_first(fields["food"])}
    return fields | pronouns(hero) | {"his_c": pronouns(fields["C"])["his"]}


def _moods_and_numbers(rng: random.Random) -> dict[str, str]:
    """Return the fields that no fact decides."""
    mood, other_mood = rng.sample(words("moods"), 2)
    few, more, price = rng.randint(2, 9), rng.randint(2, 9), number_name(rng.randint(3, 20))
    numbers = {"few": few, "more": more, "few_and_more": few + more, "more_hours": few + rng.randint(1, 3)}
    fields = {name: number_name(number) for name, number in numbers.items()}
    return fields | {"mood": mood, "other_mood": other_mood, "price": price, "Price": upper_first(price)}
