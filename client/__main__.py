"""`python -m client`: the same as `ray-workload`, unless the current folder has a `client` of its own."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder: a `queue.py` there is the job's, not ours

    from client.cli.main import main

    main()
