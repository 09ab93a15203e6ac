"""Reading a requirements file, so that one without files of its own can be sent."""

import re
from pathlib import Path

from client.errors import UsageError

_NAMES_A_FILE = re.compile(r"(-[rce]|--(?:requirement|constraint|editable)\b)[\s=]*(.*)")


def read_requirements(path: str | Path, included_by: tuple[Path, ...] = ()) -> list[str]:
    """The lines of a requirements file, with those of each file that it includes (-r).

    Comments are dropped and continued lines joined, as pip does: Ray takes each line for a package of its own.

    Args:
        path: of the file.
        included_by: the files that include it.

    Raises:
        UsageError: a file cannot be read, or has a line that names a file other than a requirements file.
    """
    if (file := Path(path).resolve()) in included_by:
        raise UsageError(f"{path} includes itself", "remove one of the -r lines")
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file") from error
    found = []
    for line in re.sub(r"(^|\s+)#.*", "", text.replace("\\\n", " "), flags=re.MULTILINE).splitlines():
        line = line.strip()
        if not (option := _NAMES_A_FILE.match(line)):
            found += [line] if line else []
        elif option[1] in ("-r", "--requirement"):
            found += read_requirements(Path(path).parent / option[2], (*included_by, file))
        else:
            hint = "list all packages by name and version; code of your own belongs in the working directory"
            raise UsageError(f"{path}: `{line}` names a file, which is not sent", hint)
    return found
