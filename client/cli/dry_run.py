"""What `--dry-run` shows."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.batch.batch import Batch, Options, Step
    from client.batch.start import Ready
    from client.job.submit import Plan


def show_plan(plan: "Plan", *, as_json: bool) -> None:
    """Show what a submit would send.

    Args:
        plan: of the submit.
        as_json: as JSON.
    """
    from client.cli import output

    arguments, upload = plan.submission.arguments, plan.upload
    if as_json:
        files = [{"path": entry.path, "bytes": entry.size} for entry in upload.entries]
        output.print_json({**arguments, "upload": files, "withheld": list(upload.withheld)})
        return
    output.print_line(f"command      {arguments['entrypoint']}")
    output.print_line(f"working_dir  {arguments['runtime_env'].get('working_dir')}")
    if packages := arguments["runtime_env"].get("pip"):
        output.print_line(f"packages     {' '.join(packages) if isinstance(packages, list) else packages}")
    if not upload.entries:
        output.print_line("upload       nothing: the job runs where its files are")
        return
    output.print_line(f"upload       {len(upload.entries)} files, {upload.size} bytes, packed {plan.packed} bytes")
    for entry in upload.entries:
        output.print_line(f"{entry.size:>12} {entry.path}")
    for path in upload.withheld:
        output.print_line(f"    withheld {path}")


def show_batch_plan(found: "Ready", output_format: str) -> None:
    """Show what would become of each job of a batch.

    Args:
        found: the batch.
        output_format: text, json or csv.
    """
    from client.cli import output

    rows = [
        {
            **_row(job.step, job.decision, job.why),
            "submission_id": job.submission(len(job.attempts) + (job.decision == "run") or 1).submission_id,
            "attempts": list(job.attempts),
        }
        for job in found.planned
    ]
    packages = {package.uri: package.size for job in found.planned for package in job.prepared.packed.packages}
    _print_rows(found.batch.name, rows, output_format, packages=packages)
    if output_format != "text":
        return
    if not packages:
        output.note("nothing is uploaded: the jobs run where their files are")
    for uri, size in packages.items():
        there = "is there already" if found.sender.jobs.has_package(uri) else "would be uploaded once"
        output.note(f"{uri} of {size} bytes {there}")


def show_first_run(batch: "Batch", options: "Options", output_format: str) -> None:
    """Show the order of a batch's jobs on a Ray that is not started yet.

    Args:
        batch: the jobs.
        options: how they run.
        output_format: text, json or csv.
    """
    from client.batch.batch import chosen

    may_run = chosen(batch, options)
    decisions = {True: ("run", "there is no cluster yet"), False: ("leave", "not chosen")}
    rows = [
        {
            **_row(step, *decisions[step.name in may_run]),
            "submission_id": None,
            "attempts": [],
        }
        for step in batch.steps
    ]
    _print_rows(batch.name, rows, output_format, packages={})


def _row(step: "Step", decision: str, why: str) -> dict[str, Any]:
    request = step.request
    words = [*([request.script_path] if request.script_path else []), *request.command]
    command = shlex.join(words) if words else request.arguments["entrypoint"]
    known = {"job": step.name, "parameters": dict(step.parameters), "after": list(step.order.after)}
    return {**known, "decision": decision, "why": why, "command": command}


def _print_rows(name: str, rows: Sequence[dict[str, Any]], output_format: str, *, packages: dict[str, int]) -> None:
    from client.cli import board, output

    if output_format == "json":
        output.print_json({"name": name, "jobs": rows, "packages": packages})
    elif output_format == "csv":
        output.print_line(board.to_csv(rows, ["decision", "why", "command"]).rstrip("\n"))
    else:
        header = ("JOB", "AFTER", "DECISION", "WHY", "COMMAND")
        cells = [[row["job"], ", ".join(row["after"]), row["decision"], row["why"], row["command"]] for row in rows]
        output.print_table(header, cells)
