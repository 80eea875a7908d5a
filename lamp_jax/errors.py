"""The one exception that a user is meant to read."""


class LampError(Exception):
    """Something that the caller can mend; the message names the file, the id and the remedy.

    `lamp` prints it without a traceback and exits with status 1.
    """


class Preempted(BaseException):  # passes, like KeyboardInterrupt, whoever catches errors
    """The machine is wanted elsewhere (SIGTERM): what was done is on disk, and the same command goes on."""
