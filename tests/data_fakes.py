"""A tiny environment and datasets for the data tests: a point on a line, seen by a small camera."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.data.recorder import DirectRecorder
from safe_o2o.spaces import ActionSpec, ArraySpec, ObservationSpec, Spec
from safe_o2o.types import Observation, Source, Step, Transition, Verdict

SIZE = 8


def make_spec(size: int = SIZE) -> Spec:
    return Spec(
        ObservationSpec(
            {
                "image": ArraySpec((size, size, 3), "uint8", "intensity", low=0, high=255),
                "pose": ArraySpec((2,), "float32", "m", ("x", "goal")),
            }
        ),
        ActionSpec(("dx",), "m", (-0.1,), (0.1,), 0.2),
    )


class LineEnv:
    """x in [0, 1] starts at random; the goal is at 1, cost above 0.8 for a fast step."""

    def __init__(self, size: int = SIZE, limit: int = 30) -> None:
        self.spec = make_spec(size)
        self.size, self.limit = size, limit
        self.closed = False

    def _obs(self) -> Observation:
        image = np.full((self.size, self.size, 3), int(self.x * 200), np.uint8)
        image[0, 0, 0] = self.steps
        return {"image": image, "pose": np.array([self.x, 1.0], np.float32)}

    def reset(self, seed: int) -> Step:
        self.generator = np.random.default_rng(seed)
        self.x, self.steps = float(self.generator.uniform(0, 0.4)), 0
        return Step(self._obs(), 0.0, 0.0, False, False, np.zeros(1, np.float32))

    def step(self, action: Any, source: Source = Source.POLICY, speed: float = 1.0) -> Step:
        wish = float(action[0])
        done = float(np.clip(wish, -0.8, 0.8))
        self.x = float(np.clip(self.x + 0.1 * done, 0, 1))
        self.steps += 1
        reached = self.x >= 0.999
        corrected = done != wish
        return Step(
            obs=self._obs(),
            reward=float(reached),
            cost=float(self.x > 0.8 and done > 0.7),
            terminated=reached,
            truncated=not reached and self.steps >= self.limit,
            action=np.array([done], np.float32),
            verdict=Verdict.CORRECTED if corrected else Verdict.PASS,
            reason="speed" if corrected else "",
            margin=1.0 - abs(done),
            stamp=0.2 * self.steps,
            info={"timings": {"physics": 0.001}},
        )

    def close(self) -> None:
        self.closed = True


class Walker:
    """A behaviour: a constant plus seeded noise."""

    name = "walker"

    def __init__(self, push: float = 0.5, noise: float = 0.6) -> None:
        self.push, self.noise = push, noise

    def reset(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def act(self, obs: Observation) -> Any:
        return np.array([self.push + self.noise * self.generator.normal()], np.float32)


def make_transitions(
    length: int, seed: int = 0, size: int = SIZE
) -> tuple[list[Transition], Observation, float]:
    """An episode that tells its own coordinates: pixel 0 is the step, reward = step + 1."""
    generator = np.random.default_rng(seed)

    def obs(step: int) -> Observation:
        image = generator.integers(0, 255, (size, size, 3)).astype(np.uint8)
        image[0, 0] = (step % 256, seed % 256, length % 256)
        return {"image": image, "pose": np.array([step, seed], np.float32)}

    steps = [
        Transition(
            obs=obs(t),
            action=np.array([(t + 1) / 100], np.float32),
            proposed_action=np.array([(t + 1) / 50], np.float32),
            reward=t + 1.0,
            cost=float(t == length // 2),
            terminated=t == length - 1 and seed % 2 == 0,
            truncated=t == length - 1 and seed % 2 == 1,
            verdict=Verdict(t % 3),
            reason=("", "joint_limits", "workspace")[t % 3],
            margin=1.0 - t / 100,
            source=Source.SCRIPT,
            stamp=0.2 * t,
        )
        for t in range(length)
    ]
    return steps, obs(length), 0.2 * length


def make_dataset(directory: Path, lengths: list[int], size: int = SIZE, seed: int = 0) -> Dataset:
    dataset = Dataset.create(directory, make_spec(size), task="line", exist_ok=True)
    for number, length in enumerate(lengths):
        record(dataset, length, seed + number, size)
    return dataset


def record(dataset: Dataset, length: int, seed: int, size: int = SIZE) -> Path:
    recorder = DirectRecorder(dataset)
    transitions, final_obs, final_stamp = make_transitions(length, seed, size)
    recorder.start(EpisodeMeta("line", "plain", "walker", seed))
    for transition in transitions:
        recorder.append(transition)
    return recorder.commit(final_obs, final_stamp)


def files_in(directory: Path) -> list[str]:
    return sorted(os.path.relpath(path, directory) for path in directory.rglob("*"))
