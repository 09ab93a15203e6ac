"""Every error of the client, with its exit code: the message says what happened, the hint what to do next.

ClientError              1    the request was refused, or cannot be carried out
├── JobNotFound          1    the server knows no job of this id
├── ServerFailed         1    the server failed while it handled a request
├── HelmFailed           1    helm failed
├── HookStuck            1    a hook of the chart does not start
├── UsageError           2    the command, a file it names or a value is wrong
├── Unreachable         69    nothing usable answers at the address
│   ├── NotFound        69    the API server has no such object
│   └── NotReady        69    the server does not take jobs yet
├── OutputLost          74    the output cannot be written
├── ContactLost         75    contact was lost for good; the job may still run
│   └── JobLost         75    the job ended with its node, or with the head that knew it
├── NotAuthorised       77    the token or the login is missing or wrong
│   └── Forbidden       77    the API server does not allow this login to do that
├── TimedOut           124    a wait ran out
└── Detached           130    Ctrl-C or SIGTERM

A job that fails is no error of the client: `client.ray_api.record.JobResult` has its exit code.
"""

from typing import ClassVar

RUN_DOCTOR = "run `doctor`"  # a hint


class ClientError(Exception):
    """The base of all errors a user should see: one line, no traceback.

    Attributes:
        what: what happened.
        hint: what to do next; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, hint: str = "") -> None:
        """Keep both apart, so that they can be shown apart."""
        super().__init__(what, hint)
        self.what, self.hint = what, hint

    def __str__(self) -> str:
        return f"{self.what}: {self.hint}" if self.hint else self.what


class JobNotFound(ClientError):
    """The server knows no job of this id."""


class ServerFailed(ClientError):
    """The server failed while it handled a request. How far it got is not known."""


class HelmFailed(ClientError):
    """Helm failed; the message is its own."""


class HookStuck(ClientError):
    """A hook of the chart does not start."""


class UsageError(ClientError):
    """The command, a file it names or a value in it is wrong."""

    exit_code = 2


class Unreachable(ClientError):
    """Nothing usable answers at the address."""

    exit_code = 69


class NotFound(Unreachable):
    """The API server has no such object."""


class NotReady(Unreachable):
    """The server answers that it does not take jobs yet."""


class OutputLost(ClientError):
    """The output cannot be written. The job is not affected."""

    exit_code = 74


class ContactLost(ClientError):
    """Contact with the cluster was lost for good. The job may still run."""

    exit_code = 75


class JobLost(ContactLost):
    """The job ended with its node, or with the head that knew it."""


class NotAuthorised(ClientError):
    """The server requires a token or a login, and got none or a wrong one."""

    exit_code = 77


class Forbidden(NotAuthorised):
    """The API server knows this login and does not allow it to do that. Ray was not asked."""


class TimedOut(ClientError):
    """A wait ran out. What was waited for may still happen."""

    exit_code = 124


class Detached(ClientError):
    """The user interrupted the client."""

    exit_code = 130
