"""What can go wrong, and the exit code of each. Every message says what happened and what to do next.

ClientError              1    the request was refused, or the job cannot be had
├── UsageError           2    the command, a file it names or its values are wrong
├── Unreachable         69    nothing usable answers at the address
├── OutputLost          74    the disk or device that output goes to is full
├── ContactLost         75    contact was lost for good; the job may still run
├── NotAuthorised       77    the token is missing, wrong or not enough
├── TimedOut           124    a wait ran out
└── Detached           130    Ctrl-C: the job goes on without us

A job's own end is not an error of ours: see `client.follow.JobResult` for its codes.
"""

from typing import ClassVar


class ClientError(Exception):
    """The base of every error a user should see: one line, no traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(ClientError):
    """The command, a file it names or a value in it is wrong."""

    exit_code = 2


class Unreachable(ClientError):
    """Nothing usable answers at the address."""

    exit_code = 69


class OutputLost(ClientError):
    """What was asked for cannot be written where it should go. No harm is done to the job."""

    exit_code = 74


class ContactLost(ClientError):
    """Contact with the cluster was lost for good; the job may still run."""

    exit_code = 75


class NotAuthorised(ClientError):
    """The server wants a token and got none, or not the right one."""

    exit_code = 77


class TimedOut(ClientError):
    """A wait ran out; what was waited for may still happen."""

    exit_code = 124


class Detached(ClientError):
    """The user left; the job goes on."""

    exit_code = 130
