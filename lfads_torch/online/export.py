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
from torch import Tensor, nn

from .. import __version__
from ..consent import Trust
from ..data.find import absolute_pattern, check_output
from ..errors import ConfigError, UserError, one_of
from ..files import write_whole
from ..kernels import get_kernels
from .session import TrainedSession, open_session
from .window import Window

Arrays = dict[str, NDArray[Any]]

ENDINGS = (".onnx", ".pt2")
OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of a file from the model, in the units of its outputs."""
MOST_BINS = 128
"""Bins of a window that are unrolled without being told to."""
CHECKED_BINS = 20
# Of a graph of 30 bins with a controller; the nodes of a bin do not depend on the sizes.
_NODES_PER_BIN = 90


class Exported(NamedTuple):
    """What `export_model` made: the file (None where it was not exact) and its difference."""

    path: Path | None
    difference: float
    properties: dict[str, Any]


class WindowGraph(nn.Module):
    """The whole model on a window: counts (B, T_e, N) to the outputs of every bin, by name."""

    mode = "window"

    def __init__(self, session: TrainedSession) -> None:
        super().__init__()
        self.session, self.network = session, session.model
        self.window = Window(session.model, session.number)
        hp = session.model.hparams
        self.sizes: dict[str, tuple[int, ...]] = {"x": (hp.encod_seq_len, session.n_channels)}
        if hp.ext_input_dim:
            self.sizes["ext"] = (hp.recon_seq_len, hp.ext_input_dim)

    def forward(self, x: Tensor, ext: Tensor | None = None) -> dict[str, Tensor]:
        """Return rates, factors, and inferred inputs where the model has them."""
        output = self.window(x, ext)
        outputs = {"rates": output.rates, "factors": output.factors}
        if self.network.use_con:
            outputs["inputs"] = output.inputs
        return outputs


def export_model(
    run: str | Path,
    output: str | Path,
    *,
    mode: str = "auto",
    session: str | int | None = None,
    bin_ms: float | None = None,
    overwrite: bool = False,
    force: bool = False,
    best: bool = True,
    trust: bool | Trust = False,
) -> Exported:
    """Write a trained model into a file that another program runs, and compare the two.

    Parameters
    ----------
    run : str or Path
        Run folder or checkpoint.
    output : str or Path
        File to write. Its ending chooses: ``.onnx``, or ``.pt2`` for `torch.export.load`.
    mode : {"auto", "window"}
        What one call takes: a window of bins.
    session : str or int, optional
        Name or number of the session; a model of one session needs none.
    bin_ms : float, optional
        Bin width in milliseconds, where neither the run nor its data say it.
    overwrite : bool
        Whether to replace an existing file.
    force : bool
        Whether to unroll windows of more than 128 bins.
    best : bool
        Take the best checkpoint, else the last.
    trust : bool
        Import also classes from outside this package that the run names.

    Returns
    -------
    Exported
        ``path``, ``difference`` from the model over 20 bins, and the ``properties`` in the file.
        Where the difference is above 1e-4, no file is written and ``path`` is None.

    Raises
    ------
    UserError
        Where a package is missing, the file exists, or the model cannot be written in this form.
    """
    path = Path(absolute_pattern(output))
    ending = one_of("the ending of the file", path.suffix.lower(), ENDINGS)
    one_of("mode", mode, ["auto", "window"])
    if ending == ".onnx":
        _onnx()
    trained = open_session(run, session, bin_ms=bin_ms, best=best, trust=trust)
    check_output(trained.checkpoint, path, overwrite)
    graph = WindowGraph(trained)
    n_bins = max(trained.model.hparams["recon_seq_len"], graph.sizes["x"][0])
    if n_bins > MOST_BINS and not force:
        raise UserError(
            f"{run} has windows of {n_bins} bins, which make a graph of about "
            f"{n_bins * _NODES_PER_BIN} nodes: slow to write and to load. Add --force to write it "
            "all the same"
        )
    inputs = example_of(graph, CHECKED_BINS)
    with torch.no_grad():
        expected = graph(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    properties = properties_of(graph, expected)
    content = {".onnx": as_onnx, ".pt2": as_program}[ending](graph, properties)
    actual = {".onnx": onnx_function, ".pt2": program_function}[ending](content)(inputs)
    difference = max(
        float(np.abs(actual[name] - expected[name].numpy()).max()) for name in expected
    )
    if not difference <= TOLERANCE:
        return Exported(None, difference, properties)
    write_whole(path, content)
    return Exported(path, difference, properties)


def example_of(graph: Any, n_rows: int) -> Arrays:
    """Draw inputs for a batch, a channel of them missing at some bins."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(n_rows, *size)) for name, size in graph.sizes.items()}
    arrays["x"] = rng.poisson(0.5, arrays["x"].shape).astype(np.float64)
    arrays["x"][::3, ..., 0] = np.nan
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def properties_of(graph: Any, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a file says of itself."""
    session = graph.session
    hp = session.model.hparams
    return {
        "lfads_torch": __version__,
        "run": session.run.name,
        "checkpoint_sha256": session.sha256(),
        "data": session.fingerprint,
        "mode": graph.mode,
        "session": session.name,
        "bin_ms": session.bin_ms,
        "channel_names": list(session.channel_names),
        "encod_seq_len": hp["encod_seq_len"],
        "recon_seq_len": hp["recon_seq_len"],
        "inputs": {name: ["B", *size] for name, size in graph.sizes.items()},
        "outputs": {name: ["B", *value.shape[1:]] for name, value in outputs.items()},
        "opset": OPSET,
    }


def traced(graph: Any) -> Any:
    """Trace a graph by plain operations, with any number of rows."""
    network = graph.network
    # Two rows, since torch takes a size of 1 for one that never changes.
    example = {name: torch.from_numpy(x) for name, x in example_of(graph, 2).items()}
    rows = {name: {0: torch.export.Dim("B", min=1)} for name in example}
    before, network.kernels = network.kernels, get_kernels("reference")
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(graph, (), kwargs=example, dynamic_shapes=rows)
    except UserError:
        raise
    except Exception as error:  # a part of your own may be anything
        names = foreign_parts(graph.session)
        parts = f" ({', '.join(names)})" if names else ""
        raise ConfigError(
            f"the model cannot be traced: {str(error).strip().splitlines()[0]}. Its parts from "
            f"outside this package{parts} may use plain operations of torch alone, and take no "
            "decision by the numbers"
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


def as_program(graph: Any, properties: Mapping[str, Any]) -> bytes:
    """Return the content of a ``.pt2`` file."""
    file = io.BytesIO()
    torch.export.save(traced(graph), file, extra_files=_texts(properties))
    return file.getvalue()


def as_onnx(graph: Any, properties: Mapping[str, Any]) -> bytes:
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
    onnx.helper.set_model_props(model, _texts(properties))
    # No path of this machine, and a third of the size.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _texts(properties: Mapping[str, Any]) -> dict[str, str]:
    return {"meta": json.dumps(properties)}


def onnx_function(content: bytes) -> Callable[[Arrays], Arrays]:
    """Return a function that runs the content of an ``.onnx`` file."""
    _onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def program_function(content: bytes) -> Callable[[Arrays], Arrays]:
    """Return a function that runs the content of a ``.pt2`` file."""
    module = torch.export.load(io.BytesIO(content)).module()

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = module(**{name: torch.from_numpy(x) for name, x in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return run


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
