"""Conversations about the facts of the world: questions as strangers ask them, and what they ask next."""

import random

from raychat.tinyworld.phrases import draw, phrases, rows, sections, words
from raychat.tinyworld.turns import Turn
from raychat.tinyworld.words import article
from raychat.tinyworld.world import Fact, TinyWorld, subject_of

ASKED_ABOUT = ("people", "animals", "places", "things", "food")


def asked(fact: Fact, rng: random.Random) -> Turn:
    """Ask for a fact, in one of the wordings of relations.txt or asked.txt, or guess its value."""
    relation = fact.relation
    wordings = [*((question,) for question in relation.questions), *rows("asked", f"{relation.kind} {relation.name}")]
    question, *before = rng.choice(wordings)
    guess = fact.value if rng.random() < 0.5 else rng.choice(fact.wrong_values)
    if "guess}" in question:
        before = ["Yes." if guess == fact.value else "No."]
    return Turn(fact.state(question, guess=guess, a_guess=article(guess)), " ".join([*before, fact.answer()]))


def fact_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Ask for one fact; one time in four, then for another one of the same entity, or for the same of another."""
    facts = world.test_facts if test else world.train_facts
    fact = rng.choice(facts)
    turns = [asked(fact, rng)]
    if rng.random() < 0.12:
        turns += _follow_ups([other for other in facts if other != fact], fact.entity, rng)
    elif rng.random() < 0.12:
        other = rng.choice([one for one in facts if one.relation == fact.relation and one != fact])
        turns.append(Turn(other.state(rng.choice(phrases("chats", "the same of another"))), other.answer()))
    return turns


def about_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Ask who or what an entity is; one time in three, then for one of its facts."""
    kind = rng.choice(ASKED_ABOUT)
    entity = rng.choice(words(kind))
    first, *others = world.about(entity)
    told = [first, *rng.sample(others, rng.choice((1, 2)))]
    question = draw(rng, "chats", f"about {kind}", subject=subject_of(kind, entity))
    turns = [Turn(question, " ".join(fact.answer() for fact in told))]
    if rng.random() < 0.35:
        facts = world.test_facts if test else world.train_facts
        turns += _follow_ups([fact for fact in facts if fact not in told], entity, rng)
    return turns


def holder_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Ask who or what has a value."""
    while True:
        attribute, template = rng.choice(rows("questions", "holders"))
        kind, name = attribute.split(" ")
        fact = world.facts[rng.choice(words(kind)), name]
        if world.is_test(f"{fact.key} of") == test:
            return [Turn(template.format(v=fact.value, a_v=article(fact.value)), fact.answer())]


def hop_turns(world: TinyWorld, rng: random.Random, test: bool) -> list[Turn]:
    """Ask something that takes two facts, and answer with both."""
    while True:
        path, template = rng.choice(rows("questions", "hops"))
        kind, first, second = path.split(" ")
        entity = rng.choice(words(kind))
        if world.is_test(f"{entity}.{first}.{second}") == test:
            break
    fact = world.facts[entity, first]
    answer = f"{fact.answer()} {world.facts[fact.value, second].answer()}"
    return [Turn(template.format(x=subject_of(kind, entity)), answer)]


def _follow_ups(facts: list[Fact], entity: str, rng: random.Random) -> list[Turn]:
    """Ask for a fact about the entity that was just spoken of, by its pronoun; none if no fact can be asked for so."""
    asks = sections("follow-ups")
    known = [fact for fact in facts if fact.entity == entity and f"{fact.relation.kind} {fact.relation.name}" in asks]
    if not known:
        return []
    fact = rng.choice(known)
    question, *before = rng.choice(rows("follow-ups", f"{fact.relation.kind} {fact.relation.name}"))
    return [Turn(fact.state(question), " ".join([*before, fact.answer()]))]
