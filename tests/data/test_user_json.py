"""JSON from outside: any fault is a reason in one line, wherever such a file is read."""

import pytest

from data.strict_json import parsed

DEEP, LONG = "[" * 100_000, "9" * 5000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "^lists or objects are nested too deeply$"),
        ('{"a":' * 100_000, "^lists or objects are nested too deeply$"),
        (LONG, "^a number has more than 4,300 digits$"),
        ("{", "^Expecting property name"),
        (b'"\xff"', "codec can't decode byte 0xff"),
    ],
)
def test_what_cannot_be_read(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parsed(text)
    assert "\n" not in str(caught.value)


def test_everything_else_is_jsons():
    assert parsed('{"a": [1, 2.5, null, "ü"]}') == parsed('{"a": [1, 2.5, null, "ü"]}'.encode())
    assert parsed('{"a": [1, 2.5, null, "ü"]}') == {"a": [1, 2.5, None, "ü"]}


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize(("value", "reason"), [(DEEP, "nested too deeply"), (LONG, "more than 4,300 digits")])
def test_records(tmp_path, name, value, reason):
    """A list that is read an element at a time, and lines."""
    from data.records.source import RecordSource, read

    line = f'{{"text": {value}}}'
    (tmp_path / name).write_text(f"[\n{line}]" if name == "x.json" else f'{{"text": "fine"}}\n{line}')
    with pytest.raises(ValueError, match=rf"{name}:2: not JSON \(.*{reason}\)"):
        list(read(RecordSource((tmp_path / name,))))
