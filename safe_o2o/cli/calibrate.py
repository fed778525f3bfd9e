"""`safe-o2o calibrate BUNDLE ...`: run a bundle with its gate in shadow, and set its thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from safe_o2o.cli import console
from safe_o2o.cli.actors import BundleMaker, SceneMaker
from safe_o2o.cli.parse import parse
from safe_o2o.cli.seeds import episode_seeds
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.episode import EpisodeMeta
from safe_o2o.errors import BundleError, DataError
from safe_o2o.runtime.gate_calibration import Calibrated, CalibrationConfig, calibrate, trace
from safe_o2o.runtime.live_policy import promoted_bundle
from safe_o2o.runtime.onnx_policy import OnnxPolicy
from safe_o2o.runtime.rollout import run_episodes
from safe_o2o.safety.calibration import alarms_expected, caution_rate
from safe_o2o.safety.gate_file import has_gate, write_gate
from safe_o2o.safety.reachability_gate import GateConfig

CAVEATS = (
    "It holds for episodes like these: another scene, camera pose, operator, policy or longer "
    "episodes void it (a shift of the score by 0.3 of its spread doubles the rate).",
    "It is about alarms in safe episodes until the first one; how many violations are found is "
    "measured here, not promised, and after an intervention nothing is said.",
    "A new bundle needs a new calibration; an old threshold is refused.",
)


@dataclass(frozen=True)
class Arguments:
    """Set the thresholds of a bundle's reachability gate from episodes that it runs in shadow.

    Attributes:
        bundle: a bundle that was exported with `--gate`, or a folder of versions (the live one).
        data: the dataset of its shadow episodes; made when missing, filled up when begun. What a
            deployment of this bundle recorded with `--gate shadow` or `off` counts as well.
        episodes: episodes wanted there; 0 takes those that are there.
        task: catalogue name of the task that the missing ones are run in.
        variant: scene variant of it.
        seed: which layouts; those of training and of evaluation are others.
        workers: processes; 0 runs everything in this one.
        alarm: what is asked of it.
        gate: how the gate behaves; its scores depend on it.
    """

    bundle: Annotated[Path, tyro.conf.arg(metavar="BUNDLE"), tyro.conf.Positional]
    data: Path
    episodes: int = 320
    task: str = "safe_reach"
    variant: str = "standard"
    seed: int = 0
    workers: int = 2
    alarm: CalibrationConfig = field(default_factory=CalibrationConfig)
    gate: GateConfig = field(default_factory=GateConfig)


def main(argv: Sequence[str]) -> None:
    """Run what is missing, replay everything, write `gate.json` and say what it means."""
    arguments = parse(Arguments, argv, verb="calibrate")
    policy = OnnxPolicy.load(promoted_bundle(arguments.bundle))
    if not has_gate(policy.manifest):
        raise BundleError(
            "has no reachability gate",
            where=policy.directory,
            todo="export it with --gate",
        )
    dataset = shadow_episodes(arguments, policy)
    traces = []
    with console.progress("replaying") as progress:
        for number, episode in enumerate(dataset):
            traces.append(trace(policy, episode, arguments.gate))
            progress(number + 1, len(dataset))
    made = calibrate(policy.manifest.graph_sha256, traces, arguments.alarm, arguments.gate)
    path = write_gate(policy.directory, policy.manifest, made.gate)
    print(describe(made))
    for caveat in CAVEATS:
        print(f"- {caveat}")
    print(path)


def shadow_episodes(arguments: Arguments, policy: OnnxPolicy) -> Dataset:
    """The dataset with the wanted episodes of this very bundle.

    Raises:
        DataError: it holds episodes of another graph, or some that a gate acted in.
    """
    provenance = {"graph": policy.manifest.graph_sha256, "gate": "off"}
    dataset = Dataset.create(arguments.data, policy.spec, task=arguments.task, exist_ok=True)
    others = {
        str(episode.meta.provenance.get("graph", "an unknown graph")) for episode in dataset
    } - {provenance["graph"]}
    if others:
        raise DataError(
            f"holds episodes of another bundle (graph {min(others)[:16]})",
            where=dataset.directory,
            todo="name another folder: scores of an action are those of whoever chose it",
        )
    acted = [e.path.name for e in dataset if e.meta.provenance.get("gate", "off") == "on"]
    if acted:
        raise DataError(
            f"holds {len(acted)} episodes that a gate acted in ({acted[0]}, ...)",
            where=dataset.directory,
            todo="record with --gate shadow: behind an intervention no score is what it would be",
        )
    if arguments.episodes > len(dataset):
        with console.progress("running in shadow") as progress:
            run_episodes(
                SceneMaker(arguments.task, arguments.variant, camera=True),
                BundleMaker(policy.directory, f"policy-{policy.version}", "off"),
                episode_seeds("calibrate", arguments.seed, arguments.episodes),
                workers=arguments.workers,
                dataset=dataset,
                meta=EpisodeMeta(arguments.task, arguments.variant, provenance=provenance),
                progress=progress,
            )
    return dataset


def describe(made: Calibrated) -> str:
    """What was found, in plain words."""
    found, facts = made.found, made.gate.calibration
    low, high = (100 * end for end in found.interval)
    lines = [
        f"alarm above rank {found.theta:.4f}: the {found.k}th of n = {found.n} safe episodes for "
        f"alpha = {found.alpha:g}; the true rate of false alarms is in {low:.1f} to {high:.1f} % "
        f"(95 %, over draws of the {found.n})",
        f"caution, where another action takes the place of the policy's, above rank "
        f"{found.theta_off:.4f}: in at most {100 * caution_rate(found.alpha):.0f} % of such ones",
        f"of 100 new episodes like these without a violation, at most "
        f"{alarms_expected(found.n, found.k, 100)} are alarmed (97.5 % of draws)",
    ]
    if found.pac_k is None:
        lines.append(f"too few for {found.alpha:g} with confidence {1 - found.delta:g}")
    else:
        lines.append(
            f"{found.alpha:g} with confidence {1 - found.delta:g} would take the {found.pac_k}th"
        )
    if found.theta_miss is None:
        lines.append(
            f"{found.n_violating} violating episodes are too few for beta = {found.beta:g}: "
            "whether alarms come in time is unknown"
        )
    else:
        late = 100 * facts["late"] / found.n_violating
        fits = "fits" if found.compatible else "does not fit"
        lines.append(
            f"violations: {facts['late']} of {found.n_violating} alarmed too late or not at all "
            f"({late:.0f} %); beta = {found.beta:g} {fits} with this alpha"
        )
    if not made.gate.calibrated:
        speed = made.gate.thresholds.speed
        held = f"the arm is held to {speed:g} of its speed" if speed < 1.0 else "at full speed"
        lines.append(f"not calibrated on both sides: {held}")
    return "\n".join(lines)
