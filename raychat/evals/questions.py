"""The questions that every stage of a run is asked, so that the report has their answers side by side."""

QUESTIONS = ("Hello! Who are you?", "What is 12 plus 30?", "Tell me a short story.")
