"""From a checkpoint on disk to the algorithm that wrote it."""

from __future__ import annotations

from pathlib import Path

from safe_o2o import catalog
from safe_o2o import config as settings
from safe_o2o.algorithms.reachability import Reachability
from safe_o2o.errors import CheckpointError
from safe_o2o.interfaces import Algorithm
from safe_o2o.spaces import Spec
from safe_o2o.training import checkpoint


def load_algorithm(path: Path) -> Algorithm:
    """The algorithm of a checkpoint as it was saved, with the settings and the spec it says it has.

    Args:
        path: a checkpoint, or a folder for its newest one.

    Raises:
        CheckpointError: missing, damaged, or of another version.
        UnknownNameError: its algorithm is not in the catalogue.
    """
    meta = checkpoint.read_header(path).meta
    cls = catalog.load("algorithm", meta.algorithm)
    config = settings.from_json(cls.Config, meta.config, where=path)
    algorithm: Algorithm = cls(config, Spec.from_json(meta.spec))
    algorithm.load_state_dict(checkpoint.load(path)["algorithm"])
    return algorithm


def load_heads(path: Path) -> Reachability:
    """What `safe-o2o train reachability` saved.

    Raises:
        CheckpointError: it is the checkpoint of something else; and those of `load_algorithm`.
    """
    heads = load_algorithm(path)
    if not isinstance(heads, Reachability):
        raise CheckpointError("is no checkpoint of `reachability`", where=path)
    return heads
