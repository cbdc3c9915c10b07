"""The errors that end a run with one line instead of a traceback (DESIGN.md section 8)."""


class InputError(ValueError):
    """What the user gave cannot work; the message names the thing, its value and what was expected."""
