"""The committed stubs are what the .proto compiles to, and the .proto says what the table of CRI v1 says."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from cri_py.rpc.gen import api_pb2

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "golden" / "cri-v1.tsv"
PACKAGE = api_pb2.DESCRIPTOR.package + "."

SCALARS = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}

Row = tuple[str, str, str, str, str, str]


def test_generating_again_gives_the_committed_stubs(tmp_path: Path) -> None:
    generator = _generator()
    generator.generate(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in generator.TARGET.iterdir() if path.is_file()}
    assert made == committed, "run `python proto/generate.py` and commit cri_py/rpc/gen"


def test_the_compiled_proto_has_nothing_that_the_table_lacks() -> None:
    assert sorted(_compiled() - _table()) == []


def test_the_table_has_nothing_that_the_compiled_proto_lacks() -> None:
    assert sorted(_table() - _compiled()) == []


def test_the_package_is_the_one_that_the_kubelet_calls() -> None:
    assert api_pb2.DESCRIPTOR.package == "runtime.v1"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("proto_generate", ROOT / "proto" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _table() -> set[Row]:
    with TABLE.open(newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return {(kind, owner, number, type_, name, note) for kind, owner, number, type_, name, note in rows}


def _compiled() -> set[Row]:
    file = api_pb2.DESCRIPTOR
    rows: set[Row] = set()
    for service in file.services_by_name.values():
        for method in service.methods:
            answer = ("stream " if method.server_streaming else "") + _short(method.output_type.full_name)
            assert not method.client_streaming
            signature = f"{_short(method.input_type.full_name)} -> {answer}"
            rows.add(("rpc", service.name, "-", signature, method.name, ""))
    for enum in file.enum_types_by_name.values():
        rows.update(_enum_rows(enum))
    for message in file.message_types_by_name.values():
        rows.update(_message_rows(message))
    return rows


def _enum_rows(enum: EnumDescriptor) -> Iterator[Row]:
    for value in enum.values:
        yield ("enum", _short(enum.full_name), str(value.number), "-", value.name, "")


def _message_rows(message: Descriptor) -> Iterator[Row]:
    owner = _short(message.full_name)
    if not message.fields:
        yield ("message", owner, "-", "-", "-", "")
    for field in message.fields:
        options = field.GetOptions()
        note = ",".join(name for name in ("deprecated", "debug_redact") if getattr(options, name))
        yield ("field", owner, str(field.number), _type(field), field.name, note)
    for enum in message.enum_types:
        yield from _enum_rows(enum)
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from _message_rows(nested)


def _type(field: FieldDescriptor) -> str:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        entry = message.fields_by_name
        return f"map<{_single(entry['key'])},{_single(entry['value'])}>"
    return ("repeated " if field.is_repeated else "") + _single(field)


def _single(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return _short(field.message_type.full_name)
    if field.enum_type is not None:
        return _short(field.enum_type.full_name)
    return SCALARS[field.type]


def _short(full_name: str) -> str:
    assert full_name.startswith(PACKAGE)
    return full_name.removeprefix(PACKAGE)
