"""HumanEval: write a Python function; its tests run in the sandbox."""

import re

from raychat.tasks import sandbox
from raychat.tasks.source import Row, load_problems, one_of
from raychat.tasks.task import Problem, Task, exchange

LAYOUT = "{task_id, prompt, entry_point, canonical_solution, test}"
FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
TIMEOUT_S = 15.0  # of which six seconds of CPU time
MEMORY_BYTES = 512 * 2**20


def humaneval(root: str, split: str = "test") -> Task:
    """Return HumanEval, which has only a test split. A completion earns 1 if its function passes all tests.

    Raises ValueError where the sandbox refuses to run programs: before any answer is generated.

    Source: Chen et al., arXiv:2107.03374; hub data set openai/openai_humaneval.
    """
    one_of(split, ("test",), "HumanEval")
    hub = ("openai/openai_humaneval", None, split)
    problems = load_problems(root, hub, "humaneval/HumanEval.jsonl.gz", LAYOUT, _problem)
    return Task("HumanEval", problems, 0.0, code_reward, max_new_tokens=512, guards=sandbox.guards())


def code_request(prompt: str) -> str:
    """Return the chat message that asks for a function, given its signature and docstring."""
    return f"Complete this Python function.\n\n{prompt}"


def code_answer(code: str) -> str:
    """Return code as a chat message: in a fence."""
    return f"```python\n{code.rstrip()}\n```"


def _problem(row: Row) -> Problem:
    answer = code_answer(row["prompt"] + row["canonical_solution"])
    reference = {name: row[name] for name in ("prompt", "entry_point", "test")}
    return Problem(exchange(code_request(row["prompt"]), answer), reference=reference)


def extract_code(completion: str) -> str:
    """Return the completion's first fenced code block, or the whole completion if it has none.

    >>> extract_code("Here it is:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    fenced = FENCED.search(completion)
    return fenced[1] if fenced else completion


def program(problem: Problem, completion: str) -> str:
    """Return the program that a completion makes.

    The completion is a whole function, or the lines that continue the prompt. A whole function follows the prompt's
    imports and other definitions.
    """
    code = extract_code(completion)
    whole = re.search(rf"^def {re.escape(problem.reference['entry_point'])}\b", code, re.MULTILINE) is not None
    return (_before_function(problem) if whole else problem.reference["prompt"]) + code


def checks(problem: Problem) -> str:
    """Return the program that tests the function. Some tests call what the prompt defines before it."""
    reference = problem.reference
    return f"{_before_function(problem)}\n\n{reference['test']}\n\ncheck({reference['entry_point']})\n"


def _before_function(problem: Problem) -> str:
    prompt: str = problem.reference["prompt"]
    return prompt[: prompt.find(f"def {problem.reference['entry_point']}")]


def code_reward(problem: Problem, completion: str) -> float:
    """Return 1 if the completion's function passes the problem's tests in the sandbox."""
    name = problem.reference["entry_point"]
    code = program(problem, completion)
    return float(sandbox.judge(code, checks(problem), name, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES).passed)
