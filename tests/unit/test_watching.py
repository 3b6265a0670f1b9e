"""Claims about which changes of files make a reload."""

import os

from meshrpc.workers.watching import Watch


def test_a_change_is_told_once_it_is_over(tmp_path):
    """The look that finds it waits for one that finds nothing new; then it is told once."""
    (tmp_path / "app.py").write_text("a = 1\n")
    watch = Watch(tmp_path)
    assert watch.changes() == []
    (tmp_path / "app.py").write_text("a = 22\n")
    assert watch.changes() == []
    (tmp_path / "other.py").write_text("b = 1\n")
    assert watch.changes() == []
    assert watch.changes() == ["app.py", "other.py"]
    assert watch.changes() == []


def test_new_gone_and_touched_files_are_changes(tmp_path):
    """Below the folder, however deep."""
    deep = tmp_path / "shop" / "payment"
    deep.mkdir(parents=True)
    (deep / "old.py").touch()
    (deep / "app.py").touch()
    watch = Watch(tmp_path)
    (deep / "new.py").touch()
    (deep / "old.py").unlink()
    os.utime(deep / "app.py", (1, 1))
    watch.changes()
    assert watch.changes() == [f"shop/payment/{name}.py" for name in ("app", "new", "old")]


def test_what_is_nobodys_code_in_the_making_is_passed_over(tmp_path):
    """Virtual environments of any name, caches, hidden folders, and files that are not Python's."""
    for folder in ("my_env", ".hidden", "__pycache__", "node_modules", "lib/site-packages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "my_env" / "pyvenv.cfg").touch()
    watch = Watch(tmp_path)
    for folder in ("my_env", ".hidden", "__pycache__", "node_modules", "lib/site-packages"):
        (tmp_path / folder / "x.py").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".x.py").touch()
    assert watch.changes() == []
    assert watch.changes() == []


def test_a_link_in_a_circle_does_not_hold_it_up(tmp_path):
    """Folders are not followed through links; a file is."""
    (tmp_path / "code.txt").write_text("a\n")
    (tmp_path / "app.py").symlink_to(tmp_path / "code.txt")
    (tmp_path / "round").symlink_to(tmp_path)
    watch = Watch(tmp_path)
    (tmp_path / "code.txt").write_text("longer\n")
    watch.changes()
    assert watch.changes() == ["app.py"]


def test_a_folder_that_goes_away_is_no_error(tmp_path):
    """Its files are changes."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "app.py").touch()
    watch = Watch(folder)
    (folder / "app.py").unlink()
    folder.rmdir()
    watch.changes()
    assert watch.changes() == ["app.py"]
