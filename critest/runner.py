"""Run the official critest against this runtime, or another one.

    critest/run                                    all of it, against a daemon of its own
    critest/run --focus 'Image Manager'            what matches
    critest/run --cni bridge,portmap               with pods attached by Debian's CNI plugins
    critest/run --endpoint unix:///run/x.sock      against a runtime that runs already and reaches the images
    critest/run -- --ginkgo.seed 1                what follows -- goes to critest

critest is taken from $CRITEST or from PATH. Needs root and Debian's docker-registry, nginx-light, gcc, make, libc6-dev.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from critest import registry, report
from critest.images.catalogue import HOSTS, entries
from critest.images.make import push
from critest.images.programs import MissingProgram, cache
from critest.images.upload import UploadError
from tests.system.daemon import Daemon

_WHERE = """\
critest is neither in $CRITEST nor in PATH. Take the release that fits the machine from
https://github.com/kubernetes-sigs/cri-tools/releases (critest-VERSION-linux-ARCH.tar.gz), unpack it, and name it:
    CRITEST=/path/to/critest critest/run"""
_NOTHING_RAN = 2
_INTERRUPTED = 130
# It names an image by the digest that it has at gcr.io; no stand-in can have that digest.
_BY_DIGEST = "[k8s.io] Image Manager public image with digest should be pulled and removed [Conformance]"


def main(arguments: Sequence[str]) -> int:
    own, passed_on = _split(arguments)
    options = _parser().parse_args(own)
    program = os.environ.get("CRITEST") or shutil.which("critest")
    if not program or not os.access(program, os.X_OK):
        print(_WHERE, file=sys.stderr)
        return _NOTHING_RAN
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what ends us cleans up, too
    work = Path(tempfile.mkdtemp(prefix="critest-"))
    try:
        with contextlib.ExitStack() as stack:
            endpoint = options.endpoint or stack.enter_context(_serving(options.keep, options.cni))
            left_out = {} if options.endpoint else _left_out(options.focus)
            skips = [options.skip, *map(re.escape, left_out)]
            expressions = [*_expressions("focus", [options.focus]), *_expressions("skip", skips)]
            results = _run(program, endpoint, [*expressions, *passed_on], work, left_out)
        print(report.render(results))
    except (MissingProgram, UploadError) as error:
        print(f"critest/run: {error}", file=sys.stderr)
        return _NOTHING_RAN
    except KeyboardInterrupt:
        print("critest/run: ended before critest was through", file=sys.stderr)
        return _INTERRUPTED
    finally:
        if options.keep:
            print(f"kept: {work}", file=sys.stderr)
        else:
            shutil.rmtree(work)
    if not results:
        return _NOTHING_RAN
    return int(any(result.outcome == "failed" for result in results))


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="critest/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--focus", default="", metavar="REGEX", help="only specs whose full name matches")
    parser.add_argument("--skip", default="", metavar="REGEX", help="none of these; they aren't counted")
    parser.add_argument("--endpoint", default="", metavar="unix://PATH", help="test the runtime that listens there")
    parser.add_argument("--cni", default="", metavar="CHAIN", help="pods are attached by these of Debian's CNI plugins")
    parser.add_argument("--keep", action="store_true", help="keep critest's log and report, and the daemon's log")
    return parser


def _expressions(kind: str, expressions: Iterable[str]) -> list[str]:
    return [f"--ginkgo.{kind}={expression}" for expression in expressions if expression]


def _left_out(focus: str) -> dict[str, str]:
    """Specs that were chosen and can't be run on this machine: the reason by full name."""
    if not re.search(focus, _BY_DIGEST):
        return {}
    try:
        with socket.create_connection(("gcr.io", 443), timeout=3):
            return {}
    except OSError as error:
        return {_BY_DIGEST: f"names an image by its digest at gcr.io, which can't be reached: {error}"}


@contextlib.contextmanager
def _serving(keep: bool, cni: str) -> Iterator[str]:
    """A registry with all images and a daemon that takes every host's images from it; the CRI endpoint."""
    with registry.running(cache() / "registry") as address:
        print("pushing the images ...", file=sys.stderr)
        push(address, entries(), quiet=True)
        tables = [f'[images.registries."{host}"]\nmirrors = ["http://{address}"]' for host in HOSTS]
        daemon = Daemon(f"http://{address}", "\n".join(tables), cni=[kind for kind in cni.split(",") if kind])
        try:
            daemon.start()
            yield f"unix://{daemon.socket}"
        finally:
            if keep:
                kept = Path(tempfile.mkdtemp(prefix="critest-daemon-")) / "log"
                shutil.copy(daemon.log_file, kept)
                print(f"the daemon's log: {kept}", file=sys.stderr)
            daemon.destroy()


def _run(
    program: str, endpoint: str, arguments: Sequence[str], work: Path, left_out: Mapping[str, str]
) -> list[report.Result]:
    """critest's results. Raises MissingProgram if it left no report."""
    document, log = work / "report.json", work / "log"
    ends = [f"--runtime-endpoint={endpoint}", f"--image-endpoint={endpoint}"]
    with log.open("wb") as output:
        status = subprocess.run(
            [program, *ends, f"--ginkgo.json-report={document}", "--ginkgo.no-color", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
            cwd=work,
        ).returncode
    if not document.exists():
        raise MissingProgram(
            f"{program} ended with status {status} and left no report:\n{log.read_text(errors='replace')[-4000:]}"
        )
    return report.read(json.loads(document.read_text()), left_out)
