"""Settings files: what is read, what is refused, and in which words."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_o2o import config
from safe_o2o.errors import ConfigError


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Inner:
    expectile: float = 0.7
    hidden_dims: tuple[int, ...] = (64, 64)
    mode: Literal["small", "paper"] = "small"

    def __post_init__(self) -> None:
        if not 0.0 < self.expectile < 1.0:
            raise ConfigError(f"expectile must lie in (0, 1), got {self.expectile}")


@dataclass(frozen=True)
class Outer:
    data: Path
    steps: int = 10
    label: str | None = None
    resume: bool = True
    bounds: tuple[float, float] = (-math.inf, math.inf)
    weights: dict[str, float] = field(default_factory=dict)
    colour: Colour = Colour.RED
    names: list[str] = field(default_factory=list)
    rate: Annotated[float, "marks of the command line"] = 5.0
    algo: Inner = field(default_factory=Inner)


def message(data: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config.from_json(Outer, data, where="run.yaml")
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_file_gives_back_the_config_that_was_written(tmp_path: Path) -> None:
    before = Outer(
        data=Path("runs/a"),
        label="x",
        bounds=(-1.0, math.inf),
        weights={"image": 2.0},
        colour=Colour.BLUE,
        names=["a"],
        algo=Inner(expectile=0.9, hidden_dims=(8,), mode="paper"),
    )
    path = tmp_path / "config.json"
    path.write_text(config.dumps(before))
    assert config.load(Outer, path) == before
    assert json.loads(path.read_text())["bounds"] == [-1.0, "inf"]  # strict JSON has no Infinity


@given(st.floats(allow_nan=False), st.integers(), st.text(), st.booleans())
def test_every_scalar_survives_the_round_trip(
    rate: float, steps: int, label: str, resume: bool
) -> None:
    before = Outer(data=Path("x"), steps=steps, label=label, resume=resume, rate=rate)
    assert config.from_json(Outer, json.loads(config.dumps(before))) == before


def test_absent_settings_keep_their_default() -> None:
    read = config.from_json(Outer, {"data": "d", "algo": {"mode": "paper"}})
    assert read == Outer(data=Path("d"), algo=Inner(mode="paper"))


def test_an_unknown_setting_names_the_near_miss_the_path_and_the_file() -> None:
    text = message({"data": "d", "algo": {"expectil": 0.8}})
    assert "run.yaml" in text and "'algo.expectil'" in text and "did you mean 'expectile'?" in text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"data": "d", "steps": 1.5}, "run.yaml: steps: needs a whole number, got 1.5"),
        ({"data": "d", "steps": True}, "steps: needs a whole number, got True"),
        ({"data": "d", "resume": 1}, "resume: needs true or false, got 1"),
        ({"data": "d", "rate": "fast"}, "rate: needs a number, got 'fast'"),
        ({"data": "d", "bounds": [1.0]}, "bounds: needs 2 values, got 1"),
        ({"data": "d", "bounds": 3}, "bounds: needs a list, got 3"),
        ({"data": "d", "weights": {"a": None}}, "weights.a: needs a number, got nothing (null)"),
        ({"data": "d", "names": ["a", 2]}, "names[1]: needs text, got 2"),
        ({"data": "d", "colour": "GREEN"}, "colour: must be one of RED, BLUE, got 'GREEN'"),
        ({"data": "d", "algo": {"mode": "papper"}}, "did you mean 'paper'?"),
        ({"data": "d", "algo": [1]}, "algo: needs settings by name, got a list of 1"),
        ({"data": "d", "label": 3}, "label: needs text, got 3"),
        ({"steps": 3}, "data: has no value and no default"),
        ({"data": "d", "algo": {"expectile": 1.5}}, "algo: expectile must lie in (0, 1)"),
        ([], "run.yaml: needs settings by name, got a list of 0"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_with_its_path(data: object, words: str) -> None:
    assert words in message(data)


def test_yaml_reads_exponents_without_a_dot_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: d\nrate: 3e-4\nbounds: [-.inf, 1]\n")
    read = config.load(Outer, path)
    assert read.rate == 3e-4 and read.bounds == (-math.inf, 1.0)
    assert isinstance(read.bounds[1], float)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.yaml", "data: d\nsteps: 1\nsteps: 2\n", "c.yaml:3: setting 'steps' is given twice"),
        ("c.yaml", "algo:\n  mode: paper\n  mode: small\n", "c.yaml:3: setting 'mode' is given"),
        ("c.json", '{"a": 1, "a": 2}', "setting 'a' is given twice"),
        ("c.yaml", "data: [1\n", "is not valid YAML"),
        ("c.json", '{"a": 1,\n}', "c.json:2: is not valid JSON"),
        ("c.yaml", "- 1\n", "holds a list of 1"),
        ("c.toml", "a = 1\n", "ends in .json, .yaml or .yml"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.read(tmp_path / name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_absent_file_and_a_binary_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.read(tmp_path / "no.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.read(tmp_path / "b.json")


def test_an_empty_file_means_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# nothing yet\n")
    assert config.load(Inner, path) == Inner()


def test_a_template_leaves_gaps_and_ranges_to_the_flags() -> None:
    gap = object()
    template = config.from_json(Outer, {"algo": {"expectile": 5.0}}, missing=gap)
    assert template.data is gap and template.algo.expectile == 5.0 and template.steps == 10
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        config.from_json(Outer, {"step": 5}, missing=gap)


def test_what_has_no_place_in_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        config.to_json({"x": object()})
