"""Torch module to the bytes of an ONNX graph, and to the next ones of the same shape."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx.helper
import onnx.numpy_helper
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from safe_o2o.errors import BundleError

OPSET = 18


class Graphs:
    """Makes graphs; what was traced once is only filled with new weights.

    Tracing a policy takes seconds, and a learner that hands over after every round changes nothing
    but weights. A number that is no weight (a threshold, say) is part of the trace: whoever fills
    one must compare it with its network, and trace again where they differ.
    """

    def __init__(self) -> None:
        self._traced: dict[str, onnx.ModelProto] = {}

    def trace(self, module: nn.Module, where: Path) -> bytes:
        """The graph of a module, by tracing it; the same module gives the same bytes.

        Raises:
            BundleError: it cannot be exported.
        """
        try:
            traced = self._traced[_shape(module)] = _trace(module)
            model = _optimized(traced)
            onnx.checker.check_model(model)
        except (torch.onnx.errors.OnnxExporterError, onnx.checker.ValidationError) as error:
            what = " ".join(str(error).split())[:300]
            raise BundleError(f"the policy cannot be exported ({what})", where=where) from error
        return _bytes(model)

    def fill(self, module: nn.Module) -> bytes | None:
        """The graph of a module like one that was traced; None where there was none."""
        traced = self._traced.get(_shape(module))
        if traced is None:
            return None
        tensors = _tensors(module)
        for initializer in traced.graph.initializer:
            name = initializer.name
            if name in tensors:
                array = tensors[name].detach().cpu().numpy()
                initializer.raw_data = onnx.numpy_helper.from_array(array).raw_data
        return _bytes(_optimized(traced))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _shape(module: nn.Module) -> str:
    """What two modules of one graph have in common: layers, and sizes of all tensors."""
    sizes = {name: (tuple(t.shape), str(t.dtype)) for name, t in _tensors(module).items()}
    return f"{module}\n{sizes}"


def _trace(module: nn.Module) -> onnx.ModelProto:
    with _quiet():
        program = torch.onnx.export(
            module,
            module.example_inputs(),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(module.input_names),
            output_names=list(module.output_names),
            external_data=False,
            verbose=False,
            optimize=False,  # for weights to keep their names
        )
    assert program is not None
    model = program.model_proto
    _name_outputs(model, list(module.output_names))
    return model


def _bytes(model: onnx.ModelProto) -> bytes:
    _strip(model)
    return bytes(model.SerializeToString(deterministic=True))


def _optimized(model: onnx.ModelProto) -> onnx.ModelProto:
    with _quiet():
        return onnxscript.optimizer.optimize(model)


def _name_outputs(model: onnx.ModelProto, names: list[str]) -> None:
    """Give each output its name; a tensor that is two outputs at once comes out as one of them."""
    for output, name in zip(model.graph.output, names, strict=True):
        if output.name != name:
            model.graph.node.append(onnx.helper.make_node("Identity", [output.name], [name]))
            output.name = name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on optional packages and skipped optimisations to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold the paths of the machine it ran on."""
    del model.metadata_props[:]
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        del graph.metadata_props[:]
        graph.doc_string = ""
        for info in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            del info.metadata_props[:]
            info.doc_string = ""
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
