"""`safe-o2o collect` and `safe-o2o evaluate` on a tiny environment: files, resume, refusals."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from safe_o2o import catalog
from safe_o2o.cli import actors, evaluate, main, seeds
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.summary import EpisodeSummary
from safe_o2o.errors import ConfigError, UnknownNameError
from tests.data_fakes import LineEnv


class Push:
    """A behaviour that always pushes; how hard depends on its name in the tests' catalogue."""

    strength = 0.6

    def __init__(self, task: Any) -> None:
        assert task == "the task"

    def reset(self, seed: int) -> None:
        pass

    def act(self, obs: Any) -> Any:
        return np.array([self.strength], np.float32)


class Halt(Push):
    """Never reaches the goal and never hurts."""

    strength = 0.0


@pytest.fixture(autouse=True)
def scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator's place is taken by a point on a line."""

    def make_env(task: str, variant: str, camera: bool = True) -> LineEnv:
        env = LineEnv(limit=30)
        env.task = "the task"  # type: ignore[attr-defined]
        return env

    module = ModuleType("safe_o2o_sim.make")
    module.make_env = make_env  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "safe_o2o_sim.make", module)
    for name, target in {"expert": "Push", "unsafe": "Halt", "random": "Halt"}.items():
        monkeypatch.setitem(catalog.behaviors, name, f"{__name__}:{target}")


def collect(out: Path, *more: str) -> int:
    return main.main(["collect", "--out", str(out), "--workers", "0", *more])


def test_collect_mixes_the_behaviours_in_turn_and_reports_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect(tmp_path / "d", "--episodes", "6") == 0
    dataset = Dataset(tmp_path / "d")
    assert [episode.meta.behavior for episode in dataset] == ["expert", "unsafe", "random"] * 2
    assert [episode.meta.seed for episode in dataset] == list(range(6))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "expert 100/0" in out and "unsafe 0/0" in out and "all 33/0" in out
    assert dataset.content_hash()[:16] in out


def test_collect_goes_on_where_it_was_and_ends_at_the_same_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(tmp_path / "once", "--episodes", "6")
    collect(tmp_path / "twice", "--episodes", "2")
    (tmp_path / "twice" / "episode_000001.safetensors").unlink()
    collect(tmp_path / "twice", "--episodes", "6")
    once, twice = Dataset(tmp_path / "once"), Dataset(tmp_path / "twice")
    assert once.content_hash() == twice.content_hash()


def test_collect_takes_a_subset_and_a_settings_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("episodes: 4\nbehaviors: expert, unsafe\nseed: 2\n")
    assert collect(tmp_path / "d", "--config", str(tmp_path / "c.yaml")) == 0
    dataset = Dataset(tmp_path / "d")
    assert [episode.meta.behavior for episode in dataset] == ["expert", "unsafe"] * 2
    assert dataset[0].meta.seed == seeds.episode_seeds("collect", 2, 1)[0]
    assert dataset.header["provenance"]["collect"]["seed"] == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--behaviors", "expertt"], "did you mean 'expert'?"),
        (["--task", "safe_reech"], "did you mean 'safe_reach'?"),
        (["--episodes", "0"], "episodes: must lie in 1"),
        (["--seed", "-1"], "seed: must lie in 0"),
        (["--workers", "-1"], "workers: must be 0 or more"),
    ],
)
def test_collect_refuses_bad_input_in_one_line(
    tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect(tmp_path / "d", *more) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not list(tmp_path.rglob("episode_*"))


def test_collect_refuses_a_folder_begun_with_another_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(tmp_path / "d", "--episodes", "2")
    before = Dataset(tmp_path / "d").content_hash()
    assert collect(tmp_path / "d", "--episodes", "2", "--seed", "1") == 2
    assert "seed" in capsys.readouterr().err
    assert Dataset(tmp_path / "d").content_hash() == before


def test_evaluate_writes_one_file_an_actor_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", "mixture", "expert", "uniform", "--out", str(tmp_path)]
    assert main.main([*argv, "--episodes", "6", "--workers", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("mixture: success 33.3 % [")
    result = json.loads((tmp_path / "eval" / "mixture.json").read_text())
    assert result["n"] == 6 and result["success"]["count"] == 2
    assert result["success"]["low"] < 1 / 3 < result["success"]["high"]
    assert [e["behavior"] for e in result["episodes"]] == ["expert", "unsafe", "random"] * 2
    assert sum(result["verdict_share"].values()) == pytest.approx(1.0)
    # The command that the file names makes the file again.
    words = result["command"].split()
    assert words[:3] == ["safe-o2o", "evaluate", "mixture"]
    before = (tmp_path / "eval" / "mixture.json").read_text()
    assert main.main([*words[1:], "--workers", "0"]) == 0
    after = json.loads((tmp_path / "eval" / "mixture.json").read_text())
    for found in (after, result := json.loads(before)):
        del found["timings"]
    assert after == result


def test_all_actors_meet_the_same_fresh_layouts(tmp_path: Path) -> None:
    argv = ["evaluate", "expert", "unsafe", "--out", str(tmp_path), "--episodes", "4"]
    assert main.main([*argv, "--workers", "0", "--variant", "cubes"]) == 0
    files = [tmp_path / "eval" / f"{name}-cubes.json" for name in ("expert", "unsafe")]
    met = [[e["seed"] for e in json.loads(path.read_text())["episodes"]] for path in files]
    assert met[0] == met[1]
    assert not set(met[0]) & set(seeds.episode_seeds("collect", 0, 100_000))


def test_episodes_that_an_actor_has_run_already_are_not_run_again(tmp_path: Path) -> None:
    def run(who: str, known: list[EpisodeSummary]) -> tuple[dict[str, Any], list[int]]:
        wanted = evaluate.Arguments(who=(who,), out=tmp_path, episodes=7, workers=0)
        ran: list[int] = []
        name, make_actor = actors.resolve(who)
        result = evaluate.evaluate(
            wanted, who, name, make_actor, lambda done, total: ran.append(total), known
        )
        return result, ran

    mixed = [EpisodeSummary.from_json(entry) for entry in run("mixture", [])[0]["episodes"]]
    known = [episode for episode in mixed if episode.behavior == "unsafe"]
    assert [episode.index for episode in known] == [1, 4]
    whole, _ = run("unsafe", [])
    saved, ran = run("unsafe", known)
    assert ran == [5] * 5
    assert saved["episodes"] == whole["episodes"]
    assert saved["success"] == whole["success"] and saved["return"] == whole["return"]
    # Numbers that belong to other layouts are no knowledge.
    strangers = [replace(episode, seed=episode.seed + 1) for episode in known]
    assert run("unsafe", strangers)[1] == [7] * 7


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["mixtur"], "did you mean 'mixture'?"),
        (["no/such/bundle"], "no/such/bundle: no such bundle or checkpoint"),
        ([], "names nobody"),
        (["expert", "unsafe", "--name", "x"], "--name: names one result"),
    ],
)
def test_evaluate_refuses_bad_input_in_one_line(
    tmp_path: Path, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["evaluate", *argv, "--out", str(tmp_path), "--episodes", "1"]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "eval").exists()


def test_evaluate_refuses_a_folder_that_holds_no_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["evaluate", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path) in err and err.count("\n") == 1


def test_seeds_of_different_purposes_never_meet_and_longer_runs_extend_shorter_ones() -> None:
    purposes: tuple[seeds.Purpose, ...] = ("collect", "evaluate", "online", "behaviors")
    blocks = [
        seeds.episode_seeds(purpose, seed, 3)
        for purpose in purposes
        for seed in (0, 1, seeds.SEEDS - 1)
    ]
    firsts = sorted(block[0] for block in blocks)
    assert all(b - a >= seeds.EPISODES for a, b in itertools.pairwise(firsts))
    assert max(firsts) + seeds.EPISODES <= 2**32
    assert seeds.episode_seeds("online", 3, 5)[:2] == seeds.episode_seeds("online", 3, 2)
    with pytest.raises(ConfigError):
        seeds.episode_seeds("collect", seeds.SEEDS, 1)


def test_a_maker_refuses_what_the_catalogue_does_not_know() -> None:
    with pytest.raises(UnknownNameError):
        actors.BehaviorMaker(("expert", "nobody"))
    with pytest.raises(UnknownNameError):
        actors.SceneMaker("nothing", "standard")
