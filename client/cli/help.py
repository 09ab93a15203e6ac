"""`--help`: options in groups, where jobs go without --address, and examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

_GROUPS = {
    "Where": ("address", "worker", "namespace", "context"),
    "Output": ("as_json", "file", "follow", "tail", "no_open"),
}
_REST = "Options"
_ADDRESSES = (
    "Without --address, the client tries, in this order: RAY_WORKLOAD_ADDRESS, an http(s) RAY_ADDRESS, and `address` "
    "under [tool.ray-workload] in the nearest pyproject.toml file. Then it looks for a Ray kept by `up embedded`, and "
    "for a RayCluster in the Kubernetes of this pod or on this machine. If there is none, `submit` starts a new Ray."
)


complete_files = click.Path().shell_complete
complete_folders = click.Path(file_okay=False).shell_complete


class WithExamples(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: Sequence[str], **options: Any) -> None:
        """Take the examples, without the program's name."""
        super().__init__(*args, **options)
        self._examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the text of click."""
        with formatter.section("Examples"):
            for example in self._examples:
                formatter.write(f"{'':>{formatter.current_indent}}{ctx.find_root().info_name} {example}\n")
        super().format_epilog(ctx, formatter)


class Command(WithExamples):
    """A command whose help has its options in groups."""

    def __init__(self, *args: Any, groups: Mapping[str, Sequence[str]] = _GROUPS, **options: Any) -> None:
        """Take the groups: the names of parameters by heading."""
        super().__init__(*args, **options)
        self._groups = {name: title for title, names in {**_GROUPS, **groups}.items() for name in names}
        self._titles = [*dict.fromkeys([*groups, *_GROUPS, _REST])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group, and below --address the addresses that are tried without it."""
        found: dict[str, list[tuple[str, str]]] = {title: [] for title in self._titles}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                found[self._groups.get(str(param.name), _REST)].append(record)
        has_address = any(param.name == "address" for param in self.params)
        for title, records in found.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
                    if title == "Where" and has_address:
                        formatter.write_paragraph()
                        formatter.write_text(_ADDRESSES)
