"""Ray's Job API: only what may be repeated is.

Reading and stopping are plain REST, so that they need no `ray`. Submitting goes through Ray's Job SDK, which validates
the runtime_env, sent over the same session. Sources: ray/dashboard/modules/job/job_head.py (routes and status codes),
ray/dashboard/modules/log/log_agent.py (a node agent's /logs, with Range), all of Ray 2.60.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from urllib3.exceptions import HTTPError

from client.errors import ClientError, ContactLost, Detached, Unreachable
from client.http import Failed, Transport, reason, refused, was_sent
from client.job.record import JobRecord, record
from client.targets.target import Endpoint
from client.upload.package import Package

_SUBMIT_TIMEOUT = (5.0, 60.0)  # the server itself waits for a node agent, and stores an upload
_SHORT_TIMEOUT = (5.0, 5.0)  # for what is asked again and again, and is there at once
_SUBMIT_TRIES = 6
_CHUNK = 1 << 20
_T = TypeVar("_T")


class JobNotFound(ClientError):
    """The server knows no job of this id."""


class RayJobs:
    """The jobs of one cluster."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Make no request yet.

        Args:
            endpoint: where the cluster's API is.
        """
        self.endpoint = endpoint
        self._transport = Transport(endpoint)
        self._closed: set[str | None] = set()  # agents that take no connection

    def version(self) -> dict[str, str]:
        """The server's `ray_version` and `session_name`, which changes when the head restarts.

        Raises:
            Unreachable: what answers is not a Ray dashboard.
        """
        response = self._transport.request("GET", "/api/version")
        try:
            answer = response.json()
            return {"ray_version": str(answer["ray_version"]), "session_name": str(answer.get("session_name"))}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable(
                f"{self.endpoint.url} is not a Ray dashboard (it answers {response.status_code} to /api/version): "
                "give the address of port 8265 of a head with ray[default]"
            ) from error

    def resources(self) -> dict[str, float]:
        """The cluster's resources in total, by name; memory in bytes."""
        total: dict[str, float] = {}
        response = self._transport.request("GET", "/api/v0/nodes?detail=true&limit=10000")
        for node in self._read(response, lambda data: data["data"]["result"]["result"]):
            for name, amount in (node.get("resources_total") or {}).items():
                if node.get("state") == "ALIVE" and not name.startswith("node:"):
                    total[name] = total.get(name, 0) + amount
        return total

    def get(self, submission_id: str) -> JobRecord:
        """One job.

        Raises:
            JobNotFound: there is none.
        """
        response = self._transport.request("GET", _job_path(submission_id), timeout=_SHORT_TIMEOUT)
        if response.status_code == 404:
            self.version()  # not a Ray server at all? then this says so
            raise JobNotFound(f"no job {submission_id} at {self.endpoint.address}: `list` shows those there are")
        return self._read(response, record)

    def list(self) -> list[JobRecord]:
        """Every job of the cluster that was submitted, the newest first."""
        response = self._transport.request("GET", "/api/jobs/")
        jobs = self._read(response, lambda data: [record(job) for job in data if job.get("submission_id")])
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def stop(self, submission_id: str) -> None:
        """Ask for the end of a job. Ray ignores this while the job is pending, and answers as if it did not."""
        response = self._transport.request("POST", _job_path(submission_id) + "/stop", timeout=_SUBMIT_TIMEOUT)
        if response.status_code == 404:
            raise JobNotFound(f"no job {submission_id} at {self.endpoint.address}: `list` shows those there are")
        if not response.ok:
            raise refused(response)

    def read_log(self, job: JobRecord, offset: int) -> Iterator[bytes]:
        """Yield a job's log from a byte on, to where it ends now.

        The agent of the driver's node serves it by Range. Where only the dashboard can be reached the file comes whole
        and what is before the offset is dropped.

        Args:
            job: whose `agent` or `node_id` says where the log is.
            offset: in bytes.

        Raises:
            Unreachable: the answer broke off; what was yielded is good.
        """
        if url := self._agent_log(job):
            headers = {"Range": f"bytes={offset}-", "Accept-Encoding": "identity"}
        elif job.node_id:
            url, headers = self._dashboard_log(job, lines=-1), {"Accept-Encoding": "identity"}
        else:
            return
        try:
            response = self._transport.request("GET", url, headers=headers, stream=True, timeout=_SHORT_TIMEOUT)
        except Unreachable as error:
            if was_sent(error) or offset or url.startswith("/"):
                raise
            self._closed.add(job.agent)  # a firewall or a tunnel lets only the dashboard through
            yield from self.read_log(job, offset)
            return
        with response:
            try:
                missing = response.status_code in (404, 500) and not offset and not job.finished
                if response.status_code == 416 or missing:
                    response.content  # noqa: B018 # read to its end, the connection is kept
                    return  # at the log's end; not written yet (500 is the dashboard's word for it)
                if not response.ok:
                    raise Unreachable(f"the log at {self.endpoint.url} answers {response.status_code}")
                skip = 0 if response.status_code == 206 else offset
                # read1 hands on what has come: waiting for a full chunk would lose it to a cut, again and again.
                while chunk := response.raw.read1(_CHUNK):
                    if kept := chunk[skip:]:
                        yield kept
                    skip -= min(skip, len(chunk))
            except (requests.RequestException, HTTPError, OSError) as error:
                raise Unreachable(f"{self.endpoint.url} broke off: {reason(error)}") from error

    def resumes(self, job: JobRecord) -> bool:
        """True where a job's log can be had from any byte on, and says where it ends."""
        return self._agent_log(job) is not None

    def log_size(self, job: JobRecord) -> int:
        """How many bytes a job's log has now; 0 where only its whole text can be had."""
        if not (url := self._agent_log(job)):
            return 0
        try:
            with self._transport.request("GET", url, headers={"Range": "bytes=0-0"}, stream=True) as response:
                return int(response.headers.get("Content-Range", "/0").rpartition("/")[2])
        except Unreachable:
            return 0

    def log_ends_with(self, job: JobRecord, tail: bytes) -> bool:
        """Whether a job's log ends as what was read of it, where a broken answer can look like a whole one."""
        response = self._transport.request("GET", self._dashboard_log(job, lines=10))
        end = response.content
        common = min(len(end), len(tail))
        return response.ok and bool(end) and end[len(end) - common :] == tail[len(tail) - common :]

    def _agent_log(self, job: JobRecord) -> str | None:
        agent = self.endpoint.agent(job.agent) if job.agent and job.agent not in self._closed else None
        return f"{agent}/logs/job-driver-{job.submission_id}.log" if agent else None

    def _dashboard_log(self, job: JobRecord, *, lines: int) -> str:
        return f"/api/v0/logs/file?node_id={job.node_id}&filename=job-driver-{job.submission_id}.log&lines={lines}"

    def has_package(self, package: Package) -> bool:
        """True where the server has this upload already."""
        return self._transport.request("GET", _package_path(package)).status_code == 200

    def upload(self, package: Package, sent: Callable[[int], object]) -> None:
        """Send a packed working_dir.

        Args:
            package: what to send. Its name is its content's, so that it may be sent again when an answer is lost.
            sent: told the bytes of each step.

        Raises:
            Unreachable: it did not arrive, three times.
        """

        def chunks() -> Iterator[bytes]:
            with open(package.path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
                    sent(len(chunk))

        for last in (False, False, True):
            try:
                body = _Sized(chunks(), package.size)
                response = self._transport.request("PUT", _package_path(package), data=body, timeout=_SUBMIT_TIMEOUT)
                if not response.ok:
                    raise refused(response)
                return
            except Unreachable:
                if last:
                    raise

    def submit(self, arguments: Mapping[str, Any]) -> bool:
        """Submit a job once, however often the answer is lost: the id tells whether an earlier try arrived.

        Args:
            arguments: of `JobSubmissionClient.submit_job`, with a `submission_id`, and a `spec_hash` in the metadata.

        Returns:
            False where the same id with the same spec was there before.

        Raises:
            ClientError: the id is in use by another spec, or the server refused.
            UsageError: the runtime_env or another argument is not valid.
            Unreachable: no try arrived.
            ContactLost: nothing answers any more, and a try may have arrived.
            Detached: Ctrl-C, and a try may have arrived.
        """
        import_sdk()
        hint = f"`status {arguments['submission_id']}` tells whether the job arrived"
        arrived = False  # perhaps: an answer was lost
        try:
            for pause in (0.2 * 2**n for n in range(_SUBMIT_TRIES)):
                try:
                    return self._submit_once(arguments) or arrived
                except Unreachable as error:
                    arrived, lost = arrived or was_sent(error), error
                    time.sleep(pause)
        except KeyboardInterrupt as error:
            raise Detached(f"interrupted while the job was sent: {hint}") from error
        if not arrived:
            raise lost
        raise ContactLost(f"{lost}; {hint}") from lost

    def _submit_once(self, arguments: Mapping[str, Any]) -> bool:
        """Send a job; False where the same id with the same spec is there."""
        from client.ray_api.sdk import AlreadyExists, submit_job

        submission_id = arguments["submission_id"]
        try:
            submit_job(self._submit_request, arguments)
        except Failed as error:  # on a full disk Ray starts the job, and then cannot close a log of its own
            try:
                self.get(submission_id)
            except JobNotFound:
                raise error from None
        except AlreadyExists as error:
            if self.get(submission_id).metadata.get("spec_hash") == arguments["metadata"]["spec_hash"]:
                return False
            raise ClientError(
                f"the id {submission_id} is in use by a job with another entrypoint, runtime_env or resources: "
                "give another --id"
            ) from error
        return True

    def _submit_request(self, method: str, path: str, **options: Any) -> requests.Response:
        return self._transport.request(method, path, **{"timeout": _SUBMIT_TIMEOUT, **options})

    def _read(self, response: requests.Response, read: Callable[[Any], _T]) -> _T:
        if not response.ok:
            raise refused(response)
        try:
            return read(response.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreachable(f"{self.endpoint.url} does not answer as a Ray dashboard does") from error


def import_sdk() -> None:
    """Import Ray's Job SDK: 0.4 s, a sixth of it saved by not looking for garbage among what only grows."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        import_module("client.ray_api.sdk")
    finally:
        if enabled:
            gc.enable()


@dataclass
class _Sized:
    """An upload's chunks together with their sum, so that it is sent with a Content-Length."""

    chunks: Iterator[bytes]
    size: int

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def __len__(self) -> int:
        return self.size


def _job_path(submission_id: str) -> str:
    return "/api/jobs/" + quote(submission_id, safe="")


def _package_path(package: Package) -> str:
    return "/api/packages/" + package.uri.replace("://", "/")
