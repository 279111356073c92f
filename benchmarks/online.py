"""What a bin costs in a stream, and what it costs in accuracy to see no later bin.

    python benchmarks/online.py                      latency: window, step, exported files
    python benchmarks/online.py --accuracy --data isometric_wrist_day0.h5
                                                     bits per spike and R2: offline, window, step

Latency: random weights, 100 channels, windows of 30 bins, nets of 100, one thread; percentiles over
--bins bins. Run it on an idle machine. Accuracy: a model that is not causal and a causal one are
trained on the first four fifths of a recording; everything is scored on the last fifth. The decoder
of behaviour is fitted to what the same mode infers of the first four fifths.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lfads_torch
from lfads_torch.checkpoint import load_model
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.errors import UserError
from lfads_torch.folder import RunFolder
from lfads_torch.metrics import bits_per_spike
from lfads_torch.metrics.decoding import fit_decoder
from lfads_torch.model import LFADS
from lfads_torch.online.window import Window
from lfads_torch.prep import chop_recording
from lfads_torch.prep.chop import find_segments
from lfads_torch.prep.merging import merge_chops
from lfads_torch.run_model import run_model

N_CHANNELS, N_BINS, UNITS = 100, 30, 100
SHARES = {"p50": 50, "p95": 95, "p99": 99, "p99.9": 99.9, "max": 100}
LAGS = (0, 1, 2, 3)
FEATURES = "gen_states"


def model_of(causal: bool) -> LFADS:
    """Return a model of the wrist's size with random weights."""
    torch.manual_seed(0)
    sizes: Any = dict.fromkeys(("ic_enc_dim", "ci_enc_dim", "con_dim", "ic_dim", "gen_dim"), UNITS)
    model = LFADS(N_CHANNELS, N_BINS, co_dim=4, fac_dim=30, causal=causal, **sizes)
    return model.eval()


def timed(step: Callable[[Any], object], n_bins: int, warm_up: int = 200) -> dict[str, float]:
    """Return percentiles of the milliseconds of a bin."""
    x = np.random.default_rng(0).poisson(0.3, (500, N_CHANNELS)).astype(np.float32)
    for i in range(warm_up):
        step(x[i % 500])
    times = np.empty(n_bins)
    for i in range(n_bins):
        began = time.perf_counter()
        step(x[i % 500])
        times[i] = time.perf_counter() - began
    return {name: float(np.percentile(times, share) * 1e3) for name, share in SHARES.items()}


def latency(n_bins: int) -> list[dict[str, Any]]:
    """Time every way to run a bin; what cannot be exported here says why."""
    rows: list[dict[str, Any]] = []
    for mode in ("window", "step"):
        model = model_of(mode == "step")
        live = lfads_torch.stream(model, mode)
        rows.append({"what": f"{mode}, torch", **timed(live.step, n_bins)})
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "model.ckpt"
            save(model, checkpoint)
            for ending in ("onnx", "npz") if mode == "step" else ("onnx",):
                print(f"exporting: {mode}, {ending}", file=sys.stderr, flush=True)
                try:
                    step = exported(checkpoint, checkpoint.with_suffix(f".{ending}"), mode)
                except (UserError, ImportError) as error:
                    rows.append({"what": f"{mode}, {ending}", "missing": str(error)})
                else:
                    rows.append({"what": f"{mode}, {ending}", **timed(step, n_bins)})
    return rows


def save(model: LFADS, path: Path) -> None:
    """Write a checkpoint of an untrained model."""
    import pytorch_lightning as pl

    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)


def exported(checkpoint: Path, file: Path, mode: str) -> Callable[[Any], object]:
    """Export a model, and return what runs the file for a bin."""
    from lfads_torch.online.export import export_model

    export_model(checkpoint, file, mode=mode)
    if file.suffix == ".npz":
        from lfads_torch.online.numpy_runner import Runner

        return Runner(file).step
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    # States that an output gives are fed to the input of the same name at the next bin.
    names = [output.name for output in graph.get_outputs()]
    feed = {
        one.name: np.zeros([n if isinstance(n, int) else 1 for n in one.shape], np.float32)
        for one in graph.get_inputs()
    }

    def step(counts: Any) -> None:
        x = feed["x"]
        if mode == "window":
            x[:, :-1] = x[:, 1:]
            x[:, -1] = counts
        else:
            x[0] = counts
        for name, value in zip(names, graph.run(names, feed), strict=True):
            if name.removesuffix("_out") in feed:
                feed[name.removesuffix("_out")] = value

    return step


# ---- accuracy ------------------------------------------------------------------------------------


def recording(file: Path | None, n_bins: int) -> tuple[dict[str, Any], int]:
    """Return counts and behaviour as one recording, and the bins of a window."""
    if file is None:
        data = lorenz(2, 1, n_bins=n_bins, valid_fraction=0.5)
        path = data["train_latents"][0]
        return {"encod_data": data["train_recon_data"][0], "behavior": path[:, :2]}, 50
    from lfads_torch.post_run.decode import Source

    source = Source(file, "inds", 6)
    arrays = {name: source.rows(name)[:n_bins] for name in ("encod_data", "behavior")}
    return arrays, source.n_bins


def trained(folder: Path, data: Path, name: str, overrides: list[str]) -> LFADS:
    """Train a model, unless it is trained."""
    place = folder / name
    if RunFolder(place).status.get("stage") != "complete":
        common = [f"datamodule.datafile_pattern={data}", "trainer.enable_progress_bar=false"]
        common += ["callbacks.raster_plot=null", "callbacks.trajectory_plot=null"]
        run_model(
            [*common, *overrides],
            config_path="single.yaml",
            run_dir=place,
            do_posterior_sample=False,
            overwrite=place.exists(),
        )
    return load_model(place)


def offline(model: LFADS, x: Any, window: int, overlap: int) -> dict[str, Any]:
    """Infer windows as `lfads sample` does, and merge them."""
    starts = np.arange(0, len(x) - window + 1, window - overlap)
    cut = torch.from_numpy(np.stack([x[s : s + window] for s in starts]).astype(np.float32))
    with torch.no_grad():
        parts = [Window(model)(some) for some in cut.split(256)]
    names = ("rates", "gen_states")
    joined = {n: torch.cat([getattr(p, n) for p in parts]).numpy() for n in names}
    return {n: merge_chops(v, starts, len(x)) for n, v in joined.items()}


def scores(inferred: Mapping[str, Any], arrays: Mapping[str, Any], cut: int) -> dict[str, float]:
    """Score bits per spike and R2 after `cut`; the decoder is fitted before."""
    x, y = arrays["encod_data"], arrays["behavior"]
    rates, known = inferred["rates"], np.isfinite(inferred["rates"]).all(axis=1)
    late = known & (np.arange(len(x)) >= cut) & np.isfinite(x).all(axis=1)
    log_rates = torch.from_numpy(np.maximum(rates[late], 1e-9)).double().log()
    features = inferred[FEATURES]
    decoder = fit_decoder(features[:cut], y[:cut], lags=LAGS)
    decoded = decoder.score(features[cut:], y[cut:])
    return {
        "bps": float(bits_per_spike(log_rates, torch.from_numpy(x[late]).double())),
        "r2": decoded.r2_uniform,
    }


def accuracy(file: Path | None, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare offline, window and step on one recording, split in order of time."""
    n_bins = options.bins_of_data
    arrays, window = recording(file, n_bins)
    name = "lorenz" if file is None else file.stem
    folder = options.folder / name
    x, cut = arrays["encod_data"], int(0.8 * len(arrays["encod_data"]))
    overlap = min(6, window // 4)
    data = {"encod_data": x[:cut], "recon_data": x[:cut]}
    stretches = find_segments(np.isfinite(x[:cut]).all(axis=1))
    rows: list[dict[str, Any]] = []
    for causal in (False, True):
        length = options.causal_window if causal and options.causal_window else window
        cuts, attributes = chop_recording(
            data, length, overlap, valid_fraction=0.2, segments=stretches
        )
        place = folder / f"data_{length}.h5"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_session(place, cuts, attributes)
        overrides = [f"trainer.max_epochs={options.epochs}", "datamodule.batch_size=64"]
        overrides += ["model=causal"] if causal else ["model=isometric_wrist"]
        if causal and length > window:
            overrides.append(f"model.tbptt_bins={window}")
        overrides += options.overrides
        model = trained(folder, place, "causal" if causal else "whole", overrides)
        modes: dict[str, Any] = {"offline": offline(model, x, length, overlap)}
        live = lfads_torch.stream(model)
        modes[live.mode] = live.run(x)._asdict()
        for mode, inferred in modes.items():
            what = f"{'causal' if causal else 'not causal'}, {mode}"
            rows.append({"data": name, "what": what, **scores(inferred, arrays, cut)})
    return rows


def main() -> None:
    """Run what the command line says, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--bins", type=int, default=10_000, help="bins that are timed (10000)")
    add("--accuracy", action="store_true", help="accuracy instead of latency")
    add("--data", type=Path, help="wrist recording (--accuracy); Lorenz is always scored")
    add("--bins-of-data", type=int, default=50_000, help="bins of each recording (50000)")
    add("--epochs", type=int, default=100, help="of each training (100)")
    add("--causal-window", type=int, default=0, help="bins of the causal model's windows")
    add("--folder", type=Path, default=Path("runs/online"), help="where runs lie (runs/online)")
    add("--json", action="store_true")
    add("overrides", nargs="*", help="KEY=VALUE of the configuration")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.accuracy:
        files = [None] if options.data is None else [None, options.data]
        rows = [row for file in files for row in accuracy(file, options)]
    else:
        rows = latency(options.bins)
    machine = f"{platform.machine()}, {platform.system()}, torch {torch.__version__}"
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
        return
    print(machine)
    for row in rows:
        texts = (f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items())
        print("  ".join(texts))


if __name__ == "__main__":
    main()
