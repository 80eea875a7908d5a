"""Exceptions: LampError, whose message is for the user, and Preempted."""


class LampError(Exception):
    """An error that the caller can fix; the message names the file, the id and the remedy.

    `lamp` prints it without a traceback and exits with status 1.
    """


class Preempted(BaseException):  # not an Exception, so that no handler of errors catches it
    """The process received SIGTERM: its progress is on disk, and the same command resumes it."""
