"""The embedded Ray head itself: run by its keeper, stays in the foreground.

    python -P head.py TEMP_DIR GCS_PORT DASHBOARD_PORT AGENT_PORT

`ray.init(address="local")` builds the same `Node`, but fixes the node agent's port, and `ray start` cannot leave out
the Ray Client server and its port; either would collide with another Ray on this machine.
"""

import ctypes
import os
import signal
import sys
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.utils import write_ray_address

_PR_SET_PDEATHSIG = 1


class _Node(Node):
    def start_api_server(self, **options: Any) -> None:
        """Start the dashboard, whose processes would import a `queue.py` of the folder they run in; jobs may do so."""
        os.environ["PYTHONSAFEPATH"] = "1"
        super().start_api_server(**options)
        del os.environ["PYTHONSAFEPATH"]


def main(temp_dir: str, gcs_port: int, dashboard_port: int, agent_port: int) -> None:
    """Start the head's processes and wait to be killed.

    Args:
        temp_dir: the folder of the session's logs and sockets.
        gcs_port: a free port of 127.0.0.1.
        dashboard_port: another.
        agent_port: another.
    """
    if sys.platform == "linux":  # a keeper that is killed takes the head along
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Where a job looks for its cluster; without it, it takes any Ray that it finds running on this machine. A job may
    # come before the node is complete, so this is written first.
    write_ray_address(f"127.0.0.1:{gcs_port}", temp_dir)
    parameters = RayParams(
        temp_dir=temp_dir,
        node_ip_address="127.0.0.1",
        gcs_server_port=gcs_port,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard_port,
        dashboard_agent_listen_port=agent_port,
    )
    _Node(parameters, head=True, shutdown_at_exit=False, spawn_reaper=True)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
