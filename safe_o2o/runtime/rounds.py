"""Rounds of online learning: so many new episodes, then one fine-tuning, its result on disk.

The learner's whole memory is two places on disk: the committed episodes and `deploy/rounds.json`. A
learner that was killed reads both and goes on; the round in progress is done again.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safe_o2o.errors import ConfigError, DataError
from safe_o2o.files import write_atomic

ROUNDS_FILE = "deploy/rounds.json"
FINE_TUNER = "safe_o2o.training.finetune:FineTuner"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RoundResult:
    """What one round came to.

    Attributes:
        index: number of the round, from 0.
        episodes: committed episodes when it began.
        bundle: name of the bundle it made and promoted, `""` when refused.
        refusal: why the bundle was not promoted, `""` when it was.
        seconds: how long it took.
    """

    index: int
    episodes: int
    bundle: str
    refusal: str
    seconds: float


def count_episodes(run_dir: str | Path, folder: str = "online") -> int:
    """Committed episodes in a folder of a run."""
    return sum(1 for _ in (Path(run_dir) / folder).glob("episode_*.safetensors"))


def read_rounds(run_dir: str | Path) -> list[RoundResult]:
    """Results of the rounds so far, oldest first; none when there is no file yet.

    Raises:
        DataError: the file is damaged.
    """
    path = Path(run_dir) / ROUNDS_FILE
    try:
        content = json.loads(path.read_bytes())
        return [RoundResult(**entry) for entry in content["rounds"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"is damaged ({error})", where=path, todo="remove it to learn from the start"
        ) from error


class RoundRunner:
    """Runs a round whenever enough new episodes are on disk.

    Args:
        run_dir: the run; episodes in `online`, results in `deploy/rounds.json`.
        episodes_per_round: new episodes before each round.
        rounds: rounds in all.
        fine_tuner: `"module:Class"`; made as `Class(run_dir, config)` and asked `.round(index)`,
            which returns the promoted bundle's path, or a text that says why there is none.
        config: the fine-tuner's settings.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        episodes_per_round: int,
        rounds: int,
        fine_tuner: str = FINE_TUNER,
        config: Any = None,
    ) -> None:
        if episodes_per_round < 1 or rounds < 0:
            raise ConfigError(
                "needs episodes_per_round >= 1 and rounds >= 0, "
                f"got {episodes_per_round} and {rounds}",
                where="rounds",
            )
        self.run_dir = Path(run_dir)
        self.episodes_per_round, self.rounds = episodes_per_round, rounds
        self.done = read_rounds(self.run_dir)
        self._fine_tuner_name, self._config = fine_tuner, config
        self._fine_tuner: Any = None

    def load(self) -> None:
        """Import and build the fine-tuner; slow, so that it happens before it is needed."""
        if self._fine_tuner is None:
            module, _, name = self._fine_tuner_name.partition(":")
            self._fine_tuner = getattr(importlib.import_module(module), name)(
                self.run_dir, self._config
            )

    def due(self) -> int | None:
        """The number of the round that has its episodes and was not run, or None."""
        index = len(self.done)
        enough = count_episodes(self.run_dir) >= (index + 1) * self.episodes_per_round
        return index if index < self.rounds and enough else None

    def run(self, index: int) -> RoundResult:
        """Fine-tune once and note the result."""
        start = time.perf_counter()
        episodes = count_episodes(self.run_dir)
        self.load()
        made = self._fine_tuner.round(index)
        promoted = isinstance(made, Path)
        result = RoundResult(
            index=index,
            episodes=episodes,
            bundle=made.name if promoted else "",
            refusal="" if promoted else str(made),
            seconds=round(time.perf_counter() - start, 3),
        )
        self.done.append(result)
        content = {"rounds": [asdict(entry) for entry in self.done]}
        (self.run_dir / ROUNDS_FILE).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.run_dir / ROUNDS_FILE, (json.dumps(content, indent=2) + "\n").encode())
        return result
