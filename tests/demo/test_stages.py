from __future__ import annotations

from pathlib import Path

import pytest

from leeboard._files import replacing, write_json
from leeboard.demo.stages import Stage, StageCache, locked


class Line:
    """Two stages, the second reading the first, that count their builds."""

    def __init__(self, root: Path, redo: str | None = None) -> None:
        self.cache = StageCache(root, redo)
        self.built: list[str] = []

    def run(self, size: int = 1, extra: int = 1, version: int = 1) -> tuple[Stage, Stage]:
        def first(folder: Path) -> None:
            self.built.append("first")
            (folder / "value").write_text(str(size))

        def second(folder: Path) -> None:
            self.built.append("second")
            (folder / "value").write_text((one.path / "value").read_text() + f"+{extra}")

        one = self.cache.run("first", first, version=version, settings={"size": size})
        two = self.cache.run("second", second, version=1, settings={"x": extra}, inputs=[one])
        return one, two


def test_a_stage_runs_once(tmp_path: Path) -> None:
    line = Line(tmp_path)
    one, two = line.run()
    again = Line(tmp_path)
    cached = again.run()
    assert line.built == ["first", "second"]
    assert again.built == []
    assert not one.reused
    assert all(stage.reused for stage in cached)
    assert [stage.path for stage in cached] == [one.path, two.path]
    assert cached[0].seconds == one.seconds


def test_a_changed_setting_reruns_the_stage_and_what_reads_it(tmp_path: Path) -> None:
    Line(tmp_path).run()
    line = Line(tmp_path)
    _, two = line.run(size=2)
    assert line.built == ["first", "second"]
    assert (two.path / "value").read_text() == "2+1"

    line = Line(tmp_path)
    line.run(extra=5)
    assert line.built == ["second"]

    line = Line(tmp_path)
    line.run(version=2)
    assert line.built == ["first", "second"]

    # What was built before is still there.
    line = Line(tmp_path)
    line.run()
    line.run(size=2)
    assert line.built == []


def test_redo_repeats_from_a_stage_on(tmp_path: Path) -> None:
    Line(tmp_path).run()
    line = Line(tmp_path, redo="second")
    _, two = line.run()
    assert line.built == ["second"]
    assert (two.path / "value").read_text() == "1+1"
    line = Line(tmp_path, redo="first")
    line.run()
    assert line.built == ["first", "second"]


def test_an_interrupted_stage_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)

    def interrupted(folder: Path) -> None:
        (folder / "checkpoint").write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.run("work", interrupted, version=1, settings={})
    assert [path.name.endswith(".partial") for path in tmp_path.iterdir()] == [True]

    def resumed(folder: Path) -> None:
        # The next build finds what the interrupted one left.
        assert (folder / "checkpoint").read_text() == "half way"
        (folder / "checkpoint").unlink()
        (folder / "result").write_text("whole")

    stage = cache.run("work", resumed, version=1, settings={})
    assert not stage.reused
    assert sorted(path.name for path in stage.path.iterdir()) == ["result", "stage.json"]
    assert [path.name for path in tmp_path.iterdir()] == [stage.path.name]


def test_a_failed_write_leaves_the_old_file_and_no_half_one(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": True})

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(TypeError):
        write_json(path, {"not JSON": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]
    assert "old" in path.read_text()


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(RuntimeError, match="another run is writing"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_a_cache_that_builds_nothing(tmp_path: Path) -> None:
    line = Line(tmp_path / "stages")
    line.cache = StageCache(tmp_path / "stages", build=False)
    with pytest.raises(FileNotFoundError, match=r"first-.*: not found; run `leeboard demo` first"):
        line.run()
    assert line.built == []
    Line(tmp_path / "stages").run()
    one, two = line.run()
    assert one.reused
    assert two.reused
    assert line.built == []
