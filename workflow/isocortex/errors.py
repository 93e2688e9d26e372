"""The one exception that says: the input is wrong, not the program."""


class InputError(ValueError):
    """Bad input, told in one line: what is wrong, where, and what to do."""
