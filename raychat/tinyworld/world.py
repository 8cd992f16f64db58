"""The facts of the small world, drawn from a seed, some of them held out for the tests."""

import random
import zlib
from typing import NamedTuple

from raychat.tinyworld.phrases import words
from raychat.tinyworld.relations import KINDS, Relation, relations
from raychat.tinyworld.words import article, pronouns, upper_first

TEST_SHARE = 5  # training questions leave out one key in five


class Fact(NamedTuple):
    """A fact of the world: the `relation` of `entity` is `value`."""

    entity: str
    relation: Relation
    value: str

    @property
    def key(self) -> str:
        return f"{self.entity}.{self.relation.name}"

    @property
    def wrong_values(self) -> list[str]:
        """The relation's other values, apart from the entity itself."""
        return [value for value in self.relation.values if value not in (self.value, self.entity)]

    def state(self, template: str, **fields: str) -> str:
        """Fill one of the relation's templates with this fact, and with more fields."""
        subject = subject_of(self.relation.kind, self.entity)
        plural = self.relation.kind == "food" and self.entity.endswith("s")
        return template.format(
            x=subject,
            X=upper_first(subject),
            v=self.value,
            a_v=article(self.value),
            be="are" if plural else "is",
            Be="Are" if plural else "Is",
            s="" if plural else "s",
            es="" if plural else "es",
            **pronouns(self.entity),
            **fields,
        )

    def statement(self, rng: random.Random) -> str:
        """State this fact in one of its wordings."""
        return self.state(rng.choice(self.relation.statements))

    def question(self, rng: random.Random) -> str:
        """Ask for this fact's value in one of its wordings."""
        return self.state(rng.choice(self.relation.questions))

    def answer(self) -> str:
        """Answer a question about this fact in a whole sentence."""
        return self.state(self.relation.statements[0])


class TinyWorld:
    """All facts of the world of one seed, by entity and relation name."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.facts: dict[tuple[str, str], Fact] = {}
        rng = random.Random(f"tinyworld facts {seed}")
        for relation in relations():
            for entity in words(relation.kind):
                self.facts[entity, relation.name] = Fact(entity, relation, _value(rng, relation, entity))
        self.train_facts = [fact for fact in self.facts.values() if not self.is_test(fact.key)]
        self.test_facts = [fact for fact in self.facts.values() if self.is_test(fact.key)]

    def value(self, entity: str, relation: str) -> str:
        """Return the value of one of an entity's relations."""
        return self.facts[entity, relation].value

    def about(self, entity: str) -> list[Fact]:
        """Return every fact about one entity."""
        kind = next(kind for kind in KINDS if entity in words(kind))
        return [self.facts[entity, relation.name] for relation in relations() if relation.kind == kind]

    def is_test(self, key: str) -> bool:
        """Tell whether a question key is held out for the tests; the same for every run of one seed."""
        return zlib.crc32(f"{self.seed}/{key}".encode()) % TEST_SHARE == 0


def _value(rng: random.Random, relation: Relation, entity: str) -> str:
    if relation.kind == "jobs":
        return relation.values[words("jobs").index(entity)]
    if relation.name == "legs":
        return next((number for number in ("no", "two", "six") if entity in words(f"{number} legs")), "four")
    return rng.choice([value for value in relation.values if value != entity])


def subject_of(kind: str, entity: str) -> str:
    """Return the words that name an entity inside a sentence: "the fox", "Mia", "bread"."""
    return f"the {entity}" if kind in ("animals", "things", "jobs") else entity
