"""The words of the small world: names of its people, animals, things, and the values their attributes take."""

GIRLS = tuple("Mia Zoe Anna Lily Rosa Nina Ella Ivy Ruth Clara Jane Maya".split())
BOYS = tuple("Tom Ben Sam Max Leo Finn Hugo Jack Oscar Paul Adam Luke".split())
PEOPLE = GIRLS + BOYS

ANIMALS = tuple(
    "fox hen cat dog cow pig goat horse sheep duck frog bear wolf lion mouse rabbit owl bee fish snake".split()
)
PETS = ANIMALS[:10]  # the animals that people keep in this world
FOODS = tuple("apples pears plums carrots beans corn bread cheese soup honey rice milk eggs nuts cake jam".split())
THINGS = tuple(
    "ball kite drum boat cart box cup bowl lamp chair table rope hat coat ring bell key book map bag".split()
)
OWNED = THINGS[:10]
PLACES = tuple("Oakton Redhill Fairwood Lakeside Millbury Greenfield Westport Snowdale Riverton Elmhurst".split())
JOBS = tuple("baker smith tailor farmer fisher painter doctor teacher cook sailor".split())

COLOURS = tuple("red blue green black white brown yellow grey".split())
HABITATS = tuple("forest river barn cave garden meadow pond valley".split())
SKILLS = tuple("swim climb dig jump dance sing hide run".split())
TASTES = tuple("sweet sour salty bitter spicy".split())
GROUNDS = tuple("field orchard market mill kitchen cellar hills island".split())
MATERIALS = tuple("wood stone iron wool glass clay paper leather".split())
ROOMS = tuple("kitchen attic hall cellar bedroom shed office stable".split())
WEATHERS = tuple("sunny rainy windy snowy foggy stormy".split())
SIGHTS = tuple("tower bridge castle garden harbour statue fountain theatre".split())
HOBBIES = tuple("singing painting fishing reading dancing running swimming cooking sewing climbing".split())
MOODS = tuple("happy sad tired proud brave kind quiet shy".split())

# what a job's people make or do, and the tool they use, in the order of JOBS
PRODUCTS = tuple("bread nails coats corn fish pictures medicine lessons soup trips".split())
TOOLS = tuple("oven hammer needle plough net brush bottle pen pot compass".split())

# natural numbers of legs; any animal not here has four
TWO_LEGS = frozenset("hen duck owl".split())
MANY_LEGS = {"bee": "six", "fish": "no", "snake": "no"}
LEGS = tuple("no two four six eight".split())

OPPOSITES = tuple(
    tuple(pair.split("/"))
    for pair in (
        "big/small hot/cold old/young wet/dry fast/slow high/low happy/sad day/night open/closed full/empty long/short "
        "hard/soft light/dark early/late near/far clean/dirty loud/quiet rich/poor strong/weak thick/thin up/down "
        "left/right first/last good/bad"
    ).split()
)

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_name(n: int) -> str:
    """Return a number from 0 to 199 in words.

    >>> number_name(7), number_name(42), number_name(115)
    ('seven', 'forty-two', 'one hundred and fifteen')
    """
    if n >= 100:
        return "one hundred" + (f" and {number_name(n - 100)}" if n > 100 else "")
    if n < 20:
        return ONES[n]
    return TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")


def article(noun: str) -> str:
    """Return the noun with its indefinite article.

    >>> article("owl"), article("hen")
    ('an owl', 'a hen')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def upper_first(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def spelled(word: str) -> str:
    """Return the word's letters joined by hyphens.

    >>> spelled("fox")
    'f-o-x'
    """
    return "-".join(word)


# every lower-case word worth spelling
WORDS = tuple(
    sorted(
        {
            *ANIMALS, *FOODS, *THINGS, *JOBS, *COLOURS, *HABITATS, *SKILLS, *TASTES, *GROUNDS, *MATERIALS, *ROOMS,
            *WEATHERS, *SIGHTS, *HOBBIES, *MOODS, *PRODUCTS, *TOOLS, *ONES, *TENS,
            *(word for pair in OPPOSITES for word in pair),
        }
    )
)  # fmt: skip
