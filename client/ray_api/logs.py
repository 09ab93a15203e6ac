"""A job's log, read from any byte on.

Sources, of Ray 2.60: ray/dashboard/modules/log/log_agent.py (a node agent's /logs, with Range),
ray/dashboard/modules/state/state_head.py (/api/v0/logs/file, always the whole file).
"""

from collections.abc import Iterator

import requests
from urllib3.exceptions import HTTPError

from client.errors import Unreachable
from client.http import reason, was_sent
from client.ray_api.http import POLL_TIMEOUT, RayServer
from client.ray_api.record import JobRecord

_CHUNK = 1 << 20


class JobLogs:
    """The logs of one cluster's jobs."""

    def __init__(self, server: RayServer) -> None:
        """Make no request yet."""
        self._server, self._http = server, server.http
        self._closed: set[str | None] = set()  # agents that accept no connection

    def read(self, job: JobRecord, offset: int) -> Iterator[bytes]:
        """Yield a job's log from a byte on, to where it ends now.

        The agent of the driver's node serves it by Range. Where only the dashboard can be reached the whole file is
        sent, and what is before the offset is dropped.

        Args:
            job: whose `agent` or `node_id` says where the log is.
            offset: in bytes.

        Raises:
            Unreachable: the answer broke off; what was yielded is good.
        """
        if url := self._of_agent(job):
            headers = {"Range": f"bytes={offset}-", "Accept-Encoding": "identity"}
        elif job.node_id:
            url, headers = self._of_dashboard(job, lines=-1), {"Accept-Encoding": "identity"}
        else:
            return
        try:
            response = self._http.request("GET", url, headers=headers, stream=True, timeout=POLL_TIMEOUT)
        except Unreachable as error:
            if was_sent(error) or offset or url.startswith("/"):
                raise
            self._closed.add(job.agent)  # a firewall or a tunnel lets only the dashboard through
            yield from self.read(job, offset)
            return
        base = self._http.server.url
        with response:
            try:
                missing = response.status_code in (404, 500) and not offset and not job.finished
                if response.status_code == 416 or missing:
                    response.content  # noqa: B018 # read to its end, so that the connection is kept
                    return  # at the log's end, or not written yet (the dashboard says 500 then)
                if not response.ok:
                    raise Unreachable(f"{base} answers {response.status_code} to the request for the log")
                skip = 0 if response.status_code == 206 else offset
                # read1 returns what has arrived: waiting for a full chunk would lose it to a cut, again and again.
                while chunk := response.raw.read1(_CHUNK):
                    if new := chunk[skip:]:
                        yield new
                    skip -= min(skip, len(chunk))
            except (requests.RequestException, HTTPError, OSError) as error:
                raise Unreachable(f"the connection to {base} broke off ({reason(error)})") from error

    def resumable(self, job: JobRecord) -> bool:
        """Whether a job's log can be read from any byte on, and says where it ends."""
        return self._of_agent(job) is not None

    def size(self, job: JobRecord) -> int:
        """How many bytes a job's log has now; 0 where only its whole text can be read."""
        if not (url := self._of_agent(job)):
            return 0
        try:
            with self._http.request("GET", url, headers={"Range": "bytes=0-0"}, stream=True) as response:
                return int(response.headers.get("Content-Range", "/0").rpartition("/")[2])
        except Unreachable:
            return 0

    def ends_with(self, job: JobRecord, tail: bytes) -> bool:
        """Whether the end of a job's log is what was read last: a broken answer can look like a whole one."""
        response = self._http.request("GET", self._of_dashboard(job, lines=10))
        end = response.content
        common = min(len(end), len(tail))
        return response.ok and bool(end) and end[len(end) - common :] == tail[len(tail) - common :]

    def _of_agent(self, job: JobRecord) -> str | None:
        agent = self._server.agent(job.agent) if job.agent and job.agent not in self._closed else None
        return f"{agent}/logs/job-driver-{job.submission_id}.log" if agent else None

    def _of_dashboard(self, job: JobRecord, *, lines: int) -> str:
        return f"/api/v0/logs/file?node_id={job.node_id}&filename=job-driver-{job.submission_id}.log&lines={lines}"
