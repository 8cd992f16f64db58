"""What code knows about words: number names, articles, pronouns, opposites."""

from functools import cache

from raychat.tasks import spelling
from raychat.tasks.source import HUB
from raychat.tinyworld.phrases import sections, words

# the lists in words.txt whose words are worth spelling: everything in lower case
SPELLED = (
    "animals food things jobs colours habitats skills tastes sources materials rooms weathers sights hobbies moods "
    "products tools ones tens"
).split()


@cache
def opposites() -> tuple[tuple[str, ...], ...]:
    """Return the pairs of opposite words."""
    return tuple(tuple(pair.split("/")) for pair in words("opposites"))


@cache
def spelling_words() -> tuple[str, ...]:
    """Return every lower-case word worth spelling, sorted."""
    return tuple(sorted({word for group in (*map(words, SPELLED), *opposites()) for word in group}))


@cache
def strangers() -> dict[str, tuple[str, ...]]:
    """Return the lists of strangers.txt."""
    return {name: tuple(" ".join(group).split(", ")) for name, (group,) in sections("strangers").items()}


@cache
def spelled_words(*, test: bool) -> tuple[str, ...]:
    """Return the words of the small world, of its strangers and of the spelling tasks, held out or not, sorted."""
    named = (*words("people"), *(name for names in strangers().values() for name in names))
    found = {*spelling_words(), *(name.lower() for name in named if name.isalpha())}
    found |= {*spelling.words(HUB, "test" if test else "train")}
    return tuple(sorted(word for word in found if spelling.is_test_word(word) == test))


def number_name(n: int) -> str:
    """Return a number from 0 to 999 in words.

    >>> number_name(7), number_name(42), number_name(215)
    ('seven', 'forty-two', 'two hundred and fifteen')
    """
    if n >= 100:
        return f"{words('ones')[n // 100]} hundred" + (f" and {number_name(n % 100)}" if n % 100 else "")
    if n < 20:
        return words("ones")[n]
    return words("tens")[n // 10 - 2] + (f"-{words('ones')[n % 10]}" if n % 10 else "")


def article(noun: str) -> str:
    """Return the noun with its indefinite article.

    >>> article("owl"), article("hen")
    ('an owl', 'a hen')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def upper_first(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def pronouns(entity: str) -> dict[str, str]:
    """Return the template fields {he}, {his}, {him} and {He}, {His} for a person; anything else is an "it"."""
    if entity in words("girls"):
        found = {"he": "she", "his": "her", "him": "her"}
    elif entity in words("people"):
        found = {"he": "he", "his": "his", "him": "him"}
    else:
        found = {"he": "it", "his": "its", "him": "it"}
    return found | {"He": upper_first(found["he"]), "His": upper_first(found["his"])}
