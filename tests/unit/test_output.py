"""Claims about how listing commands show what they found."""

import json

import click
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


def test_a_long_row_costs_the_others_no_empty_lines_on_a_terminal(capsys, monkeypatch):
    """Nothing is padded at its end, which a narrow terminal would break into empty lines."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "24")
    records = [{"id": "p-1", "detail": "x" * 100}, {"id": "p-2", "detail": "short"}]
    output.show_records(records, "table", columns=["id", "detail"])
    assert click.unstyle(capsys.readouterr().out).splitlines()[2] == "p-2  short"


def test_columns_are_aligned_whatever_the_script(capsys):
    """An ideograph takes two places of a terminal, an accent that follows its letter none."""
    records = [{"labels": "東京", "state": "a"}, {"labels": "Zu\u0308rich", "state": "b"}]
    output.show_records(records, "table", columns=["labels", "state"])
    assert capsys.readouterr().out == "LABELS  STATE\n東京    a\nZu\u0308rich  b\n"


def test_what_a_record_says_cannot_break_a_line(capsys):
    """Line ends and a terminal's escape sequences, which others may write, are written out."""
    record = {"id": "p-1", "labels": {"note": "a\nb\x1b[2J"}}
    output.show_records([record], "table", columns=["id", "labels"])
    output.show_next(record, "table", columns=["id", "labels"])
    table, row, line = capsys.readouterr().out.splitlines()
    assert table == "ID   LABELS"
    assert row == line == r"p-1  note=a\nb\x1b[2J"


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


def test_an_endless_stream_is_coloured_on_a_terminal_only(capsys, monkeypatch):
    """States in it have the colours of tables; NO_COLOR is heeded."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    output.show_next(RECORDS[1], "table", columns=["id", "state"])
    assert capsys.readouterr().out == "p-2  \x1b[33mdraining\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    output.show_next(RECORDS[1], "table", columns=["id", "state"])
    monkeypatch.undo()
    output.show_next(RECORDS[1], "table", columns=["id", "state"])
    assert capsys.readouterr().out == "p-2  draining\n" * 2
