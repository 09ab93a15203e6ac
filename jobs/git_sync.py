"""Clone a Git repository into a folder of a shared volume, or update the clone. This job does not use Ray.

On a cluster:  ray-workload submit jobs/git_sync.py --repository https://HOST/PATH --ref main --to /data/repository
Without one:   python jobs/git_sync.py --repository https://HOST/PATH --ref main --to repository
In a chain:    see jobs/pipeline.yaml

For a private repository, add `--secret-env GIT_TOKEN=SECRET/KEY`. The token reaches git in its environment alone.

The folder then has the files of that commit: changes in it are lost, and files that git does not know stay. Two jobs
can use the same folder, because each waits for the other; the volume must support locks of files (flock), as NFS does.
The image needs git. That of this repository has none: docs/images.md shows how to add it.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

KEY = "gitsync.repository"  # in the configuration of a clone that this job has made
# Git asks this for a password. The shell that runs it has the token in its environment, and not in its arguments.
HELPER = '!f() { echo username=x-access-token; echo "password=$GIT_TOKEN"; }; f'


def environment(url: str, folder: Path) -> dict[str, str]:
    """Return the environment of git, with its configuration."""
    server = urlsplit(url)
    settings = [
        ("safe.directory", str(folder)),  # the volume may belong to another user
        ("gc.autoDetach", "false"),  # nothing of git may run on without the lock
        ("maintenance.autoDetach", "false"),
        ("credential.helper", ""),  # no other helper may see the token, and store it
    ]
    if os.environ.get("GIT_TOKEN"):
        # For this server alone: git would also ask for a server that this one redirects to.
        settings.append((f"credential.{server.scheme}://{server.netloc}.helper", HELPER))
    given = {"GIT_CONFIG_COUNT": str(len(settings)), "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": ""}
    for number, (name, value) in enumerate(settings):
        given |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return {**os.environ, **given}


def main() -> None:
    """Get one commit, and check out its files."""
    parser = argparse.ArgumentParser(description="Clone a Git repository, or update the clone.")
    parser.add_argument("--repository", required=True, metavar="URL", help="URL of the repository, without a token")
    parser.add_argument("--ref", default="HEAD", help="a branch, a tag, or the 40 digits of a commit (default: HEAD)")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="folder of the clone")
    args = parser.parse_args()
    url, folder = args.repository, args.to.absolute()
    if "://" in url and "@" in urlsplit(url).netloc and not url.startswith("ssh:"):
        sys.exit("wrong: the URL has a user or a token: put the token into GIT_TOKEN")
    if not shutil.which("git"):
        sys.exit("wrong: there is no git: add it to the image")
    folder.parent.mkdir(parents=True, exist_ok=True)

    with folder.with_name(f".{folder.name}.lock").open("a") as lock:
        # git inherits the lock: if this process is killed, the next one waits until that git has ended, too.
        fcntl.flock(lock, fcntl.LOCK_EX)

        def git(*words: str) -> str:
            done = subprocess.run(
                ("git", *words),
                env=environment(url, folder),
                pass_fds=[lock.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            output = done.stdout.strip()
            if token := os.environ.get("GIT_TOKEN"):  # a server can send it back in an error
                output = output.replace(token, "***")
            if done.returncode:
                sys.exit(f"wrong: git exits with {done.returncode}: {output}")
            return output

        inside = ("-C", str(folder))
        if not folder.is_dir() or not any(folder.iterdir()):
            new = folder.with_name(f".{folder.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            git("init", "--quiet", str(new))
            git("-C", str(new), "config", KEY, url)
            new.rename(folder)
        elif not (folder / ".git").is_dir() or git(*inside, "config", "--local", "--default", "", KEY) != url:
            sys.exit(f"wrong: {folder} has other files than a clone of {url} by this job: use another folder")
        for left in (folder / ".git").rglob("*.lock"):  # of a git that was killed
            left.unlink()
        git(*inside, "fetch", "--quiet", "--depth", "1", "--no-tags", "--", url, args.ref)
        git(*inside, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
        commit = git(*inside, "rev-parse", "HEAD")
    print(f"all well: {folder} is at commit {commit}, {args.ref} of {url}")


if __name__ == "__main__":
    main()
