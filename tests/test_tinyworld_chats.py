"""The conversations of the small world: right answers, held-out keys apart, honest about what is unknown."""

import random
import re
from itertools import islice

import pytest

from raychat.chat.tools import calculator
from raychat.tasks.spelling import is_test_word
from raychat.tinyworld import chats, facts, phrases, smalltalk, sums
from raychat.tinyworld.turns import Turn, as_typed
from raychat.tinyworld.words import number_name, strangers
from raychat.tinyworld.world import TinyWorld

WORLD = TinyWorld(0)
MAKERS = [make for make, _ in chats.SHARES]


def made(make, num=150, *, test=False, seed=0):
    rng = random.Random(seed)
    return [make(WORLD, rng, test) for _ in range(num)]


@pytest.fixture(scope="module")
def talks():
    return list(islice(chats.chats(WORLD, random.Random(0), test=False), 1500))


def calls(talks):
    """(call, output, text after it) of every call of the calculator."""
    for messages in talks:
        for message in messages:
            if isinstance(parts := message["content"], list):
                for call, output, after in zip(parts, parts[1:], parts[2:], strict=False):
                    if call["type"] == "python":
                        yield call["text"], output["text"], after["text"]


def plain(text):
    """A question without what `as_typed` changes."""
    text = re.sub(r"[^\w ]", "", text.lower().replace("'s", "s"))
    for written, short in (("what is", "whats"), ("who is", "whos"), ("where is", "wheres"), ("how is", "hows")):
        text = text.replace(written, short)
    return text.replace("colour", "color").replace("favourite", "favorite")


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_every_kind_is_asked_and_answered_in_full(make):
    for turns in made(make):
        assert turns
        for turn in turns:
            assert turn.asked.strip()
            assert turn.answer.strip()
            assert not re.search(r"[{}]|None", turn.asked + turn.answer)


def test_a_seed_gives_the_same_conversations(talks):
    again = chats.chats(WORLD, random.Random(0), test=False)
    assert list(islice(again, 50)) == talks[:50]


def test_calls_of_the_calculator_are_right_and_their_outputs_are_said(talks):
    found = list(calls(talks))
    assert {sign for call, *_ in found for sign in "+-*/" if sign in call[1:]} == {*"+-*/"}
    assert len(found) > 300
    for call, output, after in found:
        assert calculator(call) == output
        assert re.match(rf"(\n#### )?{re.escape(output)}(?!\d)", after)


@pytest.mark.parametrize("test", [False, True])
def test_sums_are_those_that_were_asked_for(test):
    numbers = {number_name(n): str(n) for n in range(1000)}
    signs = {name: sign for sign, *names in phrases.rows("sums", "signs") for name in (sign, *names)}
    names = "|".join(sorted(map(re.escape, signs), key=len, reverse=True))
    words = "|".join(sorted(numbers, key=len, reverse=True))
    checked = 0
    for turn, *_ in made(sums.sum_turns, 600, test=test):
        asked = re.search(rf"\b(\d+|{words})\s?({names})\s?(\d+|{words})\b", turn.asked)
        called = re.search(r"<<(\d+)(\D)(\d+)=(.*)>>", turn.answer)
        assert called
        assert WORLD.is_test("".join(called.groups()[:3])) == test
        if asked and not re.match("Add|Multiply|What (do|is the (sum|difference|product)) ", turn.asked):
            a, sign, b = asked.groups()
            checked += 1
            assert (numbers.get(a, a), signs[sign], numbers.get(b, b)) == called.groups()[:3]
    assert checked > 400


def test_a_sum_that_is_carried_on_starts_from_the_last_result():
    carried = [turns for turns in made(sums.sum_turns, 600) if len(turns) == 2 and "that" in turns[1].asked]
    assert carried
    for first, second in carried:
        assert second.answer.startswith(first.answer.rpartition(">>")[2] + " ")


def test_problems_of_the_user_are_worked_out_with_their_numbers():
    values = {number_name(n): n for n in range(1000)}
    for (turn,) in made(sums.own_problem_turns):
        a, b = re.search(r"<<(\d+)\D(\d+)=", turn.answer).groups()
        asked = {str(values.get(word, word)) for word in re.findall(r"[\w-]+(?: hundred(?: and [\w-]+)?)?", turn.asked)}
        assert {a, b} <= asked


def test_no_held_out_fact_is_asked_for_in_training(talks):
    asked = {plain(message["content"]) for messages in talks for message in messages if message["role"] == "user"}
    held_out = {
        plain(fact.state(text))
        for fact in WORLD.test_facts
        for text in (*fact.relation.questions, *(row[0] for row in _asked_rows(fact)))
        if "guess}" not in text
    }
    known = {plain(fact.state(fact.relation.questions[0])) for fact in WORLD.train_facts}
    assert known & asked
    assert not held_out & asked


def _asked_rows(fact):
    return phrases.rows("asked", f"{fact.relation.kind} {fact.relation.name}")


@pytest.mark.parametrize("test", [False, True])
def test_questions_and_follow_ups_are_about_facts_of_their_split(test):
    chosen = WORLD.test_facts if test else WORLD.train_facts
    answers = {fact.answer() for fact in chosen}
    several = 0
    for turns in made(facts.fact_turns, 400, test=test):
        several += len(turns) > 1
        assert all(re.sub(r"^(Yes|No)\. ", "", turn.answer) in answers for turn in turns)
    assert several > 40


def test_a_pronoun_stands_for_the_one_that_was_spoken_of():
    spoken = [turns for turns in made(facts.about_turns, 400) if len(turns) == 2]
    assert spoken
    for first, second in spoken:
        entity = next(e for e, _ in WORLD.facts if re.search(rf"\b{e}\b", first.asked))
        assert second.answer.removeprefix("Yes. ") in {fact.answer() for fact in WORLD.about(entity)}


def test_a_guess_is_right_when_the_answer_says_yes():
    rng, said = random.Random(0), set()
    for fact in WORLD.facts.values():
        for _ in range(8):
            turn = facts.asked(fact, rng)
            guesses = [row[0] for row in _asked_rows(fact) if "guess}" in row[0]]
            true = {fact.state(text, guess=fact.value, a_guess=_with_article(fact.value)) for text in guesses}
            if turn.answer.startswith("No. ") or turn.asked in true:
                said.add(turn.answer.split(" ")[0])
                assert turn.answer.startswith("Yes. " if turn.asked in true else "No. ")
                assert turn.answer.endswith(fact.answer())
    assert said == {"Yes.", "No."}


def _with_article(word):
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def test_two_facts_answer_a_question_of_two_steps():
    for (turn,) in made(facts.hop_turns):
        if asked := re.fullmatch(r"What colour is the pet of (\w+)\?", turn.asked):
            assert turn.answer.endswith(f" is {WORLD.value(WORLD.value(asked[1], 'pet'), 'colour')}.")


def test_held_out_words_are_spelled_and_counted_only_in_the_test():
    for test in (False, True):
        for make in (chats.spelling_turns, chats.letter_turns):
            for (turn,) in made(make, 300, test=test):
                word, letters = re.match(r"The word (\w+) is spelled ([\w-]+)\.", turn.answer).groups()
                assert is_test_word(word) == test
                assert letters.split("-") == list(word)
                assert word in turn.asked.lower()


def test_letters_are_counted_one_by_one():
    counted = [turn for (turn,) in made(chats.letter_turns, 300) if turn.answer.endswith("letters.")]
    assert counted
    for turn in counted:
        word, pairs, num = re.match(r"The word (\w+) is spelled \S+ (.*): it has (\d+) letters\.", turn.answer).groups()
        assert pairs == ", ".join(f"{letter} {i}" for i, letter in enumerate(word, 1))
        assert int(num) == len(word)


def test_stories_are_about_what_was_asked_for_and_say_nothing_twice():
    for turn, *_ in made(chats.story_turns, 300):
        sentences = re.split(r"[.!?]+", turn.answer)
        assert len(sentences) > 3
        if about := re.search(r" about (?:an? )?([\w ]+)", turn.asked):
            assert about[1] in turn.answer


def test_what_users_say_first_comes_more_often_than_its_wordings_alone_would_make_it():
    topics = phrases.sections("smalltalk")
    said = {title: set(asked) for title, (asked, _) in topics.items()}
    rng = random.Random("first")
    drawn = [smalltalk.small_talk_turns(TinyWorld(0), rng, False)[0].asked for _ in range(2000)]
    for title in smalltalk.SAID_FIRST:
        share = sum(text in said[title] for text in drawn) / len(drawn)
        assert share > 1.5 * len(said[title]) / sum(map(len, said.values())), title


def test_what_is_strange_is_not_of_the_world():
    for kind in smalltalk.STRANGE_KINDS:
        assert not {*map(str.lower, strangers()[kind])} & {*map(str.lower, phrases.words(kind))}
        assert len({*strangers()[kind]}) == len(strangers()[kind]) >= 20


@pytest.mark.parametrize("make", [smalltalk.unknown_turns, smalltalk.stranger_turns])
def test_what_is_unknown_is_said_and_something_known_is_offered(make):
    of_the_world = {entity for entity, _ in WORLD.facts}
    for (turn,) in made(make, 300):
        before, offers, offer = re.split(
            r"(Ask me|I can (?:tell you a|do)\b|I can tell you about)", turn.answer, maxsplit=1
        )
        assert re.search(r"\b(not know|don't know|cannot tell|can't answer)\b", before)
        assert offers
        assert {*re.findall(r"\w+", offer)} & of_the_world or re.search(r"\d|spell", offer)


def test_conversations_fit_into_a_small_context(talks):
    """The longest of these had 217 tokens of a vocabulary of 1,024, about 3.3 characters each."""
    lengths = [sum(len(str(message["content"])) for message in messages) for messages in talks]
    assert sorted(lengths)[int(0.95 * len(lengths))] < 600


def test_typing_changes_the_looks_of_a_text_only():
    rng, text = random.Random(0), "What is the best colour of Mia?"
    typed = {as_typed(text, rng) for _ in range(300)}
    assert {text, "what is the best color of mia", "What's the best colour of Mia"} <= typed
    assert {plain(version) for version in typed} == {plain(text)}
    assert {as_typed("???", rng) for _ in range(50)} == {"???"}
    assert {as_typed("def f():\n    PASS?", rng) for _ in range(50)} == {"def f():\n    PASS?"}


def test_a_greeting_comes_before_the_question():
    turn = Turn("Where does Mia live?", "Mia lives in Oakton.")
    for seed in range(30):
        greeted = chats.greeted(turn, random.Random(seed))
        assert turn.asked in greeted.asked
        assert greeted.answer.endswith(turn.answer)
