"""Trained models as files for other programs: ONNX, torch.export, and weights for NumPy.

Everything from counts to means is inside: missing entries become 0, read-in, network at posterior
means without dropout, read-out and the means of the observation model, and a decoder of behaviour.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import __version__
from ..consent import Trust
from ..data.find import absolute_pattern, check_output
from ..errors import ConfigError, UserError, one_of
from ..files import write_whole
from ..kernels import get_kernels
from ..metrics.decoder import Decoder
from . import numpy_runner
from .graphs import Graph, StartGraph, StepGraph, WindowGraph
from .session import TrainedSession, open_session
from .step import reads_ahead
from .stream import checked_decoder
from .weights import weights_of

Arrays = dict[str, NDArray[Any]]
Function = Callable[[Arrays], Arrays]
"""What runs a file: arrays in and out by their names."""

ENDINGS = (".onnx", ".pt2", ".npz")
OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of a file from the model, as a share of outputs above 1."""
MOST_BINS = 128
"""Bins of a window that are unrolled without being told to."""
CHECKED_BINS = 20
# Of a graph of 30 bins with a controller; the nodes of a bin do not depend on the sizes.
_NODES_PER_BIN = 90


class Exported(NamedTuple):
    """What `export_model` made: the files (none where they were not exact) and their difference."""

    paths: tuple[Path, ...]
    difference: float
    properties: dict[str, Any]


def export_model(
    run: str | Path,
    output: str | Path,
    *,
    mode: str = "auto",
    session: str | int | None = None,
    decoder: str | Path | Decoder | None = None,
    bin_ms: float | None = None,
    overwrite: bool = False,
    force: bool = False,
    native: bool = False,
    best: bool = True,
    trust: bool | Trust = False,
) -> Exported:
    """Write a trained model into a file that another program runs, and compare the two.

    Parameters
    ----------
    run : str or Path
        Run folder or checkpoint.
    output : str or Path
        File to write. Its ending chooses: ``.onnx``, ``.pt2`` for `torch.export.load`, or ``.npz``
        for `lfads_torch.online.numpy_runner`, of which a copy is written beside it.
    mode : {"auto", "window", "step"}
        What one call takes: a window of bins, or one bin and the state, which a causal model alone
        can. "auto" is "step" for causal models.
    session : str or int, optional
        Name or number of the session; a model of one session needs none.
    decoder : str, Path or Decoder, optional
        Decoder of behaviour that the file holds, too: what ``lfads decode --save`` wrote.
    bin_ms : float, optional
        Bin width in milliseconds, where neither the run nor its data say it.
    overwrite : bool
        Whether to replace existing files.
    force : bool
        Whether to unroll windows of more than 128 bins.
    native : bool
        Whether a ``.pt2`` of windows keeps this package's operators, which are faster, and need
        ``import lfads_torch`` before the file is loaded.
    best : bool
        Take the best checkpoint, else the last.
    trust : bool
        Import also classes from outside this package that the run names.

    Returns
    -------
    Exported
        ``paths``, ``difference`` from the model over 20 bins, and the ``properties`` in the file.
        Where the difference is above 1e-4, no file is written and ``paths`` is empty.
        A causal model whose initial condition is inferred from its first bins has a second file,
        ``<name>_start``, which takes these bins and returns the states (a ``.npz`` holds both).

    Raises
    ------
    UserError
        Where a package is missing, a file exists, the decoder does not fit, or the model cannot be
        written in this form.
    """
    path = Path(absolute_pattern(output))
    ending = one_of("the ending of the file", path.suffix.lower(), ENDINGS)
    one_of("mode", mode, ["auto", "window", "step"])
    if ending == ".npz" and mode == "window":
        raise UserError("a .npz takes one bin at a time; leave --mode out, or write .onnx or .pt2")
    if ending == ".onnx":
        _onnx()
    trained = open_session(run, session, bin_ms=bin_ms, best=best, trust=trust)
    if ending == ".npz" and (ahead := reads_ahead(trained.model)):
        raise ConfigError(
            f"a .npz takes one bin at a time, but the model is not causal: {ahead} read bins to "
            "come; write .onnx or .pt2, or train with model.causal: true"
        )
    graph = graph_of(trained, mode if ending != ".npz" else "step", decoder, force=force)
    if native and (ending, graph.mode) != (".pt2", "window"):
        raise UserError("--native keeps operators in a .pt2 of windows; leave it out")
    graphs: dict[Path, Graph] = {path: graph}
    if isinstance(graph, StepGraph) and graph.step.first_bins:
        graphs[path.with_name(f"{path.stem}_start{path.suffix}")] = StartGraph(graph)
    truth = [torch_function(one) for one in graphs.values()]
    if ending == ".npz":  # which has both
        graphs = {path: graph}
    for file in graphs:
        check_output(trained.checkpoint, file, overwrite)
    writers = {".onnx": as_onnx, ".npz": as_weights}
    writers[".pt2"] = as_native_program if native else as_program
    readers = {".onnx": onnx_function, ".pt2": program_function, ".npz": runner_function}
    properties, contents = properties_of(graph), []
    for one in graphs.values():
        contents.append(writers[ending](one, properties_of(one)))
    functions = [readers[ending](content) for content in contents]
    n_rows = 1 if ending == ".npz" else 2
    difference = largest_difference(
        replay(graph, n_rows, *functions), replay(graph, n_rows, *truth)
    )
    if not difference <= TOLERANCE:
        return Exported((), difference, properties)
    written = dict(zip(graphs, contents, strict=True))
    if ending == ".npz":
        written[path.with_name("numpy_runner.py")] = Path(numpy_runner.__file__).read_bytes()
    for file, content in written.items():
        write_whole(file, content)
    return Exported(tuple(written), difference, properties)


def graph_of(
    session: TrainedSession, mode: str, decoder: str | Path | Decoder | None, *, force: bool
) -> WindowGraph | StepGraph:
    """Return what to write of a session, or refuse it."""
    model = session.model
    if mode == "auto":
        mode = "step" if model.causal else "window"
    if decoder is not None:
        hp = model.hparams
        sizes = {"factors": hp.fac_dim, "gen_states": hp.gen_dim, "inputs": hp.co_dim}
        with torch.no_grad():
            factors = torch.zeros(1, 1, hp.fac_dim)
            sizes["rates"] = model.read_out(session.number, factors, output_means=True).shape[2]
        decoder, _ = checked_decoder(decoder, sizes, session.bin_ms, str(session.run))
        decoder.state()  # refuses lags that look ahead
    if mode == "step":
        return StepGraph(session, decoder)
    graph = WindowGraph(session, decoder)
    n_bins = max(model.hparams["recon_seq_len"], graph.sizes["x"][0])
    if n_bins > MOST_BINS and not force:
        raise UserError(
            f"{session.run} has windows of {n_bins} bins, which make a graph of about "
            f"{n_bins * _NODES_PER_BIN} nodes: slow to write and to load. Add --force to write it "
            "all the same"
        )
    return graph


def example_of(sizes: Mapping[str, tuple[int, ...]], n_rows: int) -> Arrays:
    """Draw inputs for a batch, a channel of them missing at some bins."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(n_rows, *size)) for name, size in sizes.items()}
    arrays["x"] = rng.poisson(0.5, arrays["x"].shape).astype(np.float64)
    arrays["x"][::3, ..., 0] = np.nan
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def replay(
    graph: WindowGraph | StepGraph, n_rows: int, function: Function, *start: Function
) -> Arrays:
    """Run windows, or bins one after another with the states carried, and stack the outputs."""
    if isinstance(graph, WindowGraph):
        return function(example_of(graph.sizes, CHECKED_BINS))
    n_first = graph.step.first_bins
    sizes = {k: v for k, v in graph.sizes.items() if not k.startswith("state_")}
    drawn = example_of({k: (n_rows, *v) for k, v in sizes.items()}, n_first + CHECKED_BINS)
    states = {k: np.repeat(v.numpy(), n_rows, axis=0) for k, v in graph.initial().items()}
    outputs = []
    if start:
        first = {k: v[:n_first].swapaxes(0, 1) for k, v in drawn.items()}
        outputs.append(start[0](first))
        states = states_after(outputs[-1])
    for t in range(n_first if start else 0, n_first + CHECKED_BINS):
        outputs.append(function({**{k: v[t] for k, v in drawn.items()}, **states}))
        states = states_after(outputs[-1])
    return {k: np.stack([output[k] for output in outputs]) for k in outputs[0]}


def states_after(outputs: Arrays) -> Arrays:
    """Return the states among the outputs of a bin, named as inputs of the next."""
    return {k.removesuffix("_out"): v for k, v in outputs.items() if k.startswith("state_")}


def largest_difference(actual: Arrays, expected: Arrays) -> float:
    """Return the largest |a - b| / max(1, |b|); infinite where one alone is NaN."""
    largest = 0.0
    for name in actual.keys() & expected.keys():
        # A runner of NumPy returns NaN until its first bins are there.
        a, b = actual[name][-CHECKED_BINS:], expected[name][-CHECKED_BINS:]
        if not (np.isnan(a) == np.isnan(b)).all():
            return float("inf")
        largest = max(
            largest, float(np.nanmax(np.abs(a - b) / np.maximum(1, np.abs(b)), initial=0.0))
        )
    return largest


def properties_of(graph: Graph) -> dict[str, Any]:
    """Return what a file says of itself."""
    session = graph.session
    hp = session.model.hparams
    decoder = graph.decoder
    with torch.no_grad():
        outputs = graph(**{k: torch.from_numpy(v) for k, v in example_of(graph.sizes, 1).items()})
    return {
        "lfads_torch": __version__,
        "run": session.run.name,
        "checkpoint_sha256": session.sha256(),
        "data": session.fingerprint,
        "mode": graph.mode,
        "first_bins": hp["ic_enc_seq_len"] if session.model.causal else 0,
        "session": session.name,
        "bin_ms": session.bin_ms,
        "channel_names": list(session.channel_names),
        "encod_seq_len": hp["encod_seq_len"],
        "recon_seq_len": hp["recon_seq_len"],
        "inputs": {name: ["B", *size] for name, size in graph.sizes.items()},
        "outputs": {name: ["B", *value.shape[1:]] for name, value in outputs.items()},
        "decoder": None if decoder is None else decoder.facts,
        "opset": OPSET,
    }


def traced(graph: Graph, kernel: str = "reference") -> Any:
    """Trace a graph by plain operations, with any number of rows."""
    network = graph.network
    # Two rows, since torch takes a size of 1 for one that never changes.
    example = {name: torch.from_numpy(x) for name, x in example_of(graph.sizes, 2).items()}
    rows = {name: {0: torch.export.Dim("B", min=1)} for name in example}
    before, network.kernels = network.kernels, get_kernels(kernel)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(graph, (), kwargs=example, dynamic_shapes=rows)
    except UserError:
        raise
    except Exception as error:  # a part of your own may be anything
        names = foreign_parts(graph.session)
        if not names:
            raise
        raise ConfigError(
            f"the model cannot be traced: {str(error).strip().splitlines()[0]}. Its parts from "
            f"outside this package ({', '.join(names)}) may use plain operations of torch alone, "
            "and take no decision by the numbers"
        ) from error
    finally:
        network.kernels = before


def foreign_parts(session: TrainedSession) -> list[str]:
    """Name the classes of a session's parts that are neither this package's nor torch's."""
    model, s = session.model, session.number
    parts = [model.readin[s], model.readout[s], model.recon[s], *model.infer_aug_stack.transforms]
    kinds = {type(getattr(part, "part", part)) for part in parts}
    packages = ("lfads_torch", "torch")
    return sorted(kind.__name__ for kind in kinds if kind.__module__.split(".")[0] not in packages)


def as_program(graph: Graph, properties: Mapping[str, Any], kernel: str = "reference") -> bytes:
    """Return the content of a ``.pt2`` file."""
    file = io.BytesIO()
    torch.export.save(traced(graph, kernel), file, extra_files=_texts(graph, properties))
    return file.getvalue()


def as_native_program(graph: Graph, properties: Mapping[str, Any]) -> bytes:
    """Return the content of a ``.pt2`` file with this package's operators."""
    return as_program(graph, properties, "native")


def as_onnx(graph: Graph, properties: Mapping[str, Any]) -> bytes:
    """Return the content of an ``.onnx`` file."""
    onnx = _onnx()
    program = traced(graph)
    with quiet():
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(properties["inputs"]),
            output_names=list(properties["outputs"]),
            external_data=False,
            verbose=False,
        )
    model = exported.model_proto
    onnx.helper.set_model_props(model, _texts(graph, properties))
    # No path of this machine, and a third of the size.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _texts(graph: Graph, properties: Mapping[str, Any]) -> dict[str, str]:
    """Return what stands beside a graph: its properties and initial states, as JSON."""
    states = graph.initial() if isinstance(graph, StepGraph) else {}
    # JSON has no NaN: null.
    lists = {
        k: np.where(np.isnan(array := v.numpy()), None, array).tolist()  # type: ignore[call-overload]
        for k, v in states.items()
    }
    texts = {f"initial/{name}": json.dumps(value) for name, value in lists.items()}
    return {"meta": json.dumps(properties), **texts}


def as_weights(graph: Graph, properties: Mapping[str, Any]) -> bytes:
    """Return the content of a ``.npz`` file for `numpy_runner`."""
    assert isinstance(graph, StepGraph)
    arrays, more = weights_of(graph)
    file = io.BytesIO()
    singles: dict[str, Any] = {k: np.ascontiguousarray(x, np.float32) for k, x in arrays.items()}
    np.savez(file, meta=np.array(json.dumps({**properties, **more})), **singles)
    return file.getvalue()


def torch_function(graph: nn.Module) -> Function:
    """Return a function that runs a graph itself."""

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = graph(**{name: torch.from_numpy(x) for name, x in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def runner_function(content: bytes) -> Function:
    """Return a function that runs the content of a ``.npz`` file, which keeps the states."""
    runner = numpy_runner.Runner(io.BytesIO(content))

    def run(inputs: Arrays) -> Arrays:
        outputs = runner.step(inputs["x"][0], inputs["ext"][0] if "ext" in inputs else None)
        return {name: value[None].copy() for name, value in outputs.items()}

    return run


def onnx_function(content: bytes) -> Function:
    """Return a function that runs the content of an ``.onnx`` file."""
    _onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def program_function(content: bytes) -> Function:
    """Return a function that runs the content of a ``.pt2`` file."""
    return torch_function(torch.export.load(io.BytesIO(content)).module())


def _onnx() -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed, which .onnx needs; `pip install "
            "'lfads-torch[export]'`, or write a .pt2"
        ) from error
    return onnx


@contextmanager
def quiet() -> Any:
    """Silence what torch and onnxscript say while they trace."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
