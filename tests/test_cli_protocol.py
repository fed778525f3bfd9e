"""`safe-o2o protocol`: one line a measurement, none made twice, everything on the way a verb's."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("safe_o2o_sim.bullet")

from safe_o2o import bundle
from safe_o2o.cli import main
from safe_o2o.cli.protocol_settings import recipe
from safe_o2o.errors import UnknownNameError
from safe_o2o.report import standings
from safe_o2o.training.latents import LatentDataset


def words(folder: Path, *more: str) -> list[str]:
    settings = {
        "out": folder / "runs", "results": folder / "results.jsonl", "preset": "tiny",
        "scenes": "shape", "episodes": 12, "updates": 2, "evaluation": 2, "rounds": 1,
        "episodes-per-round": 2, "online-updates": 1, "workers": 0, "threads": 1,
    }  # fmt: skip
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return ["protocol", "safe_reach", *flags, *more]


def test_a_method_is_trained_judged_tuned_and_judged_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(words(tmp_path)) == 0
    out = capsys.readouterr().out
    rows = standings.read(tmp_path / "results.jsonl")
    assert [(row.scene, row.phase, row.n, row.updates) for row in rows] == [
        ("standard", "before", 2, 2),
        ("shape", "before", 2, 2),
        ("shape", "during", 2, 3),
        ("shape", "after", 2, 3),
    ]
    assert all(row.seconds > 0.0 and row.cpu_seconds > 0.0 for row in rows)
    assert out.count("safe_reach, fosp 0") == 4 and "| fosp | 0 |" in out
    run = tmp_path / "runs" / "safe_reach" / "fosp-0"
    live = bundle.current(run / "bundles")
    assert live is not None and live.version == "v000001"  # fine-tuning has bundles of its own
    assert (run / "shape" / "finetune" / "round_000.json").exists()

    before = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "runs").rename(tmp_path / "gone")
    assert main.main(words(tmp_path)) == 0  # from the file alone
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.ros
def test_fine_tuning_over_ros_is_a_row_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for needed in ("rclpy", "safe_o2o_ros"):
        pytest.importorskip(needed, reason="pip install 'safe_o2o[ros]' and the ROS package")
    assert main.main(words(tmp_path)) == 0
    assert main.main(words(tmp_path, "--ros", "yes")) == 0
    rows = standings.read(tmp_path / "results.jsonl")
    assert [row.phase for row in rows] == 2 * ["before", "before", "during", "after"]
    assert [row.settings.get("ros", False) for row in rows] == 4 * [False] + 4 * [True]
    assert "| fosp, over ROS | 0 |" in capsys.readouterr().out
    run = tmp_path / "runs" / "safe_reach" / "fosp-0"
    assert (run / "shape-ros" / "finetune" / "round_000.json").exists()
    assert (run / "shape-ros" / "deploy" / "logs" / "policy_node.log").exists()
    assert not (run / "shape" / "deploy" / "logs").exists()


def test_a_policy_is_judged_on_its_way_and_ends_as_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    updates = ("--updates", "3", "--scenes", "")
    assert main.main(words(plain, *updates)) == 0
    assert main.main(words(watched, *updates, "--points", "2,1")) == 0
    out = capsys.readouterr().out
    rows = standings.read(watched / "results.jsonl")
    assert [(row.phase, row.updates) for row in rows] == [
        ("learning", 1),
        ("learning", 2),
        ("before", 3),
    ]
    assert [line.split("|")[4].strip() for line in out.splitlines()[-3:]] == ["1", "2", "3"]

    weights = []
    for folder in (plain, watched):
        made = bundle.current(folder / "runs" / "safe_reach" / "fosp-0" / "bundles")
        assert made is not None
        weights.append((made.directory / bundle.GRAPH).read_bytes())
    assert weights[0] == weights[1]

    assert main.main(words(plain, *updates, "--points", "2")) == 2  # it is past that
    assert "is gone" in capsys.readouterr().err


def test_learners_of_transitions_learn_from_latents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(words(tmp_path, "--scenes", "")) == 0
    model = tmp_path / "runs" / "safe_reach" / "fosp-{seed}" / "checkpoints"
    more = ("--methods", "cloning,iql", "--world-model", str(model), "--scenes", "goal")
    assert main.main(words(tmp_path, *more)) == 0
    rows = standings.read(tmp_path / "results.jsonl")[1:]
    phases = ["before", "before", "during", "after"]
    assert [row.phase for row in rows] == 2 * phases
    assert all(row.settings["latents"] is True for row in rows)
    assert "| iql, on latents | 0 |" in capsys.readouterr().out
    run = tmp_path / "runs" / "safe_reach" / "iql-0" / "goal"
    assert len(LatentDataset(run / "online_latents")) == 2
    made = bundle.current(run / "bundles")  # it sees what the camera sees
    assert made is not None
    seen = bundle.read_manifest(made.directory).spec.observation
    assert seen.image_names and seen.vector_names


def test_parts_of_fosp_are_methods_too() -> None:
    assert recipe("safedreamer", "tiny")[0] == "safedreamer"
    name, config = recipe("without_model", "tiny")
    assert name == "fosp" and config.model == "none"
    name, config = recipe("cloning_diffusion", "tiny")
    assert name == "cloning" and config.kind == "diffusion"
    with pytest.raises(UnknownNameError, match="without_reach"):
        recipe("without_reech", "tiny")


def test_bad_numbers_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for field in ("seeds", "points"):
        assert main.main(words(tmp_path, f"--{field}", "0,x")) == 2
        said = capsys.readouterr().err
        assert "whole numbers" in said and field in said
    for points in ("0,1", "2"):  # of two updates
        assert main.main(words(tmp_path, "--points", points)) == 2
        assert "between 0 and 2" in capsys.readouterr().err
