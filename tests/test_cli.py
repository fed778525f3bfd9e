"""The command line itself: which module a verb picks, what it costs, and what errors look like."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from safe_o2o import catalog
from safe_o2o.cli import bench, list_, main, parse
from safe_o2o.errors import ConfigError, DataError, UnknownNameError

HEAVY = ("torch", "numpy", "rich", "tyro", "yaml", "cv2", "onnxruntime", "pybullet", "rclpy", "av")


@dataclass(frozen=True)
class Algo:
    """An algorithm's settings."""

    expectile: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 < self.expectile < 1.0:
            raise ConfigError(f"must lie in (0, 1), got {self.expectile}", where="expectile")


@dataclass(frozen=True)
class Arguments:
    """What a verb takes."""

    data: Path
    """Where the dataset is."""
    episodes: int = 10
    resume: bool = True
    nested: Algo = field(default_factory=Algo)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "safe_o2o.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "80"},
    )


def verb(monkeypatch: pytest.MonkeyPatch, function: object) -> None:
    """Put a verb named `collect` in place whose `main` is the given function."""
    module = ModuleType("safe_o2o.cli.collect")
    module.main = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "safe_o2o.cli.collect", module)


def test_list_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from safe_o2o.cli.main import main; code = main(['list']); "
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
    for kind, names in catalog.TABLES.items():
        assert kind in done.stdout
        for name in names:
            assert name in done.stdout


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from safe_o2o.cli.main import main; main(['--help']); "
        f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
    for name in main.VERBS:
        assert f"  {name} " in done.stdout


def test_list_describes_what_it_does_not_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "trap_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "thing.py").write_text(
        'raise RuntimeError("imported")\nclass Thing:\n    """Does one thing.\n\n    More."""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list_.describe("trap_package.thing:Thing") == "Does one thing."
    assert "no class Other" in list_.describe("trap_package.thing:Other")
    assert "not installed" in list_.describe("absent_package.thing:Thing")


def test_list_takes_a_kind_in_singular_and_plural(capsys: pytest.CaptureFixture[str]) -> None:
    list_.main(["tasks"])
    assert "safe_reach" in capsys.readouterr().out
    list_.main(["task"])
    out = capsys.readouterr().out
    assert "safe_reach" in out and "fosp" not in out
    with pytest.raises(UnknownNameError, match="did you mean 'algorithm'"):
        list_.main(["algoritm"])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["trian"], "did you mean 'train'?"),
        (["colect"], "did you mean 'collect'?"),
        (["list", "robotz"], "did you mean 'robot'?"),
    ],
)
def test_a_typo_is_one_line_with_the_near_miss_and_exit_code_2(words: list[str], part: str) -> None:
    done = run(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("safe-o2o: error: ") and done.stderr.count("\n") == 1
    assert part in done.stderr


def test_errors_become_one_line_and_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bad_input(argv: list[str]) -> None:
        raise DataError("is truncated\nat byte 7", where="e.safetensors", todo="repair it")

    verb(monkeypatch, bad_input)
    assert main.main(["collect"]) == 2
    assert capsys.readouterr().err == (
        "safe-o2o: error: e.safetensors: is truncated at byte 7; repair it\n"
    )

    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    verb(monkeypatch, interrupted)
    assert main.main(["collect"]) == 130
    assert capsys.readouterr().err.count("\n") == 1

    def own_mistake(argv: list[str]) -> None:
        raise RuntimeError("a bug")

    verb(monkeypatch, own_mistake)
    with pytest.raises(RuntimeError):  # our own mistakes keep their traceback
        main.main(["collect"])


def test_a_missing_optional_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def needs_simulator(argv: list[str]) -> None:
        raise ModuleNotFoundError("No module named 'pybullet'", name="pybullet")

    verb(monkeypatch, needs_simulator)
    assert main.main(["collect"]) == 2
    err = capsys.readouterr().err
    assert "'pybullet'" in err and "safe_o2o[sim]" in err and err.count("\n") == 1

    def own_module_missing(argv: list[str]) -> None:
        raise ModuleNotFoundError("No module named 'safe_o2o.nope'", name="safe_o2o.nope")

    verb(monkeypatch, own_module_missing)
    with pytest.raises(ModuleNotFoundError):
        main.main(["collect"])


def test_every_verb_has_a_module_with_help() -> None:
    for name, (module, line) in main.VERBS.items():
        path = list_.find_source(module)
        assert path is not None, f"verb {name} has no module {module}"
        assert "def main(" in path.read_text("utf-8")
        assert line


def test_flags_win_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: from_file\nepisodes: 5\nnested:\n  expectile: 0.8\n")
    read = parse.parse(Arguments, ["--config", str(path), "--episodes", "7"], verb="collect")
    assert read == Arguments(data=Path("from_file"), episodes=7, nested=Algo(0.8))
    read = parse.parse(Arguments, [f"--config={path}", "--no-resume"], verb="collect")
    assert read.episodes == 5 and read.resume is False


def test_a_flag_may_mend_a_value_that_the_file_has_out_of_range(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"data": "d", "nested": {"expectile": 3.0}}))
    read = parse.parse(
        Arguments, ["--config", str(path), "--nested.expectile", "0.6"], verb="collect"
    )
    assert read.nested.expectile == 0.6
    with pytest.raises(ConfigError, match=r"expectile: must lie in \(0, 1\), got 3.0"):
        parse.parse(Arguments, ["--config", str(path)], verb="collect")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data", "x", "--epsiodes", "3"], "did you mean --episodes?"),
        (["--data", "x", "--nested.expectil", "0.8"], "did you mean --nested.expectile?"),
        (["--data", "x", "--episodes", "many"], "invalid literal for int"),
        (["--data", "x", "--episodes"], "Missing value for argument"),
        (["--episodes", "3"], "--data"),
        (["--data", "x", "stray"], "stray"),
        (["--config"], "--config: needs a file"),
        (["--config", "a.json", "--config", "b.json"], "--config: is given twice"),
        (["--config", "absent.json"], "absent.json: cannot be read"),
    ],
)
def test_a_bad_argument_is_one_line(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse.parse(Arguments, argv, verb="collect")
    text = str(caught.value)
    assert words in text and "\n" not in text and not set(text) & set("│─╭╮╰╯")


def test_a_gap_in_the_file_is_still_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"episodes": 3}')
    with pytest.raises(ConfigError, match="--data"):
        parse.parse(Arguments, ["--config", str(path)], verb="collect")


def test_an_unknown_setting_in_the_file_names_the_near_miss(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"data": "d", "nested": {"expektile": 0.8}}')
    with pytest.raises(ConfigError, match="did you mean 'expectile'"):
        parse.parse(Arguments, ["--config", str(path)], verb="collect")


def test_help_shows_the_fields_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse.parse(Arguments, ["--help"], verb="collect")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "--nested.expectile" in out and "Where the dataset is." in out and "--config" in out


def test_a_named_class_brings_its_own_flags() -> None:
    combined = parse.with_field(Arguments, "algo", Algo())
    read = parse.parse(combined, ["--data", "x", "--algo.expectile", "0.9"], verb="train a")
    assert read.algo == Algo(0.9) and read.data == Path("x") and isinstance(read, Arguments)


def test_the_catalogue_name_comes_first_and_a_typo_names_the_near_miss() -> None:
    name, rest = parse.take_name(["fosp", "--data", "x"], "algorithm", verb="train")
    assert (name, rest) == ("fosp", ["--data", "x"])
    assert parse.take_name(["safe-reach"], "task", verb="collect")[0] == "safe_reach"
    with pytest.raises(UnknownNameError, match="did you mean 'fosp'"):
        parse.take_name(["fsop"], "algorithm", verb="train")
    with pytest.raises(ConfigError, match="train: names no algorithm"):
        parse.take_name(["--data", "x"], "algorithm", verb="train")


def test_bench_lists_the_scripts_and_runs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = '"""Counts things."""\nimport sys\nprint(sys.argv[1:])'
    (tmp_path / "count_things.py").write_text(source)
    (tmp_path / "_helper.py").write_text("")
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    assert main.main(["bench"]) == 0
    out = capfd.readouterr().out
    assert "count_things  Counts things." in out and "_helper" not in out
    assert main.main(["bench", "count-things", "--n", "3"]) == 0
    assert capfd.readouterr().out == "['--n', '3']\n"
    assert main.main(["bench", "count_thing"]) == 2
    assert "did you mean 'count_things'?" in capfd.readouterr().err
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "absent")
    assert main.main(["bench"]) == 2


def test_every_benchmark_says_what_it_measures() -> None:
    for name, path in bench.scripts(bench.FOLDER).items():
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), name


def test_report_refuses_a_run_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["report", str(tmp_path / "absent")]) == 2
    err = capsys.readouterr().err
    assert "no such run folder" in err and err.count("\n") == 1
