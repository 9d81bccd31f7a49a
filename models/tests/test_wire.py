"""The wire-level editor: leaves alone what it does not name, and refuses what is no protobuf message."""

import pytest
from entropic_export import wire
from entropic_export.wire import encode_bytes, encode_varint


def _varint_field(number, value):
    return encode_varint(number << 3) + encode_varint(value)


# op_name and an unknown field stay; source_file, source_line, stack_frame_id and the columns go.
_KEPT_METADATA = encode_bytes(2, b"jit(f)/mul") + _varint_field(21, 9)
_METADATA = (
    encode_bytes(2, b"jit(f)/mul") + encode_bytes(3, b"/home/me/train.py") + _varint_field(4, 12)
    + _varint_field(15, 3) + _varint_field(17, 12) + _varint_field(18, 5) + _varint_field(19, 8) + _varint_field(21, 9)
)  # fmt: skip
_UNKNOWN = encode_bytes(77, b"train.py stays here: it is no location") + encode_varint(99 << 3 | 5) + b"\1\2\3\4"


def _module(metadata, frames):
    instruction = encode_bytes(1, b"mul.1") + encode_bytes(7, metadata) + _UNKNOWN + _varint_field(35, 2**63 - 1)
    computation = encode_bytes(1, b"main") + encode_bytes(2, instruction) + encode_varint(9 << 3 | 1) + b"\0" * 8
    return encode_bytes(1, b"jit_f") + encode_bytes(3, computation) + frames + _UNKNOWN


def test_strips_locations_and_nothing_else():
    frames = encode_bytes(17, encode_bytes(1, b"/home/me/train.py"))
    assert wire.strip_source_locations(_module(_METADATA, frames)) == _module(_KEPT_METADATA, b"")


def test_canonical_form_has_sorted_maps_and_no_module_id():
    def module(first, second, module_id):
        attributes = encode_bytes(19, encode_bytes(1, first) + encode_bytes(1, second))
        instruction = encode_bytes(68, encode_bytes(1, first) + encode_bytes(1, second))
        return encode_bytes(3, encode_bytes(2, instruction)) + module_id + attributes + _UNKNOWN

    one, two = encode_bytes(1, b"a") + encode_bytes(2, b"x"), encode_bytes(1, b"b") + encode_bytes(2, b"y")
    assert wire.canonicalize(module(two, one, _varint_field(5, 41))) == module(one, two, b"")


@pytest.mark.parametrize(
    ("garbage", "message"),
    [
        (b"\x1a\x05ab", "field 3 at byte 0 needs 5 bytes"),
        (b"\x80", "truncated varint"),
        (b"\xff" * 12, "truncated varint"),
        (b"\x0b", "wire type 3 at byte 0"),
        (b"\x18\x01", "field 3 holds a number where a message belongs"),
    ],
)
def test_refuses_what_is_no_message(garbage, message):
    with pytest.raises(ValueError, match=message):
        wire.strip_source_locations(garbage)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**64 - 1])
def test_varints_round_trip(value):
    (field,) = wire.fields(_varint_field(4, value))
    assert (field.number, field.value) == (4, value)
