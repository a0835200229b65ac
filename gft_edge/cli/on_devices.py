"""--on: the running command done on devices over ssh; what they answer is shown here."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.specs import Progress, Say
from gft_edge.cli.answers import Answer
from gft_edge.cli.errand import Errand, Fetch, Here, Out, Word
from gft_edge.cli.options import Command, together
from gft_edge.cli.output import progress, say
from gft_edge.errors import RemoteError, UsageError
from gft_edge.remote.channel import check_host
from gft_edge.remote.content import content_of
from gft_edge.remote.device import Device, There
from gft_edge.runtime.sources import is_live

_options = together(
    click.option("--on", "hosts", multiple=True, metavar="[USER@]HOST",
                 help="Device to do it on, over ssh, in place of this machine: what ssh takes. May be "
                 "repeated: then in parallel."),
    click.option("--offline", is_flag=True,
                 help="With --on: fetch here what the device has to install, for one without a package "
                 "index."),
)  # fmt: skip


def on_option(command: Command) -> Command:
    """--on and --offline, which the command gets as one `devices`: OnDevices, None without --on."""

    @functools.wraps(command)
    def packed(hosts: tuple[str, ...], offline: bool, **options: Any) -> Any:
        if offline and not hosts:
            raise UsageError("--offline is for devices: give --on HOST too")
        for host in hosts:
            check_host(host)
        devices = OnDevices(tuple(dict.fromkeys(hosts)), offline) if hosts else None
        return command(devices=devices, **options)

    return _options(packed)


class OnDeviceCommand(click.Command):
    """A command that remembers its words as they were typed, to have them repeated elsewhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with suppress(click.UsageError):
            ctx.meta[__name__] = self.make_parser(ctx).parse_args(list(args))[0]
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class OnDevices:
    """The hosts of --on."""

    hosts: tuple[str, ...]
    offline: bool

    def words(
        self,
        sent: Iterable[str] = (),
        out: str | None = None,
        here: Iterable[str] = (),
        replaced: Mapping[str, Sequence[Word]] = {},
    ) -> list[Word]:
        """The words of the running command for a device.

        The parameters `sent` name paths that travel, `out` a folder that is made there and fetched, `here`
        what stays on the desk; `replaced` gives other words for a parameter's values. Raises UsageError.
        """
        context = click.get_current_context()
        typed = context.meta[__name__]
        words: list[Word] = [context.command.name or ""]
        behind: list[Word] = []
        for parameter in context.command.params:
            name = parameter.name or ""
            if name in ("hosts", "offline", "as_json", *here) or name not in typed:
                continue
            value = typed[name]
            values = value if isinstance(value, (list, tuple)) else [value]
            if name in replaced:
                found = replaced[name]
            elif name == out:
                found = [Out()]
            else:
                found = [self.path(each) if name in sent else str(each) for each in values]
            if isinstance(parameter, click.Argument):
                behind += found
            elif isinstance(parameter, click.Option) and parameter.is_flag:
                words.append((parameter.opts if value else parameter.secondary_opts)[0])
            else:
                for each in found:
                    words += [parameter.opts[0], each]
        return [*words, "--", *behind] if behind else words

    def there(self, text: str) -> There | None:
        """The path that HOST:path names on the device, None for any other. Raises UsageError."""
        for host in self.hosts:
            if text.startswith(f"{host}:"):
                if len(self.hosts) > 1:
                    raise UsageError(f"{text} is on one host of several: give --on {host} alone")
                return There(text[len(host) + 1 :])
        return None

    def path(self, text: str) -> Word:
        """What a path means with --on: HOST:path there, a source of the device's own, else a path here."""
        if there := self.there(text):
            return there
        if is_live(text):
            return text
        path = Path(text)
        if not path.exists():
            other = text.partition(":")[0]
            hint = f", and --on does not name {other}" if ":" in text else ""
            raise UsageError(f"{text}: no such file or folder here{hint}")
        return Here(path, text)

    def sources(self, texts: Iterable[str]) -> list[Word]:
        """What the sources of predict and explain mean: `path`, and globs of what is here."""
        words: list[Word] = []
        for text in texts:
            matches = [] if Path(text).exists() or is_live(text) else sorted(glob.glob(text))
            words += [Here(Path(match), match) for match in matches] or [self.path(text)]
        return words

    def clean(self) -> list[Answer]:
        """Remove from every host what was put there."""
        answers = []
        for host in self.hosts:
            answer = Answer(host, 0)
            try:
                with Device(host, lambda text, done, total: None, say) as device:
                    folder, there = device.clean()
                answer.documents = [{"folder": folder, "removed": there}]
            except RemoteError as error:
                answer.error, answer.exit_code = error.reason, error.exit_code
            answers.append(answer)
        return answers

    def do(
        self,
        words: Sequence[Word],
        bundles: Iterable[Path] = (),
        backend: str | None = None,
        fetch: Fetch = lambda device, root, answer: None,
        each: Callable[[str, Any], None] | None = None,
        report: Progress | None = None,
        told: Say = say,
        extras: Iterable[str] = (),
    ) -> list[Answer]:
        """Do `words` on every host, in parallel; what they say is said here.

        `bundles` decide which engines the hosts need, or --backend does; `extras` are other extras of
        gft-edge to install there. `each` is told every line of JSON
        as it comes; `report` draws the progress where the caller does so already, `told` takes remarks. An
        error of a host is its answer's.
        """
        # abspath: of .. and of a/.. the name is that of the folder.
        places = {f"{number}/{os.path.basename(os.path.abspath(word.path)) or 'root'}": word
                  for number, word in enumerate(words) if isinstance(word, Here)}  # fmt: skip
        content = content_of(
            {at: path for place, word in places.items() for at, path in word.placed(place).items()}
        )
        errand = Errand(
            self.hosts,
            self.offline,
            words,
            places,
            content,
            [*bundles],
            backend,
            fetch,
            each,
            told,
            extras=frozenset(extras),
        )
        if report is not None:
            return errand.done(report)
        with progress() as bars:
            return errand.done(bars)
