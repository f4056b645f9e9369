"""Care under way, as files whose processes may be killed."""

from __future__ import annotations

from pathlib import Path

from engine.care.pace import Progress, silent
from engine.care.underway import FOLDER, telling, under_way


def test_what_a_killed_process_told_goes_with_the_next_piece_of_care(tmp_path: Path) -> None:
    folder = tmp_path / "index" / FOLDER
    folder.mkdir(parents=True)
    dead = 2**22 + 1  # no process has an id above pid_max
    (folder / f"{dead}-scrub.json").write_text("{}")
    (folder / f"{dead}-scrub.new").write_text("")
    with telling(tmp_path, "repair", silent) as tell:
        tell(Progress("repair", 1, 2))
        assert [progress.what for progress in under_way(tmp_path)] == ["repair"]
        assert len(list(folder.iterdir())) == 1
    assert not list(folder.iterdir())
