"""From an algorithm in training to the next version of its run's bundles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_o2o import bundle
from safe_o2o.algorithms.gated import GatedModule, fingerprint
from safe_o2o.algorithms.latents import PairModule, Tracker
from safe_o2o.algorithms.reachability import Reachability
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.statistics import Statistics
from safe_o2o.errors import CheckpointError
from safe_o2o.export.graph import Graphs
from safe_o2o.export.onnx import BundleReport, Exportable, export_bundle, recorded_steps


def export_algorithm(
    algorithm: Any,
    name: str,
    bundles: Path,
    dataset: Dataset,
    provenance: Mapping[str, Any] | None = None,
    graphs: Graphs | None = None,
    encoder: Tracker | None = None,
    gate: Reachability | None = None,
) -> BundleReport:
    """Export the policy of an algorithm as the next version of a folder of bundles.

    Args:
        algorithm: what to export; see `interfaces.Algorithm`.
        name: its catalogue name.
        bundles: folder of versions; made when missing. Nothing goes live here.
        dataset: what it was trained on: recorded steps to compare on, and statistics; with an
            encoder, the observations behind it.
        provenance: more facts for the manifest, JSON-ready.
        graphs: see `export_bundle`.
        encoder: what made the latents that the algorithm was trained on: the two become one graph.
        gate: heads of a reachability gate, trained on the states of the policy's world model.

    Raises:
        SpecMismatchError: algorithm and dataset have another spec.
        CheckpointError: the gate's heads belong to another world model.
        BundleError: network and graph disagree, or there are too few recorded steps.
    """
    spec = algorithm.spec
    if encoder is not None:
        spec.require_same(encoder.latent_spec, mine=f"algorithm {name}", theirs="the encoder")
        spec = encoder.spec
    spec.require_same(dataset.spec, mine=f"algorithm {name}", theirs=f"dataset {dataset.directory}")
    policy = deployed(algorithm, encoder, gate)
    facts = {
        "dataset": dataset.content_hash(),
        "step": algorithm.step,
        "seed": algorithm.config.seed,
    }
    return export_bundle(
        policy,
        spec,
        bundle.next_version(bundles),
        algorithm=name,
        parity_steps=recorded_steps(dataset),
        statistics=Statistics.compute(dataset).to_json(),
        provenance=facts | dict(provenance or {}),
        noise_seed=algorithm.config.seed,
        graphs=graphs,
    )


def deployed(
    algorithm: Any, encoder: Tracker | None = None, gate: Reachability | None = None
) -> Exportable:
    """What becomes one graph: a policy, behind the encoder of its latents, in front of a gate.

    Raises:
        CheckpointError: the gate's heads belong to another world model.
    """
    policy: Exportable = algorithm.policy
    if encoder is not None:
        policy = PairModule(encoder, policy.export_module())
    return policy if gate is None else gated(policy, gate)


def gated(policy: Exportable, gate: Reachability) -> GatedModule:
    """A policy together with what a gate asks about it.

    Raises:
        CheckpointError: the gate's heads belong to another world model.
    """
    module = getattr(policy, "watching_module", policy.export_module)()
    net = getattr(module, "watching", None)
    if net is None or fingerprint(net) != gate.encoder:
        raise CheckpointError(
            "the gate was trained on the states of another world model than the policy's",
            where="gate",
            todo="encode with the policy's checkpoint (--what state), and train the gate on that",
        )
    return GatedModule(
        module, gate.heads, reach=gate.config.reach, reconstruct=gate.config.reconstruct
    )
