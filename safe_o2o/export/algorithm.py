"""From an algorithm in training to the next version of its run's bundles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_o2o import bundle
from safe_o2o.data.dataset import Dataset
from safe_o2o.data.statistics import Statistics
from safe_o2o.export.graph import Graphs
from safe_o2o.export.onnx import BundleReport, export_bundle, recorded_steps


def export_algorithm(
    algorithm: Any,
    name: str,
    bundles: Path,
    dataset: Dataset,
    provenance: Mapping[str, Any] | None = None,
    graphs: Graphs | None = None,
) -> BundleReport:
    """Export the policy of an algorithm as the next version of a folder of bundles.

    Args:
        algorithm: what to export; see `interfaces.Algorithm`.
        name: its catalogue name.
        bundles: folder of versions; made when missing. Nothing goes live here.
        dataset: what it was trained on: recorded steps to compare on, and statistics.
        provenance: more facts for the manifest, JSON-ready.
        graphs: see `export_bundle`.

    Raises:
        SpecMismatchError: algorithm and dataset have another spec.
        BundleError: network and graph disagree, or there are too few recorded steps.
    """
    algorithm.spec.require_same(
        dataset.spec, mine=f"algorithm {name}", theirs=f"dataset {dataset.directory}"
    )
    facts = {
        "dataset": dataset.content_hash(),
        "step": algorithm.step,
        "seed": algorithm.config.seed,
    }
    return export_bundle(
        algorithm.policy,
        algorithm.spec,
        bundle.next_version(bundles),
        algorithm=name,
        parity_steps=recorded_steps(dataset),
        statistics=Statistics.compute(dataset).to_json(),
        provenance=facts | dict(provenance or {}),
        noise_seed=algorithm.config.seed,
        graphs=graphs,
    )
