"""Plots of the small world's stories: beats in order, each with several wordings. stories.py fills the fields.

Of the hero {A}: {he} {his} {him} {job} {tool} {product} {home} {weather} {sight} {pet} {pet_colour} {pet_home}
{pet_food} {meal} {colour} {hobby} {thing} {thing_colour} {room} {material}. Of the friend {B}: {b_job} {b_home}
{b_hobby}. {C} is a third person with {his_c}, {town} the town near {home} with {mayor} {town_weather} {town_sight},
{animal} some animal with {animal_colour} {animal_home} {animal_food} {animal_skill}, {food} some food with {taste}
{source}. {mood} {other_mood} are moods, {few} {more} numbers in words, {few_and_more} their sum, {more_hours} a little
later than {few}, {price} one more number. {a_x} is x with its article; a capital begins a sentence.
"""

OPENINGS = (
    "{A} was {a_job} in {home}.",
    "Once there was {a_job} called {A} who lived in {home}.",
    "In the {weather} town of {home} lived {A}, {a_job}.",
    "One {weather} day in {home}, {A} woke up very {mood}.",
    "This is a story about {A} and {his} friend {B}.",
    "Long ago, near the old {sight} of {home}, there lived {a_job}. {His} name was {A}.",
    "{A} had a {pet_colour} {pet}, and they lived in {home}.",
    "Every morning {A} took the {tool} and began {his} work.",
)

HABITS = (
    "{He} liked {hobby} more than anything else.",
    "{He} had {a_pet}, and the {pet} was {pet_colour}.",
    "{His} house had a {colour} door, for {he} loved {colour}.",
    "{He} loved {meal} and had some every day.",
    "{His} best friend was {B}, {a_b_job} from {b_home}.",
    "{He} owned {a_thing} made of {material}.",
    "People in {home} are proud of their {sight}.",
    "When {he} was not at work, {he} went {hobby}.",
)

ENDINGS = (
    "That night {A} was very {other_mood}.",
    'The next day {A} told {C} the whole story. "What a day!" said {C}.',
    "{A} and {B} are still friends today.",
    "Then {A} ate some {meal} and went to sleep.",
    "And the {pet}? It was asleep in the {pet_home}.",
    "From that day on, {A} and {B} met every week.",
    "{A} smiled. It had been a good day.",
    'In the evening {he} fed the {pet}. "Good {pet}," said {A}.',
)

PLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "the lost thing": (
        (
            "One day {A} could not find {his} {thing}.",
            "But one morning the {thing} was gone.",
            "Then something bad happened: {A} lost {his} {thing}.",
        ),
        (
            "{He} looked in the {room}, but the {thing} was not there.",
            'The {thing} was {thing_colour} and made of {material}. "Where can it be?" asked {A}.',
            "{He} looked under the bed and behind the door. There was no {thing}.",
        ),
        (
            "So {he} went to {B}, who was {a_b_job}.",
            '"Help me, {B}!" said {A}. "I have lost my {thing}."',
            "{He} asked {B} for help, and {B} said yes.",
        ),
        (
            "They looked for {few} hours. At last {B} saw something {thing_colour}.",
            "{B} looked in the {animal_home} and found {a_animal} with the {thing}.",
            '"Look!" said {B}. "The {animal} has it!" And so it was.',
            "In the end the {thing} was in the {room} after all.",
        ),
        (
            "{A} was {other_mood} and gave {B} some {meal}.",
            '"Thank you, {B}," said {A}. "You are a good friend."',
            "They laughed and took the {thing} home.",
        ),
    ),
    "the market": (
        (
            "{A} wanted to buy {food}, so {he} went to the market.",
            "It was market day in {town}, and {A} needed {food}.",
            "There was no {food} left in the house, so {A} went out to buy some.",
        ),
        (
            'A seller called out: "{Food}! Fresh from the {source}!"',
            "The {food} came from the {source} and tasted {taste}.",
            "{A} asked {C} for {food}. {C} had a lot.",
        ),
        (
            '"How much is it?" asked {A}. "{Price} coins," said {C}.',
            "{A} bought {few} bags for {price} coins.",
            "First {he} bought {few} bags, then {more} more. Now {he} had {few_and_more} bags.",
        ),
        (
            "On the way home {he} met {B}. {B} was carrying {few} baskets.",
            '"What did you buy?" asked {B}. "Only {food}," said {A}.',
            "The bags were heavy, but {B} came to help {him}.",
        ),
        (
            "They sat down and ate. It was {taste}, and they liked it.",
            'The {pet} wanted some too. "No," said {A}, "you eat {pet_food}!"',
            "At home {he} put the {food} in the kitchen.",
        ),
    ),
    "the animal": (
        (
            "One day {A} saw {a_animal} near the {animal_home}.",
            "{A} walked to the {animal_home} and met {a_animal}.",
            "{A_animal} came to the door of {A}.",
        ),
        (
            "The {animal} was {animal_colour}, and it looked hungry.",
            "It was a {animal_colour} {animal}, and it was {mood}.",
            '"Who are you?" asked {A}. "I am the {animal}," it said, "and I am {mood}."',
        ),
        (
            "{A} gave it some {animal_food}, for that is what it eats.",
            '"Do you have any {animal_food}?" asked the {animal}. {A} had some in {his} bag.',
            "{A} knew what to do. {He} ran home and came back with {animal_food}.",
        ),
        (
            "Then the {animal} began to {animal_skill}.",
            '"Look, I can {animal_skill}!" said the {animal}, and it did.',
            "The {animal} was {other_mood} now and wanted to {animal_skill}.",
        ),
        (
            "It lives in the {animal_home} to this day, and {A} visits it.",
            '"Come to the {animal_home} and see me," it said.',
            "{A} and the {animal} became friends.",
        ),
    ),
    "the trip": (
        (
            "{A} wanted to see the {town_sight} of {town}.",
            "One morning {A} took the road from {home} to {town}.",
            '"Let us go to {town}," said {A} to {B}.',
        ),
        (
            "They packed {food} and {a_thing}.",
            "{A} took {his} {thing}, and {B} took some {food}.",
            "{B} came too, for {B} likes {b_hobby}.",
        ),
        (
            "They walked for {few} hours. It is always {town_weather} in {town}.",
            "After {few} miles they were tired, but they went on for {more} more.",
            "On the road they saw {few} birds and {more} cows.",
        ),
        (
            "In {town} they met {mayor}, the mayor.",
            '"Welcome to {town}," said {mayor}, the mayor. "Have you seen our {town_sight}?"',
            "At last they saw the {town_sight}. It was very old.",
        ),
        (
            '"I like {home} more," said {A}, and they went home.',
            "They came back late and slept well.",
            "{A} never forgot the {town_sight} of {town}.",
        ),
    ),
    "the work": (
        (
            "{A} had a lot of work that week.",
            '{C} came to {A} and said: "I need {product}."',
            "Everyone in {home} wanted {product} from {A}.",
        ),
        (
            "As {a_job}, {he} used the {tool} all day.",
            "{He} took the {tool} and went to work.",
            "But the {tool} was broken, and {a_job} cannot work without it.",
        ),
        (
            "{B} saw that {A} was {mood} and came to help.",
            '"I am only {a_b_job}," said {B}, "but I have two hands."',
            "{B}, who was {a_b_job}, gave {him} some {food}.",
        ),
        (
            "They worked from {few} to {more_hours}.",
            "By noon half of the work was done.",
            "They sang while they worked, and the {pet} slept.",
        ),
        (
            "In the end {C} got {his_c} {product} and was {other_mood}.",
            '"You are the best {job} in {home}," said {C}.',
            "{C} paid {price} coins, and {A} gave half of them to {B}.",
        ),
    ),
    "the party": (
        (
            "{B} had a party, and {A} was asked to come.",
            "It was the birthday of {B}.",
            '"Come to my party!" said {B}.',
        ),
        (
            "{A} did not know what to bring. In the end {he} took {a_thing}.",
            "{A} wrapped up {a_thing} in {colour} paper.",
            "{He} made a big pot of {meal} for the party.",
        ),
        (
            "There were {few} girls and {more} boys. That makes {few_and_more} children.",
            "{C} was there too, and so was {a_animal}.",
            "The house of {B} was full of people.",
        ),
        (
            "They played, and the {animal} began to {animal_skill}.",
            "They ate {food} and {meal}, and everyone was {other_mood}.",
            "{C} told a story about the {town_sight} of {town}.",
        ),
        (
            '"This is the best gift," said {B}.',
            "{A} went home late, tired and happy.",
            "{B} thanked everyone and closed the door.",
        ),
    ),
}
