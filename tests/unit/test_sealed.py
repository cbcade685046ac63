"""Sealed records: every flipped bit of one is noticed or changes nothing."""

import json
from contextlib import suppress

import pytest

from millrace.errors import DataError
from millrace.sealed import read_lines, read_sealed, sealed, write_sealed

RECORD = {"identity": "5f1c", "epoch": 12, "loss": 0.25, "scale": [1e-9, 3.5], "of": {"head": None}}
SAID = ("a receipt", "it lies beside the checkpoint", "delete it")


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "epoch_12.json"
    write_sealed(path, RECORD)
    content = path.read_bytes()
    assert read_sealed(path, *SAID) == RECORD
    unnoticed = 0
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with suppress(DataError):
            assert RECORD.items() <= read_sealed(path, *SAID).items(), bit
            unnoticed += 1
    assert unnoticed < 0.1 * 8 * len(content)


def test_records_of_earlier_versions_have_no_seal(tmp_path):
    path = tmp_path / "epoch_12.json"
    path.write_text(json.dumps(RECORD))
    assert read_sealed(path, *SAID) == RECORD


@pytest.mark.parametrize("content", [b"[1, 2]", b"", b"\xff\xfe", b"[" * 100_000, b'{"seal": []}'])
def test_what_is_no_record_is_one_sentence(tmp_path, content):
    path = tmp_path / "epoch_12.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a receipt as it was written; delete it"):
        read_sealed(path, *SAID)
    path.unlink()
    with pytest.raises(DataError, match="expected a receipt; it lies beside the checkpoint"):
        read_sealed(path, *SAID)
    path.mkdir()
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\); delete it"):
        read_sealed(path, *SAID)


def test_lines_that_are_cut_or_damaged_are_left_out(tmp_path):
    path = tmp_path / "sessions.jsonl"
    lines = [json.dumps(sealed({"epoch": epoch})) for epoch in range(4)]
    lines[1] = lines[1].replace('"epoch": 1', '"epoch": 9')
    path.write_text("\n".join([*lines, '{"epoch": 4, "lo']))
    assert [one["epoch"] for one in read_lines(path)] == [0, 2, 3]
    assert [*read_lines(tmp_path / "none")] == []
