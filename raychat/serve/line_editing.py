"""Line editing, completion and a history for `input`, where Python has readline."""

import contextlib
import os
from collections.abc import Callable, Iterator

from raychat import paths

HISTORY_FILE, HISTORY_LINES = "chat_history", 1000


@contextlib.contextmanager
def line_editing(completions: Callable[[str], list[str]]) -> Iterator[None]:
    """Within the block, `input` edits its line, completes words with Tab, and knows what was typed in earlier chats.

    Args:
        completions: gets the line up to the cursor; returns what its last word may become.
    """
    try:
        import readline
    except ImportError:  # not every Python has it
        yield
        return

    def complete(word: str, number: int) -> str | None:
        found = completions(readline.get_line_buffer()[: readline.get_endidx()])
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.parse_and_bind("set enable-bracketed-paste on")  # a pasted text of several lines is one question
    readline.set_history_length(HISTORY_LINES)
    file = paths.on_this_machine(HISTORY_FILE)
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        readline.set_completer(None)
        with contextlib.suppress(OSError):  # a full or read-only disk does not matter here
            os.makedirs(paths.parent(file), exist_ok=True)
            readline.write_history_file(file)
            os.chmod(file, 0o600)  # what one types into a chat is private
