"""Make ``cri_py/rpc/gen/`` from the .proto files: messages, their types for mypy, and the service stubs.

Run it after a change of one: ``python proto/generate.py``. It needs the grpcio-tools that pyproject.toml pins
under ``dev``: another version writes other bytes, and a house test compares them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

PROTO_ROOT: Final = Path(__file__).resolve().parent
TARGET: Final = PROTO_ROOT.parent / "cri_py" / "rpc" / "gen"
SOURCES: Final = ("runtime/v1/api.proto", "cri_py/v1/images.proto")

# protoc names a Python module by the path of its .proto, so the stubs import runtime.v1; in our package the messages
# are a sibling. The descriptor keeps the full path: it identifies the file in protobuf's one pool per process.
IMPORT_WANTED: Final = "from cri_py.rpc.gen import "

PACKAGE_DOC: Final = '"""Written by proto/generate.py from proto/*/v1/*.proto. Don\'t edit."""\n'


def generate(target: Path) -> None:
    """Write all generated files into ``target``, an existing directory. Raises RuntimeError if protoc refuses."""
    from grpc_tools import protoc  # noqa: PLC0415 - so that reading this module doesn't need the compiler

    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            f"--proto_path={PROTO_ROOT}",
            f"--python_out={scratch}",
            f"--pyi_out={scratch}",
            f"--grpc_python_out={scratch}",
            *SOURCES,
        ]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc could not compile {', '.join(SOURCES)} in {PROTO_ROOT}")
        for source in SOURCES:
            directory = (Path(scratch) / source).parent
            written = f"from {directory.relative_to(scratch).as_posix().replace('/', '.')} import "
            for made in sorted(directory.iterdir()):
                (target / made.name).write_text(made.read_text().replace(written, IMPORT_WANTED))
    (target / "__init__.py").write_text(PACKAGE_DOC)


def main() -> int:
    TARGET.mkdir(parents=True, exist_ok=True)
    generate(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
