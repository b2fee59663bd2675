"""The one exception that means "the user can mend this"."""


class CollabError(Exception):
    """A user's mistake or a broken input.

    The message is one line that says what is wrong and what to do; the command line prints it
    without a traceback and exits with code 2. Every other exception is a bug and is shown whole.
    """
