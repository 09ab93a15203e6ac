"""The embedded Ray head itself: run by its keeper, stays in the foreground.

    python -P head.py TEMP_DIR DASHBOARD_PORT AGENT_PORT

`ray.init(address="local")` builds the same `Node`, but fixes the node agent's port, and `ray start` cannot leave out
the Ray Client server and its port; either would collide with another Ray on this machine.
"""

import signal
import sys

from ray._private.node import Node
from ray._private.parameter import RayParams


def main(temp_dir: str, dashboard_port: int, agent_port: int) -> None:
    """Start the head's processes and wait to be killed.

    Args:
        temp_dir: the folder of the session's logs and sockets.
        dashboard_port: a free port of 127.0.0.1.
        agent_port: another.
    """
    parameters = RayParams(
        temp_dir=temp_dir,
        node_ip_address="127.0.0.1",
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard_port,
        dashboard_agent_listen_port=agent_port,
    )
    Node(parameters, head=True, shutdown_at_exit=False, spawn_reaper=True)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
