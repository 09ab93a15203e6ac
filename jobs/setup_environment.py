"""Make a virtual environment with the packages of a requirements file in a shared volume. This job does not use Ray.

On a cluster:  ray-workload submit jobs/setup_environment.py --requirements FILE --to /data/environment
Without one:   python jobs/setup_environment.py --requirements requirements.txt --to environment
In a chain:    see jobs/pipeline.yaml

The environment also has the packages of the Python that runs this job, Ray among them, and keeps their versions: a
requirement for another version is an error. uv installs the others if it is on PATH, else pip. Each content of the
file gets a folder of its own for each Python, once; these folders stay. /data/environment is a link to the one that was
asked for last, and never leads to one that is half-made.

A job uses it with the command /data/environment/bin/python, and its tasks with the runtime_env
{py_executable: /data/environment/bin/python}. Two jobs can use the same folder, because each waits for the other; the
volume must support locks of files (flock), as NFS does.
"""

import argparse
import fcntl
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path


def packages() -> dict[str, str]:
    """Return the version of each package of this Python, by its normalized name."""
    found = importlib.metadata.distributions()
    # Indexes do not have local versions, e.g. 2.9.0+cpu.
    return {re.sub(r"[-_.]+", "-", d.name).lower(): d.version.partition("+")[0] for d in found}


def content(requirements: Path) -> str:
    """Return the text of a requirements file and of the files that it includes."""
    text = requirements.read_text()
    included = re.findall(r"^(?:-r|-c|--requirement|--constraint)[ =]*(\S+)", text, re.MULTILINE)
    return text + "".join(content(requirements.parent / name) for name in included)


def make(folder: Path, requirements: Path, lock: int) -> None:
    """Make the environment in a new folder."""

    def run(*command: str | Path) -> None:
        # Both installers take the paths in the file as relative to its folder, if that is the current one. They inherit
        # the lock: if this process is killed, the next one waits until they have ended, too.
        done = subprocess.run(command, cwd=requirements.parent, pass_fds=[lock], stdin=subprocess.DEVNULL)
        if code := done.returncode:
            sys.exit(f"wrong: {Path(command[0]).name} exits with {code}; its output is above")

    python, uv = folder / "bin" / "python", shutil.which("uv")
    if uv:
        run(uv, "venv", "--quiet", "--no-project", "--python", sys.executable, "--system-site-packages", folder)
    else:
        run(sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", folder)
    # If this Python is that of a virtual environment, the new one does not have its packages yet, pip among them.
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(own, "image.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    names, versions = folder / "names.txt", folder / "versions.txt"
    names.write_text("\n".join(packages()))
    versions.write_text("\n".join(f"{name}=={version}" for name, version in packages().items()))
    if uv:
        # uv does not see the packages that are there already: first look for conflicts, then leave these packages out.
        install: tuple[str | Path, ...] = (uv, "pip", "install", "--quiet", "--python", python, "-r", requirements)
        run(*install, "-c", versions, "--dry-run")
        run(*install, "--excludes", names)
    else:
        run(python, "-m", "pip", "install", "--disable-pip-version-check", "-r", requirements, "-c", versions)


def main() -> None:
    """Make the environment, if there is none for this content, and let the link lead to it."""
    parser = argparse.ArgumentParser(description="Make a virtual environment, if it is not there.")
    parser.add_argument("--requirements", required=True, type=Path, metavar="FILE", help="the requirements file")
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="the environment")
    args = parser.parse_args()
    requirements, link = args.requirements.absolute(), args.to.absolute()
    if not requirements.is_file():
        sys.exit(f"wrong: there is no file {requirements}")
    if link.exists() and not link.is_symlink():
        sys.exit(f"wrong: {link} is not the link that this job makes: use another folder")
    given = repr((content(requirements), sys.version, sys.prefix, sorted(packages().items())))
    folder = link.with_name(f"{link.name}-{hashlib.sha256(given.encode()).hexdigest()[:16]}")
    complete, new = folder / "complete", link.with_name(f".{link.name}.new")

    link.parent.mkdir(parents=True, exist_ok=True)
    with link.with_name(f".{link.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if complete.exists():
            print(f"{folder} is complete")
        else:
            print(f"making {folder}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)  # of a job that was killed
            make(folder, requirements, lock.fileno())
            complete.touch()
        new.unlink(missing_ok=True)
        new.symlink_to(folder.name)
        new.replace(link)
    print(f"all well: {link} has the packages of {requirements}")


if __name__ == "__main__":
    main()
