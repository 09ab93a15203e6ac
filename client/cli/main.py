"""The command line's entry: `main` runs a command and turns every error into a line and an exit code."""

import gc
import os
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

import click

from client import __version__
from client.cli.dashboard import dashboard
from client.cli.doctor import doctor
from client.cli.down import down
from client.cli.exec import exec_command
from client.cli.fetch import fetch
from client.cli.help import WithExamples
from client.cli.list import list_jobs
from client.cli.logs import logs
from client.cli.run import run, run_plan
from client.cli.status import status
from client.cli.stop import stop
from client.cli.submit import submit
from client.cli.up import up
from client.errors import ClientError, Detached, OutputLost

PROGRAM = "ray-workload"
_INTERNAL, _BROKEN_PIPE = 70, 141
_GC_THRESHOLD = 100_000  # imports only add objects: looking for garbage among them takes a sixth of their time

_COMPLETION = {
    "bash": 'eval "$(_RAY_WORKLOAD_COMPLETE=bash_source ray-workload)"',
    "zsh": 'eval "$(_RAY_WORKLOAD_COMPLETE=zsh_source ray-workload)"',
    "fish": "_RAY_WORKLOAD_COMPLETE=fish_source ray-workload | source",
}


class _Cli(WithExamples, click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Exit with a code of its own if the reader of the output has exited; click would exit with 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            from client.cli.output import close_stdout

            close_stdout()
            ctx.exit(_BROKEN_PIPE)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and how the shell learns to complete commands."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Shell completion: add the line to your shell's startup file"):
            for shell, line in _COMPLETION.items():
                formatter.write(f"{'':>{formatter.current_indent}}{shell:<6}{line}\n")


@click.group(
    cls=_Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    examples=("submit jobs/simple_job.py", "logs -f ID"),
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.option("--debug", is_flag=True, help="Show the traceback of an error, and the full URL of the cluster.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Run Python scripts on Ray: on this machine, or on a cluster."""
    ctx.obj["debug"] = debug


for command in (submit, run, run_plan, logs, fetch, status, list_jobs, stop, up, down, exec_command, dashboard, doctor):
    cli.add_command(command)


def _fail(state: dict[str, Any], line: str, code: int) -> int:
    from client.cli import output

    if state.get("debug"):
        traceback.print_exc()
    output.error(line)
    return _fail_json(state, line, code)


def _fail_json(state: dict[str, Any], line: str, code: int) -> int:
    from client.cli import output

    if state.get("json"):
        known = {key: state[key] for key in ("submission_id",) if key in state}
        with suppress(OutputLost, BrokenPipeError):  # stderr has it
            output.print_json({**known, "error": line, "exit_code": code})
    return code


def main() -> NoReturn:
    """Run the command line and exit."""
    state: dict[str, Any] = {}
    gc.set_threshold(_GC_THRESHOLD)
    try:
        code = cli.main(prog_name=PROGRAM, standalone_mode=False, obj=state) or 0
    except click.ClickException as error:
        error.show()
        code = _fail_json(state, error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = _fail(state, "interrupted", Detached.exit_code)
    except ClientError as error:
        code = _fail(state, str(error), error.exit_code)
    except Exception as error:
        kind = type(error).__name__
        code = _fail(state, f"internal error, {kind}: {error} (`--debug` before the command shows where)", _INTERNAL)
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Exit without the interpreter's cleanup: with Ray imported it takes 0.15 s, and nothing needs it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or not there at all
            stream.flush()
    os._exit(code)
