"""Claims about how listing commands show what they found."""

import json

import yaml

from meshrpc.cli import output

RECORDS = [
    {"id": "payment-1", "labels": {"tier": "gold", "az": "b"}, "zone": None, "state": "active"},
    {"id": "p-2", "labels": {}, "zone": "[red]", "state": "draining"},
]


def test_a_piped_table_is_plain_aligned_text(capsys):
    """Into a pipe go the chosen columns, in order, without colour or trailing spaces."""
    output.show_records(RECORDS, "table", columns=["id", "zone", "state", "labels"])
    assert capsys.readouterr().out == (
        "ID         ZONE   STATE     LABELS\n"
        "payment-1  -      active    tier=gold,az=b\n"
        "p-2        [red]  draining  -\n"
    )


def test_a_terminal_gets_colour_and_no_markup(capsys, monkeypatch):
    """On a terminal states are coloured; a value that looks like markup stays as it is."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output.show_records(RECORDS, "table", columns=["id", "zone", "state"])
    shown = capsys.readouterr().out
    assert "\x1b[33mdraining" in shown
    assert "[red]" in shown


def test_a_narrow_terminal_loses_empty_columns_and_breaks_no_cell(capsys, monkeypatch):
    """What can be copied from a wide terminal can be copied from a narrow one."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "24")
    records = [{**record, "zone": None} for record in RECORDS]
    output.show_records(records, "table", columns=["id", "zone", "state", "labels"])
    heading, *rows = capsys.readouterr().out.splitlines()
    assert "ZONE" not in heading
    assert [row.split()[0] for row in rows] == ["payment-1", "p-2"]
    assert "tier=gold,az=b" in rows[0]
    output.show_records([], "table", columns=["id", "zone", "state", "labels"])
    assert "ZONE" in capsys.readouterr().out


def test_json_and_yaml_hold_whole_records(capsys):
    """Both program-readable forms say the same, whatever the columns are."""
    output.show_records(RECORDS, "json", columns=["id"])
    as_json = json.loads(capsys.readouterr().out)
    output.show_records(RECORDS, "yaml", columns=["id"])
    as_yaml = yaml.safe_load(capsys.readouterr().out)
    assert as_json == as_yaml == RECORDS


def test_an_empty_list_stays_a_list(capsys):
    """Nothing found is an empty JSON list, and a table of headings."""
    output.show_records([], "json", columns=["id"])
    assert json.loads(capsys.readouterr().out) == []
    output.show_records([], "table", columns=["id", "state"])
    assert capsys.readouterr().out == "ID  STATE\n"


def test_one_record_is_a_row_per_key(capsys):
    """A single thing is shown with its keys down the side."""
    output.show_record({"revision": 7, "source": None}, "table")
    assert capsys.readouterr().out == "revision  7\nsource    -\n"
    output.show_record({"revision": 7, "source": None}, "json")
    assert json.loads(capsys.readouterr().out) == {"revision": 7, "source": None}


def test_an_endless_stream_can_be_read_as_it_comes(capsys):
    """Each further record is one line of JSON, or a YAML document of its own."""
    for record in RECORDS:
        output.show_next(record, "json", columns=["id"])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == RECORDS
    for record in RECORDS:
        output.show_next(record, "yaml", columns=["id"])
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == RECORDS
