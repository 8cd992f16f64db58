"""HumanEval: write a Python function, judged by running it against tests in the sandbox."""

import re

from raychat.tasks import sandbox
from raychat.tasks.source import Row, load_problems, one_of
from raychat.tasks.task import Problem, Task

FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
TIMEOUT_S = 5.0
MEMORY_BYTES = 512 * 2**20


def humaneval(root: str, split: str = "test") -> Task:
    """Return HumanEval. A completion earns 1 if its function passes all tests; it has a test split only.

    Source: Chen et al., arXiv:2107.03374; hub data set openai/openai_humaneval.
    """
    one_of(split, ("test",), "HumanEval")
    problems = load_problems(
        root,
        hub=("openai/openai_humaneval", None, split),
        file=("humaneval", "HumanEval.jsonl.gz"),
        layout="{task_id, prompt, entry_point, canonical_solution, test}",
        make=_problem,
    )
    return Task("HumanEval", problems, 0.0, code_reward)


def code_request(prompt: str) -> str:
    """Return how a function with signature and docstring `prompt` is asked for in a chat."""
    return f"Complete this Python function.\n\n{prompt}"


def code_answer(code: str) -> str:
    """Return how code is given in a chat: in a fence."""
    return f"```python\n{code.rstrip()}\n```"


def _problem(row: Row) -> Problem:
    answer = code_answer(row["prompt"] + row["canonical_solution"])
    messages = [{"role": "user", "content": code_request(row["prompt"])}, {"role": "assistant", "content": answer}]
    return Problem(messages, reference={name: row[name] for name in ("prompt", "entry_point", "test")})


def extract_code(completion: str) -> str:
    """Return the completion's first fenced code block, or all of it when there is none.

    >>> extract_code("Here it is:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    fenced = FENCED.search(completion)
    return fenced[1] if fenced else completion


def program(problem: Problem, completion: str) -> str:
    """Return the program that tests a completion: a whole function, or the lines that continue the prompt.

    A whole function is run behind the prompt's imports and other definitions.
    """
    prompt, name, test = (problem.reference[key] for key in ("prompt", "entry_point", "test"))
    code = extract_code(completion)
    start = prompt.find(f"def {name}")
    whole = re.search(rf"^def {re.escape(name)}\b", code, re.MULTILINE) is not None
    solution = prompt[:start] + code if whole else prompt + code
    return f"{solution}\n\n{test}\n\ncheck({name})\n"


def code_reward(problem: Problem, completion: str) -> float:
    """Return 1 if the completion's function passes the problem's tests in the sandbox."""
    return float(sandbox.run(program(problem, completion), timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES).passed)
