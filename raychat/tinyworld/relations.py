"""What can be true of the people, animals, foods, things, places and jobs of the small world, and how it is said.

Fields of the templates: {x} the subject ("the fox", "Mia", "bread"), {X} the same with a capital, {v} the value,
{a_v} the value with its article, {he} {his} a person's pronouns, {be} is/are, {s} the verb's s.
"""

from typing import NamedTuple

from raychat.tinyworld import words as w


class Relation(NamedTuple):
    """One attribute of one kind of entity: its values, sentences that state it and questions that ask for it."""

    kind: str
    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]  # the first one also answers a question in a full sentence
    questions: tuple[str, ...]


KINDS: dict[str, tuple[str, ...]] = {
    "person": w.PEOPLE,
    "animal": w.ANIMALS,
    "food": w.FOODS,
    "thing": w.THINGS,
    "place": w.PLACES,
    "job": w.JOBS,
}

RELATIONS: tuple[Relation, ...] = (
    Relation(
        "person",
        "job",
        w.JOBS,
        ("{x} is {a_v}.", "{x} works as {a_v}.", "The job of {x} is {v}.", "{x} wants to be the best {v} of all."),
        ("What is the job of {x}?", "What does {x} work as?"),
    ),
    Relation(
        "person",
        "home",
        w.PLACES,
        (
            "{x} lives in {v}.",
            "The home of {x} is in {v}.",
            "{x} has a small house in {v}.",
            "You can find {x} in {v}.",
        ),
        ("Where does {x} live?", "Where is the home of {x}?"),
    ),
    Relation(
        "person",
        "pet",
        w.PETS,
        (
            "{x} has {a_v}.",
            "The pet of {x} is {a_v}.",
            "{x} keeps {a_v} as a pet.",
            "{x} takes good care of {his} {v}.",
        ),
        ("What pet does {x} have?", "What is the pet of {x}?"),
    ),
    Relation(
        "person",
        "meal",
        w.FOODS[:8],
        ("{x} likes to eat {v}.", "The best meal of {x} is {v}.", "{x} loves {v}.", "At noon {x} always eats {v}."),
        ("What does {x} like to eat?", "What is the best meal of {x}?"),
    ),
    Relation(
        "person",
        "colour",
        w.COLOURS,
        (
            "{x} likes the colour {v}.",
            "The best colour of {x} is {v}.",
            "{x} always wears {v}.",
            "The door of {x} is {v}.",
        ),
        ("Which colour does {x} like?", "What is the best colour of {x}?"),
    ),
    Relation(
        "person",
        "thing",
        w.OWNED,
        ("{x} owns {a_v}.", "The gift of {x} was {a_v}.", "{x} never leaves home without {his} {v}.", "{x} got {a_v}."),
        ("What does {x} own?", "What was the gift of {x}?"),
    ),
    Relation(
        "person",
        "friend",
        w.PEOPLE,
        ("The friend of {x} is {v}.", "{x} is a good friend of {v}.", "{x} often visits {v}.", "{x} writes to {v}."),
        ("Who is the friend of {x}?", "Who does {x} often visit?"),
    ),
    Relation(
        "person",
        "hobby",
        w.HOBBIES,
        ("{x} likes {v}.", "The hobby of {x} is {v}.", "After work {x} goes {v}.", "{x} is very good at {v}."),
        ("What is the hobby of {x}?", "What is {x} good at?"),
    ),
    Relation(
        "animal",
        "colour",
        w.COLOURS,
        (
            "{X} is {v}.",
            "The colour of {x} is {v}.",
            "Have you seen {x}? It is {v}.",
            "In this land {x} is always {v}.",
        ),
        ("What colour is {x}?", "What is the colour of {x}?"),
    ),
    Relation(
        "animal",
        "home",
        w.HABITATS,
        ("{X} lives in the {v}.", "The home of {x} is the {v}.", "{X} sleeps in the {v}.", "Look for {x} in the {v}."),
        ("Where does {x} live?", "Where is the home of {x}?"),
    ),
    Relation(
        "animal",
        "food",
        w.FOODS[:8],
        ("{X} eats {v}.", "The food of {x} is {v}.", "Give {v} to {x}.", "When {x} is hungry, it looks for {v}."),
        ("What does {x} eat?", "What is the food of {x}?"),
    ),
    Relation(
        "animal",
        "skill",
        w.SKILLS,
        ("{X} can {v}.", "{X} loves to {v}.", "No one can {v} as well as {x}.", "In the evening {x} likes to {v}."),
        ("What can {x} do?", "What does {x} love to do?"),
    ),
    Relation(
        "animal",
        "legs",
        w.LEGS,
        ("{X} has {v} legs.", "Count the legs of {x}: it has {v} legs."),
        ("How many legs does {x} have?",),
    ),
    Relation(
        "food",
        "taste",
        w.TASTES,
        ("{X} taste{s} {v}.", "The taste of {x} is {v}.", "Most people find {x} {v}.", "{X} {be} {v} on the tongue."),
        ("How do{es} {x} taste?", "What is the taste of {x}?"),
    ),
    Relation(
        "food",
        "source",
        w.GROUNDS,
        ("{X} come{s} from the {v}.", "We get {x} from the {v}.", "Go to the {v} for {x}.", "The {v} gives us {x}."),
        ("Where do{es} {x} come from?", "Where do we get {x}?"),
    ),
    Relation(
        "food",
        "colour",
        w.COLOURS,
        ("{X} {be} {v}.", "The colour of {x} is {v}.", "Here {x} {be} always {v}.", "Good {x} {be} {v}."),
        ("What is the colour of {x}?", "Which colour {be} {x}?"),
    ),
    Relation(
        "thing",
        "material",
        w.MATERIALS,
        ("{X} is made of {v}.", "{X} is a thing of {v}.", "They made {x} out of {v}.", "You need {v} to make {x}."),
        ("What is {x} made of?", "What do you need to make {x}?"),
    ),
    Relation(
        "thing",
        "room",
        w.ROOMS,
        (
            "{X} is kept in the {v}.",
            "{X} is in the {v}.",
            "Look for {x} in the {v}.",
            "Please put {x} back in the {v}.",
        ),
        ("Where is {x} kept?", "Where is {x}?"),
    ),
    Relation(
        "thing",
        "colour",
        w.COLOURS,
        ("{X} is {v}.", "The colour of {x} is {v}.", "Someone painted {x} {v}.", "I can see {x}. It is {v}."),
        ("What colour is {x}?", "What is the colour of {x}?"),
    ),
    Relation(
        "place",
        "weather",
        w.WEATHERS,
        ("The weather in {x} is {v}.", "It is {v} in {x}.", "{x} is a {v} town.", "Most days are {v} in {x}."),
        ("What is the weather like in {x}?", "How is the weather in {x}?"),
    ),
    Relation(
        "place",
        "sight",
        w.SIGHTS,
        (
            "{x} has a famous {v}.",
            "In {x} stands an old {v}.",
            "People visit {x} for its {v}.",
            "{x} has a very fine {v}.",
        ),
        ("What is famous in {x}?", "Why do people visit {x}?"),
    ),
    Relation(
        "place",
        "neighbour",
        w.PLACES,
        (
            "{x} is near {v}.",
            "The road from {x} goes to {v}.",
            "From {x} you can walk to {v}.",
            "Next to {x} lies {v}.",
        ),
        ("Which town is near {x}?", "Where does the road from {x} go?"),
    ),
    Relation(
        "place",
        "mayor",
        w.PEOPLE,
        ("The mayor of {x} is {v}.", "In {x} the mayor is called {v}.", "The people of {x} chose {v} as mayor."),
        ("Who is the mayor of {x}?",),
    ),
    Relation(
        "job",
        "product",
        w.PRODUCTS,
        ("{X} gives us {v}.", "We get {v} from {x}.", "If you want {v}, ask {x}.", "All day long {x} works for {v}."),
        ("What does {x} give us?", "What do we get from {x}?"),
    ),
    Relation(
        "job",
        "tool",
        w.TOOLS,
        ("{X} uses {a_v}.", "The tool of {x} is {a_v}.", "{X} needs {a_v} for work.", "Bring {a_v} to {x}."),
        ("What tool does {x} use?", "What is the tool of {x}?"),
    ),
)
