"""Stories whose people, pets, things and towns are as the world's facts say."""

import random

from raychat.tinyworld import words as w
from raychat.tinyworld.plots import ENDINGS, HABITS, OPENINGS, PLOTS
from raychat.tinyworld.world import World, pronouns

TITLES = ("", "", "{A} and {B}\n\n", "{A} and the {animal}\n\n", "A story from {home}\n\n")


def story(world: World, rng: random.Random) -> str:
    """Return a story of one or two paragraphs, its facts those of the world."""
    fields = _cast(world, rng, rng.choice(w.PEOPLE), rng.choice(w.ANIMALS))
    beats = rng.choice(list(PLOTS.values()))
    opening = rng.choice(OPENINGS) + " " + " ".join(rng.sample(HABITS, rng.choice((1, 2, 2, 3))))
    middle = " ".join(rng.choice(beat) for beat in beats)
    gap = rng.choice((" ", "\n\n"))
    text = rng.choice(TITLES) + opening + gap + middle + " " + rng.choice(ENDINGS)
    return text.format_map(fields)


def short_story(world: World, rng: random.Random, hero: str | None = None, animal: str | None = None) -> str:
    """Return a story of three to five sentences, short enough for an answer in a chat."""
    fields = _cast(world, rng, hero or rng.choice(w.PEOPLE), animal or rng.choice(w.ANIMALS))
    beats = PLOTS["the animal"] if animal else rng.choice(list(PLOTS.values()))
    opening = f"There was {fields['a_job']} called {fields['A']}."
    middle = " ".join(rng.choice(beat) for beat in beats[: rng.choice((2, 3))])
    return " ".join((opening, middle.format_map(fields), rng.choice(ENDINGS).format_map(fields)))


def _cast(world: World, rng: random.Random, hero: str, animal: str) -> dict[str, str]:
    """Return the fields of a story: the hero's own facts, the friend's, and some drawn by chance."""

    def facts(prefix: str, entity: str, *names: str) -> dict[str, str]:
        return {prefix + name: world.value(entity, name) for name in names}

    fields = {"A": hero, "animal": animal, "food": rng.choice(w.FOODS)}
    fields |= facts("", hero, "job", "home", "pet", "meal", "colour", "thing", "hobby")
    fields |= {"B": world.value(hero, "friend"), "town": world.value(fields["home"], "neighbour")}
    fields["C"] = rng.choice([person for person in w.PEOPLE if person not in (hero, fields["B"])])
    fields |= facts("b_", fields["B"], "job", "home", "hobby")
    fields |= facts("pet_", fields["pet"], "colour", "home", "food")
    fields |= facts("thing_", fields["thing"], "colour") | facts("", fields["thing"], "room", "material")
    fields |= facts("", fields["home"], "weather", "sight") | facts("", fields["job"], "tool", "product")
    fields |= facts("town_", fields["town"], "weather", "sight") | facts("", fields["town"], "mayor")
    fields |= facts("animal_", animal, "colour", "home", "food", "skill") | facts("", fields["food"], "taste", "source")
    fields |= _chances(rng)
    fields |= {f"a_{name}": w.article(fields[name]) for name in ("job", "b_job", "pet", "thing", "animal")}
    fields |= {"A_animal": w.upper_first(fields["a_animal"]), "Food": w.upper_first(fields["food"])}
    he = pronouns(hero)
    fields |= he | {"He": w.upper_first(he["he"]), "His": w.upper_first(he["his"])}
    return fields | {"his_c": pronouns(fields["C"])["his"]}


def _chances(rng: random.Random) -> dict[str, str]:
    """Return the fields that no fact decides: moods and numbers."""
    mood, other_mood = rng.sample(w.MOODS, 2)
    few, more, price = rng.randint(2, 9), rng.randint(2, 9), w.number_name(rng.randint(3, 20))
    numbers = {"few": few, "more": more, "few_and_more": few + more, "more_hours": few + rng.randint(1, 3)}
    fields = {name: w.number_name(number) for name, number in numbers.items()}
    return fields | {"mood": mood, "other_mood": other_mood, "price": price, "Price": w.upper_first(price)}
