"""The commands of ``cri-py``: what they are called and take, and which code they run.

Imports are lazy: ``serve`` starts the spawner before grpc is in the process, and ``--help`` should not wait for either.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TextIO

from cri_py import __version__, config
from cri_py.errors import ConfigError, CriError

USAGE_ERROR: Final = 2

_TOP: Final = """\
cri_py is a container runtime for Kubernetes nodes: it serves CRI v1 on a unix socket to a kubelet or crictl.

  cri-py check                     what this machine lacks, and the remedy
  cri-py serve                     run the daemon, as /etc/cri_py/config.toml says
  cri-py explain CONTAINER         what isolates a container and what limits it
  cri-py top                       what pods and containers use right now
  crictl -r unix:///run/cri_py/cri.sock info
"""

_SERVE: Final = """\
examples:
  cri-py serve
      socket in /run/cri_py/cri.sock, images in /var/lib/cri_py

  cri-py serve --root /srv/second --state /run/second --cgroup-parent /second --bridge second0 --subnet 10.86.0.0/16
      a second daemon beside the first: all that one makes lies under its root and state directories, its cgroup
      parent and its bridge, and no two daemons may share any of them

  cri-py serve --config ./node.toml --log-level debug
      ./node.toml and then ./node.d/*.toml; a flag wins over a file

signals: TERM and INT end the daemon; pods go on, and the next daemon with the same directories finds them again.
"""

_CONFIG: Final = """\
examples:
  cri-py config default > /etc/cri_py/config.toml
  cri-py config check --config ./node.toml
  cri-py config show --log-level debug        every value with the file and line, or flag, that set it
"""

_CHECK: Final = """\
Exit status 1 if something is missing that cri_py needs. What is merely worse without is told and costs nothing.

examples:
  cri-py check
  cri-py check --json | python3 -m json.tool
  cri-py check --root /srv/second --state /run/second
"""

_EXPLAIN: Final = """\
Reads the container's namespaces, user, capabilities, filter, mounts, devices and limits back from the kernel, and says
of each which field of which config it came from, and where it is not what was asked for. Run it on the node, as root.

examples:
  cri-py explain 4f2c1a
  cri-py explain 4f2c1a --json | jq '.sections.namespaces.facts[] | {name, value}'
"""

_TOP_COMMAND: Final = """\
CPU is in percent of one core, memory the working set and its share of the limit, PIDS counts threads, PSI is the share
of the last 10 s in which some process waited (cgroup v2 alone). Where the output is no terminal one table is printed.

examples:
  cri-py top
  cri-py top --sort memory --interval 5
  cri-py top --plain --count 3 > usage.txt
"""

_IMAGE: Final = """\
examples:
  cri-py image pull docker.io/library/busybox:1.36
  cri-py image ls
  cri-py image tag busybox:1.36 example.org/tools/busybox:latest
  cri-py image rm example.org/tools/busybox:latest
  cri-py image export busybox:1.36 -o busybox.tar
  cri-py image import busybox.tar
"""

_IMAGE_CHECK: Final = """\
Finds blobs and unpacked layers that are missing, truncated or orphaned, with --deep also what is damaged inside, and
mends by unpacking again, through the daemon if one runs. Exit status 1 if something is wrong and stays so.

examples:
  cri-py image check
  cri-py image check --deep --repair --dry-run
  cri-py image check --deep --repair
"""

_IMAGE_IMPORT: Final = """\
Takes an OCI layout (a directory or its tar) or what docker save writes, with one image or several, plain or compressed
by gzip or zstd: all of its images, or none. It goes to the running daemon; where none runs, into its store.

examples:
  cri-py image import images.tar
  cri-py image import ./layout --tag example.org/tools/app:1
  docker save app:1 | cri-py image import -
"""

_IMAGE_EXPORT: Final = """\
The archive is an OCI layout and a docker-archive at once: docker load, podman load, skopeo and cri-py read it.

examples:
  cri-py image export busybox:1.36 registry.k8s.io/pause:3.10 -o images.tar
  cri-py image export busybox:1.36 --layout -o ./layout
  cri-py image export busybox:1.36 | ssh other cri-py image import -
"""

_IMAGE_BUILD: Final = """\
One layer, with the owners, modes and times of the files. Equal trees and flags are the same image.

examples:
  cri-py image build ./root --tag example.org/tools/app:1 --entrypoint /bin/app --env LANG=C.UTF-8 --expose 80
  cri-py image build ./root --tag app:2 --entrypoint '["/bin/sh", "-c"]' --cmd '["exec app"]' --user 1000:1000
"""

_WORDS: Final = (
    ("--entrypoint", "WORDS", "the program and its first arguments"),
    ("--cmd", "WORDS", "arguments, or the program if there is no entrypoint"),
)
_REPEATED: Final = (
    ("--env", "NAME=VALUE", "a variable"),
    ("--label", "KEY=VALUE", "a label"),
    ("--expose", "PORT[/PROTOCOL]", "a port that the program listens on"),
    ("--volume", "PATH", "a directory that is to be a volume"),
)
_ONCE: Final = (
    ("--workdir", "PATH", "where the program starts"),
    ("--user", "USER[:GROUP]", "names or numbers"),
    ("--stop-signal", "SIGNAL", "what asks the program to end"),
    ("--platform", "OS/ARCH[/VARIANT]", "what the files are for (default: the node's)"),
)

_FLAGS: Final[Mapping[str, tuple[config.Path, str, str]]] = {
    "--listen": (("server", "listen"), "ADDRESS", "the CRI socket, unix:///path (default: STATE/cri.sock)"),
    "--root": (("server", "root"), "DIR", "images, records, what else outlives a reboot (default: /var/lib/cri_py)"),
    "--state": (("server", "state"), "DIR", "sockets, bundles, pinned netns (default: /run/cri_py)"),
    "--metrics": (("metrics", "listen"), "ADDRESS", "Prometheus metrics, unix:///path, 127.0.0.1:PORT or off"),
    "--cgroup-parent": (("cgroups", "parent"), "PATH", "cgroup of pods that name none (default: /cri_py)"),
    "--cgroup-driver": (("cgroups", "driver"), "DRIVER", "auto, systemd or cgroupfs (default: auto)"),
    "--bridge": (("network", "bridge"), "NAME", "the pods' bridge (default: crip0)"),
    "--subnet": (("network", "subnet"), "CIDR", "the pods' IPv4 network (default: 10.85.0.0/16)"),
    "--log-level": (("log", "level"), "LEVEL", "debug, info, warning or error (default: info)"),
}
_DIRECTORIES: Final = ("--root", "--state")  # typed relative to where the user stands


def run(arguments: Sequence[str], out: TextIO | None = None) -> int:
    """Run one command; what it prints goes to ``out`` (standard output). Returns the exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, TextIO], int] = parsed.command
    try:
        return command(parsed, sys.stdout if out is None else out)
    except ConfigError as error:
        print(f"cri-py: {error}", file=sys.stderr)
        return USAGE_ERROR
    except CriError as error:
        print(f"cri-py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # as a shell would tell it
    except BrokenPipeError:
        # The reader (head, less) has had enough; what is still buffered must not raise once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# ---------------------------------------------------------------- commands


def _serve(parsed: argparse.Namespace, _out: TextIO) -> int:
    loaded = _load(parsed)
    from cri_py.kernel.features import probe  # noqa: PLC0415
    from cri_py.model import Features  # noqa: PLC0415
    from cri_py.monitor.client import SpawnerClient  # noqa: PLC0415

    spawner = SpawnerClient()
    spawner.start()  # before grpc is imported, which the line after next does
    features = Features(*probe(loaded.config.server.root))
    from cri_py import app  # noqa: PLC0415

    return app.serve(loaded.config, spawner, features)


def _check(parsed: argparse.Namespace, out: TextIO) -> int:
    loaded = _load(parsed)
    from cri_py import cli_check  # noqa: PLC0415

    findings = cli_check.findings(loaded.config)
    out.write(cli_check.as_json(findings) if parsed.json else cli_check.as_text(findings))
    return 1 if any(finding.verdict is cli_check.Verdict.MISSING for finding in findings) else 0


def _asking(name: str, module: str = "cli_image") -> Callable[[argparse.Namespace, TextIO], int]:
    """A command that asks a running daemon, imported when it runs: it brings grpc along."""

    def command(parsed: argparse.Namespace, out: TextIO) -> int:
        loaded = _load(parsed)
        run_it: Callable[[config.Config, argparse.Namespace, TextIO], int]
        run_it = getattr(importlib.import_module(f"cri_py.{module}"), name)
        return run_it(loaded.config, parsed, out)

    return command


def _config_default(_parsed: argparse.Namespace, out: TextIO) -> int:
    out.write(config.default_text())
    return 0


def _config_check(parsed: argparse.Namespace, out: TextIO) -> int:
    loaded = _load(parsed)
    _check_driver(loaded)
    files = config.files_of(parsed.config)
    out.write(f"{', '.join(files) if files else 'no file, all defaults'}: valid\n")
    return 0


def _check_driver(loaded: config.Loaded) -> None:
    """Of what is asked for by name, whether this node has it. Raises ConfigError that names the line."""
    from cri_py.cgroups import detect  # noqa: PLC0415
    from cri_py.pods import cgroup_drivers  # noqa: PLC0415

    if loaded.config.cgroups.driver == "systemd":
        try:
            cgroup_drivers.choose("systemd", detect())
        except CriError as error:
            raise ConfigError(f"{loaded.sources['cgroups', 'driver']}: {error.message}", hint=error.hint) from error


def _config_show(parsed: argparse.Namespace, out: TextIO) -> int:
    out.write(config.effective_text(_load(parsed)))
    return 0


def _version(_parsed: argparse.Namespace, out: TextIO) -> int:
    out.write(f"cri_py {__version__} (CRI v1, Python {sys.version.split()[0]})\n")
    return 0


def _load(parsed: argparse.Namespace) -> config.Loaded:
    flags = {}
    for name, (path, _, _) in _FLAGS.items():
        value = getattr(parsed, name.removeprefix("--").replace("-", "_"))
        if value is not None:
            flags[path] = config.Flag(name, os.path.abspath(value) if value and name in _DIRECTORIES else value)
    return config.load(config.files_of(parsed.config), flags)


# ------------------------------------------------------------------ parser


def _parser() -> argparse.ArgumentParser:
    parser = _described(argparse.ArgumentParser, prog="cri-py", description=_TOP)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "serve", _serve, "run the daemon", _SERVE)
    check = _add(commands, "check", _check, "what this machine lacks, and the remedy", _CHECK)
    check.add_argument("--json", action="store_true", help="for programs: a list of findings")
    explain = _add(
        commands, "explain", _asking("explain", "cli_explain"), "what isolates and limits a container", _EXPLAIN
    )
    explain.add_argument("container", metavar="CONTAINER", help="its id or the beginning of it")
    explain.add_argument("--json", action="store_true", help="for programs: docs/explain.md has the shape")
    _add_top(commands)
    _add_image_commands(commands)
    _add_config_commands(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(command=_version)
    return parser


def _add_top(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    top = _add(commands, "top", _asking("top", "cli_top"), "what pods and containers use right now", _TOP_COMMAND)
    orders = "name, cpu, memory, limit, read, write, rx, tx, pids, psi-cpu, psi-mem or psi-io"
    top.add_argument("--sort", metavar="BY", default="cpu", choices=orders.replace(" or", ",").split(", "), help=orders)
    top.add_argument("--interval", metavar="S", type=float, default=2.0, help="seconds between two looks (default: 2)")
    top.add_argument(
        "--count", metavar="N", type=int, default=0, help="end after N tables (default: on a terminal none)"
    )
    top.add_argument("--plain", action="store_true", help="print tables, on a terminal too")


def _add_image_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parent = _described(commands.add_parser, name="image", help="the images of the node", epilog=_IMAGE)
    inner = parent.add_subparsers(title="commands", metavar="COMMAND", required=True)
    pull = _add(inner, "pull", _asking("pull"), "make an image present", "")
    pull.add_argument("ref", metavar="REF", help="such as registry.k8s.io/pause:3.10")
    ls = _add(inner, "ls", _asking("ls"), "list the images that are here", "")
    ls.add_argument("--json", action="store_true", help="for programs")
    inspect = _add(inner, "inspect", _asking("inspect"), "names, layers and config of an image, as JSON", "")
    inspect.add_argument("ref", metavar="REF", help="a tag, a digest, an id or its beginning")
    tag = _add(inner, "tag", _asking("tag"), "give an image a further tag", "")
    tag.add_argument("ref", metavar="REF", help="a tag, a digest, an id or its beginning")
    tag.add_argument("tag", metavar="TAG", help="the new one, NAME:TAG")
    rm = _add(inner, "rm", _asking("rm"), "remove a tag, or with an id or the last tag an image", "")
    rm.add_argument("refs", metavar="REF", nargs="+", help="a tag, a digest, an id or its beginning")
    _add_exchange_commands(inner)
    check = _add(inner, "check", _asking("check"), "find what is damaged or left over in the image store", _IMAGE_CHECK)
    check.add_argument("--deep", action="store_true", help="read every byte")
    check.add_argument("--repair", action="store_true", help="mend what can be mended, forget what can't")
    check.add_argument("--dry-run", action="store_true", help="with --repair: change nothing, tell what would be done")


def _add_exchange_commands(inner: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Images without a registry."""
    take = _add(inner, "import", _asking("take", "cli_exchange"), "take images from an archive", _IMAGE_IMPORT)
    take.add_argument(
        "path", metavar="PATH", help="an archive, a directory with an OCI layout, or - for standard input"
    )
    take.add_argument("--tag", metavar="NAME:TAG", default="", help="for an image that brings no name")
    give = _add(inner, "export", _asking("give", "cli_exchange"), "write images into an archive", _IMAGE_EXPORT)
    give.add_argument("refs", metavar="REF", nargs="+", help="a tag, a digest, an id or its beginning")
    give.add_argument("--output", "-o", metavar="PATH", default="-", help="the archive (default: standard output)")
    give.add_argument("--layout", action="store_true", help="make PATH a directory with an OCI layout, no archive")
    build = _add(inner, "build", _asking("build", "cli_exchange"), "make an image of a directory", _IMAGE_BUILD)
    build.add_argument("directory", metavar="DIR", help="its tree becomes the image's root")
    build.add_argument("--tag", metavar="NAME:TAG", required=True, help="the image's name")
    for flag, metavar, purpose in _WORDS:
        build.add_argument(flag, metavar=metavar, default=(), type=_words, help=f"{purpose}: a JSON array, or words")
    for flag, metavar, purpose in _REPEATED:
        build.add_argument(flag, metavar=metavar, action="append", default=[], help=f"{purpose}; may come often")
    for flag, metavar, purpose in _ONCE:
        build.add_argument(flag, metavar=metavar, default="", help=purpose)
    commit = _add(inner, "commit", _asking("commit", "cli_exchange"), "make an image of a container's changes", "")
    commit.add_argument("container", metavar="CONTAINER", help="its id or the beginning of it")
    commit.add_argument("--tag", metavar="NAME:TAG", required=True, help="the image's name")


def _words(text: str) -> tuple[str, ...]:
    """``["/bin/sh", "-c"]``, or as a shell would split it: ``/bin/sh -c``."""
    if not text.startswith("["):
        return tuple(shlex.split(text))
    words = json.loads(text)
    if not all(isinstance(word, str) for word in words):
        raise ValueError(text)  # argparse says which flag had it
    return tuple(words)


def _add_config_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parent = _described(commands.add_parser, name="config", help="print or check the configuration", epilog=_CONFIG)
    inner = parent.add_subparsers(title="commands", metavar="COMMAND", required=True)
    inner.add_parser("default", help="print a config file with all defaults and what each key means").set_defaults(
        command=_config_default
    )
    _add(inner, "check", _config_check, "check the files; exit status 2 if they are wrong", "")
    _add(inner, "show", _config_show, "print the effective config, each value with where it was set", "")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace, TextIO], int],
    purpose: str,
    examples: str,
) -> argparse.ArgumentParser:
    """A command that reads the config, so that it takes the config's flags."""
    parser = _described(commands.add_parser, name=name, help=purpose, description=purpose, epilog=examples)
    parser.set_defaults(command=command)
    parser.add_argument(
        "--config", metavar="FILE", default=config.DEFAULT_FILE, help=f"TOML (default: {config.DEFAULT_FILE})"
    )
    for flag, (_, metavar, meaning) in _FLAGS.items():
        parser.add_argument(flag, metavar=metavar, help=meaning)
    return parser


def _described(make: Callable[..., argparse.ArgumentParser], **arguments: str) -> argparse.ArgumentParser:
    """A parser that keeps the lines of its examples, and takes no abbreviated flags: new ones would break them."""
    return make(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **arguments)
