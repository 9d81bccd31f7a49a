"""Edits serialized HLO protos on the wire, field by field.

Guarantees: what is not named here rides along byte for byte, unknown fields included, and the result depends only on
the input bytes. Refuses (`ValueError`) bytes that are not a well-formed protobuf message.

Field numbers are facts of XLA's wire format (`hlo.proto`, `xla_data.proto`).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

# HloModuleProto
MODULE_COMPUTATIONS = 3
MODULE_HOST_PROGRAM_SHAPE = 4
MODULE_ID = 5
MODULE_ENTRY_ID = 6
MODULE_ALIAS = 8
MODULE_STACK_FRAMES = 17
MODULE_DONORS = 18
MODULE_FRONTEND_ATTRIBUTES = 19
# HloComputationProto
COMPUTATION_INSTRUCTIONS = 2
COMPUTATION_ID = 5
# HloInstructionProto
INSTRUCTION_OPCODE = 2
INSTRUCTION_METADATA = 7
INSTRUCTION_FRONTEND_ATTRIBUTES = 68
# OpMetadata: source_file, source_line, stack_frame_id, source_end_line, source_column, source_end_column
METADATA_SOURCE = frozenset({3, 4, 15, 17, 18, 19})
# FrontendAttributes
ATTRIBUTES_MAP = 1
# ProgramShapeProto and ShapeProto
PROGRAM_PARAMETERS = 1
PROGRAM_RESULT = 2
SHAPE_ELEMENT_TYPE = 2
SHAPE_DIMENSIONS = 3
SHAPE_TUPLE = 4
ELEMENT_TYPE_TUPLE = 13

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field as it stands on the wire.

    `value` is the integer of a varint, otherwise the payload bytes; `raw` is the whole field, tag included.
    """

    number: int
    wire_type: int
    value: int | bytes
    raw: bytes


def encode_varint(value: int) -> bytes:
    """The base-128 encoding of a non-negative integer."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_bytes(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(payload)) + payload


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a serialized message in wire order."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        value: int | bytes
        if wire_type == _VARINT:
            value, at = _varint(message, at)
        else:
            if wire_type == _BYTES:
                length, at = _varint(message, at)
            elif wire_type == _FIXED64:
                length = 8
            elif wire_type == _FIXED32:
                length = 4
            else:
                raise ValueError(f"not a protobuf message: wire type {wire_type} at byte {start}")
            if at + length > len(message):
                raise ValueError(f"truncated protobuf message: field {number} at byte {start} needs {length} bytes")
            value, at = message[at : at + length], at + length
        yield Field(number, wire_type, value, message[start:at])


def strip_source_locations(module: bytes) -> bytes:
    """The HloModuleProto without file names, function names, lines and columns; `op_name` stays."""

    def metadata(payload: bytes) -> bytes:
        return b"".join(f.raw for f in fields(payload) if f.number not in METADATA_SOURCE)

    def instruction(payload: bytes) -> bytes:
        return _edit(payload, {INSTRUCTION_METADATA: metadata})

    def computation(payload: bytes) -> bytes:
        return _edit(payload, {COMPUTATION_INSTRUCTIONS: instruction})

    return _edit(module, {MODULE_COMPUTATIONS: computation, MODULE_STACK_FRAMES: None})


def canonicalize(module: bytes) -> bytes:
    """The HloModuleProto without what differs from process to process.

    The module id counts the modules that a process has made, and protobuf writes maps in no particular order: the id
    goes, the maps are sorted by key.
    """

    def instruction(payload: bytes) -> bytes:
        return _edit(payload, {INSTRUCTION_FRONTEND_ATTRIBUTES: _sorted_map})

    def computation(payload: bytes) -> bytes:
        return _edit(payload, {COMPUTATION_INSTRUCTIONS: instruction})

    return _edit(
        module,
        {MODULE_COMPUTATIONS: computation, MODULE_ID: None, MODULE_FRONTEND_ATTRIBUTES: _sorted_map},
    )


def entry_shapes(module: bytes) -> tuple[list[tuple[int, tuple[int, ...]]], list[tuple[int, tuple[int, ...]]]]:
    """The (element type, dimensions) of the entry's parameters and of its results, a tuple result taken apart."""
    parameters: list[tuple[int, tuple[int, ...]]] = []
    results: list[tuple[int, tuple[int, ...]]] = []
    for program in (f for f in fields(module) if f.number == MODULE_HOST_PROGRAM_SHAPE):
        for part in fields(_payload(program)):
            if part.number == PROGRAM_PARAMETERS:
                parameters.append(_array_shape(_payload(part)))
            elif part.number == PROGRAM_RESULT:
                leaves = [f for f in fields(_payload(part)) if f.number == SHAPE_TUPLE]
                if leaves or _array_shape(_payload(part))[0] == ELEMENT_TYPE_TUPLE:
                    results = [_array_shape(_payload(leaf)) for leaf in leaves]
                else:
                    results = [_array_shape(_payload(part))]
    return parameters, results


def alias_table(module: bytes) -> dict[int, int]:
    """The declared aliases of a module: output index to parameter number."""
    table: dict[int, int] = {}
    for alias in (f for f in fields(module) if f.number == MODULE_ALIAS):
        for entry in fields(_payload(alias)):
            output, parameter = 0, 0
            for f in fields(_payload(entry)):
                if f.number == 1:
                    output = (_packed(f) or [0])[0]
                elif f.number == 2 and isinstance(f.value, int):
                    parameter = f.value
            table[output] = parameter
    return table


def _varint(message: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
    raise ValueError(f"malformed or truncated varint before byte {at}")


def _payload(field: Field) -> bytes:
    if not isinstance(field.value, bytes):
        raise ValueError(f"field {field.number} holds a number where a message belongs")
    return field.value


def _edit(message: bytes, edits: dict[int, Callable[[bytes], bytes] | None]) -> bytes:
    """Rewrites the named sub-messages and drops the fields named with None."""
    out = bytearray()
    for f in fields(message):
        if f.number not in edits:
            out += f.raw
            continue
        edit = edits[f.number]
        if edit is not None:
            out += encode_bytes(f.number, edit(_payload(f)))
    return bytes(out)


def _sorted_map(attributes: bytes) -> bytes:
    entries = list(fields(attributes))
    in_map = sorted((f for f in entries if f.number == ATTRIBUTES_MAP), key=lambda f: f.value)
    return b"".join(f.raw for f in in_map) + b"".join(f.raw for f in entries if f.number != ATTRIBUTES_MAP)


def _array_shape(shape: bytes) -> tuple[int, tuple[int, ...]]:
    element_type, dimensions = 0, []
    for f in fields(shape):
        if f.number == SHAPE_ELEMENT_TYPE and isinstance(f.value, int):
            element_type = f.value
        elif f.number == SHAPE_DIMENSIONS:
            dimensions += _packed(f)
    return element_type, tuple(dimensions)


def _packed(field: Field) -> list[int]:
    """The integers of a repeated field, packed or not."""
    if isinstance(field.value, int):
        return [field.value]
    values, at = [], 0
    while at < len(field.value):
        value, at = _varint(field.value, at)
        values.append(value)
    return values
