"""Which sizes and penalties suit which data: what docs/which_model.md says, measured.

One setting at a time is changed in a base model of 64 units, on two recordings and on spikes of a
known system. Every model is fitted to a subset of the trials and scored on trials that neither
training nor the choice of the epoch has seen: bits per spike of units that it never reads
(co-bps), and for the known system R2 of the rates. Batches are a twelfth of the training
trials, at least 8 and at most 64, so that all models take about as many steps.

    python benchmarks/which_model.py --json docs/which_model.json
    python benchmarks/which_model.py --json docs/which_model.json --table    # writes what is there

Results are saved after each model; those in the file are not measured again. The recordings are
those of docs/real_data.md, in the folder --data.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from search_quality import markdown

from lfads_torch import LFADSEstimator
from lfads_torch.data.synthetic import lorenz
from lfads_torch.files import write_whole
from lfads_torch.metrics import bits_per_spike, r2_score

Array = NDArray[Any]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "which_model.md"

#: Against which one setting at a time is changed.
BASE: dict[str, Any] = {
    "trials": 300,
    "units": None,  # all that are not held out
    "bin_ms": 20,
    "gen_dim": 64,
    "fac_dim": 20,
    "co_dim": 1,
    "kl_scale": 1e-6,
    "l2_scale": 1e-4,
    "dropout_rate": 0.1,
    "cd_rate": 0.3,
    "lr_init": 4e-3,
    "members": 1,
}
#: By data set: settings and the values that take the place of the base's.
QUESTIONS: dict[str, dict[str, Sequence[Any]]] = {
    "wrist": {
        "trials": (100, 1000),
        "co_dim": (0, 4),
        "kl_scale": (1e-5, 1e-4, 1e-3),
        "units": (20, 50),
        "dropout_rate": (0.0, 0.4),
        "cd_rate": (0.0,),
        "lr_init": (1e-3, 1e-2),
        "fac_dim": (5, 40),
        "l2_scale": (1e-2,),
    },
    "lorenz": {"co_dim": (0, 4), "trials": (100, 1000), "kl_scale": (1e-4, 1e-3)},
    "reach": {"co_dim": (0, 4), "bin_ms": (10, 50), "trials": (100, 600), "kl_scale": (1e-4,)},
}
#: The same for other numbers of windows of the wrist recording.
WITH_TRIALS: dict[int, dict[str, Sequence[Any]]] = {
    100: {"dropout_rate": (0.0, 0.4), "kl_scale": (1e-4, 1e-3)},
    1000: {"dropout_rate": (0.0, 0.4)},
}
#: Data and trials for which a population is trained.
POPULATIONS = (("wrist", 100), ("wrist", 300), ("reach", 300))
SETTINGS = ("kl_ic_scale", "kl_co_scale"), ("l2_gen_scale", "l2_con_scale")


class Recording(NamedTuple):
    """Counts to fit and counts to score, trials x bins x units, and what of them is scored."""

    fit: Array
    test: Array
    held_out: list[int]
    scored: slice  # bins of the finest width
    truth: Array | None = None


def recording(name: str, folder: Path, bin_ms: int) -> Recording:
    """Read a recording, or draw spikes of a known system."""
    rng = np.random.default_rng(0)
    if name == "lorenz":
        data = lorenz(65, 20, seed=0)
        fit, test = data["train_recon_data"], data["valid_recon_data"]
        return Recording(fit, test, list(range(24, 30)), slice(None), data["valid_truth"])
    if name == "wrist":
        with h5py.File(folder / "isometric_wrist_day0.h5") as file:
            fit, test = (file[f"{split}_recon_data"][()] for split in ("train", "valid"))
        # Windows overlap by 6 bins with both neighbours, which are fitted.
        scored, n_held = slice(6, 24), 18
    else:
        with h5py.File(folder / "delayed_reach.h5") as file:
            spikes, target = file["spikes"][()], file["target"][()]
        counts = spikes.reshape(len(spikes), -1, bin_ms, spikes.shape[2]).sum(axis=2)
        is_test = np.zeros(len(spikes), bool)
        for one in np.unique(target):
            is_test[rng.permutation(np.flatnonzero(target == one))[:16]] = True
        fit, test = counts[~is_test], counts[is_test]
        scored, n_held = slice(None), 24
    fires = fit.mean(axis=(0, 1)) / bin_ms > 0.5e-3  # half a spike per second
    fit, test = fit[..., fires], test[..., fires]
    held = sorted(int(unit) for unit in rng.permutation(fit.shape[2])[:n_held])
    return Recording(fit, test, held, scored)


def plan(seeds: Sequence[int], data: Sequence[str], members: int) -> Iterator[dict[str, Any]]:
    """Yield the settings of each model, the first seed of all before the second of any."""
    for seed in seeds:
        for name in data:
            yield {"data": name, "seed": seed, **BASE}
            for setting, values in QUESTIONS[name].items():
                for value in values:
                    yield {"data": name, "seed": seed, **BASE, setting: value}
        for trials, questions in WITH_TRIALS.items() if "wrist" in data else ():
            for setting, values in questions.items():
                for value in values:
                    yield {"data": "wrist", "seed": seed, **BASE, "trials": trials, setting: value}
    # Last, because a population takes nearly as long as all of its members.
    for seed in seeds:
        for name, trials in POPULATIONS if members > 1 else ():
            if name in data:
                yield {"data": name, "seed": seed, **BASE, "trials": trials, "members": members}


def measure(case: dict[str, Any], folder: Path, epochs: int) -> dict[str, Any]:
    """Fit one model, or the population of a search, and score it on the test trials."""
    began = time.monotonic()
    data = recording(case["data"], folder, case["bin_ms"])
    rng = np.random.default_rng(case["seed"])
    kept = np.sort(rng.permutation(len(data.fit))[: case["trials"]])
    read = np.setdiff1d(np.arange(data.fit.shape[2]), data.held_out)
    if case["units"] is not None:
        read = np.sort(rng.permutation(read)[: case["units"]])
    units = np.concatenate([read, data.held_out])
    held = list(range(len(read), len(units)))
    overrides = {
        **{f"model.{name}": case["kl_scale"] for name in SETTINGS[0]},
        **{f"model.{name}": case["l2_scale"] for name in SETTINGS[1]},
        "model.dropout_rate": case["dropout_rate"],
        "model.lr_init": case["lr_init"],
        "model.train_aug_stack.transforms.0.cd_rate": case["cd_rate"],
        **{f"model.{name}_increase_epoch": epochs // 3 for name in ("kl", "l2")},
        "callbacks.early_stopping": None,
        "logger.tensorboard": None,
        "callbacks.raster_plot": None,
        "callbacks.trajectory_plot": None,
    }
    if case["members"] > 1:
        overrides["search.num_workers"] = case["members"]
        overrides["search.perturbation_interval"] = max(1, epochs // 8)
        overrides["search.burn_in_period"] = epochs // 3
        overrides["search.min_improvement_ratio"] = -1
    lfads = LFADSEstimator(
        **{name: case[name] for name in ("gen_dim", "fac_dim", "co_dim")},
        max_epochs=epochs,
        batch_size=int(np.clip(0.8 * case["trials"] / 12, 8, 64)),
        held_out=held,
        search=case["members"] > 1,
        num_samples=20,
        bin_ms=case["bin_ms"],
        overrides=overrides,
        random_state=case["seed"],
    ).fit(data.fit[kept][..., units])
    fine = recording(case["data"], folder, 10) if case["data"] == "reach" else data
    # Rates of wider bins are scored in the narrowest ones, so that all widths explain the same.
    ratio = fine.test.shape[1] // data.test.shape[1]
    rates = np.repeat(lfads.predict(data.test[..., units]) / ratio, ratio, axis=1)
    log_rates = torch.as_tensor(rates[:, fine.scored]).double().clamp_min(1e-9).log()
    counts = torch.as_tensor(fine.test[:, fine.scored][..., units]).double()
    result = {**case, "co_bps": float(bits_per_spike(log_rates[..., held], counts[..., held]))}
    if data.truth is not None:
        truth = torch.as_tensor(data.truth[..., units])
        result["r2"] = float(r2_score(torch.as_tensor(rates), truth))
    return {**result, "seconds": round(time.monotonic() - began, 1)}


#: What settings are called on the page.
NAMES = {
    "trials": "trials",
    "bin_ms": "bin width (ms)",
    "units": "units that are read",
    "co_dim": "`co_dim`",
    "kl_scale": "`kl_ic_scale`, `kl_co_scale`",
    "l2_scale": "`l2_gen_scale`, `l2_con_scale`",
    "dropout_rate": "`dropout_rate`",
    "cd_rate": "coordinated dropout",
    "lr_init": "`lr_init`",
    "fac_dim": "`fac_dim`",
    "members": "members",
}
TITLES = {"wrist": "wrist", "reach": "delayed reaches", "lorenz": "Lorenz"}


class Answer(NamedTuple):
    """What was measured of one setting: by value, the scores of all models."""

    data: str
    trials: int
    score: str
    values: dict[Any, list[float]]

    def means(self) -> dict[Any, float]:
        """Return the mean over models of each value that was measured."""
        return {value: float(np.mean(same)) for value, same in self.values.items() if same}

    def verdict(self, base: Any) -> str:
        """Say whether a value is better than the others by more than models of it differ."""
        means = self.means()
        if base not in means or len(means) < 2:
            return "not measured"
        spread = max(float(np.ptp(same)) for same in self.values.values() if same)
        best = max(means, key=lambda value: means[value])
        gain = means[best] - means[base]
        if all(len(same) < 2 for same in self.values.values()):
            return "one model each"
        if best == base:
            gain = means[base] - max(mean for value, mean in means.items() if value != base)
        if gain <= spread:
            return f"no difference: {gain:.3f}, and models of one value differ by {spread:.3f}"
        return f"{_cell(best)} is best, by {gain:.3f}; models of one value differ by {spread:.3f}"


def answers(results: Sequence[dict[str, Any]], setting: str) -> Iterator[Answer]:
    """Yield what was measured of a setting, by data, number of trials and score."""
    for name, questions in QUESTIONS.items():
        counts = [BASE["trials"]]
        counts += [n for n, more in WITH_TRIALS.items() if name == "wrist" and setting in more]
        if setting == "members":
            counts = [n for data, n in POPULATIONS if data == name]
        for trials in counts:
            fixed = {**BASE, "data": name, "trials": trials}
            fixed.pop(setting)
            same = [r for r in results if all(r[key] == fixed[key] for key in fixed)]
            asked = {r[setting] for r in same} if setting in (*questions, "members") else set()
            if len(asked) < 2 and setting != "members":
                continue
            for score in ("co_bps", "r2"):
                values = {
                    value: [r[score] for r in same if r[setting] == value and score in r]
                    for value in sorted(asked, key=lambda v: (v is None, v))
                }
                if any(values.values()):
                    yield Answer(name, trials, score, values)


def _cell(value: Any) -> str:
    return "all" if value is None else f"{value:g}"


def table(results: Sequence[dict[str, Any]], setting: str) -> str:
    """Return what was measured of a setting as Markdown: means over models, and a verdict."""
    rows = list(answers(results, setting))
    columns = sorted({v for row in rows for v in row.values}, key=lambda v: (v is None, v))
    if not rows or len(columns) < 2:
        return "Not measured yet."
    lines = []
    for row in rows:
        means = row.means()
        title = TITLES[row.data] + (f", {row.trials} trials" if setting != "trials" else "")
        score = "co-bps" if row.score == "co_bps" else "R2 of rates"
        cells = [f"{means[v]:.3f}" if v in means else "" for v in columns]
        n_models = max(len(same) for same in row.values.values())
        lines.append([title, score, *cells, str(n_models), row.verdict(BASE[setting])])
    header = [NAMES[setting], "score", *map(_cell, columns), "models", "verdict"]
    return markdown(header, lines)


def filled(page: str, results: Sequence[dict[str, Any]]) -> str:
    """Return the page with the tables that it names in comments, ``<!-- measured: co_dim -->``."""
    for setting in NAMES:
        opening, closing = f"<!-- measured: {setting} -->", "<!-- end -->"
        if opening in page:
            before, _, rest = page.partition(opening)
            after = rest.partition(closing)[2]
            page = f"{before}{opening}\n{table(results, setting)}\n{closing}{after}"
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the file lacks, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="results, continued")
    add("--data", type=Path, default=Path("../shared/data"), help="recordings (%(default)s)")
    add("--sets", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS), help="which data")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="(%(default)s)")
    add("--epochs", type=int, default=40, help="of each model (%(default)s)")
    add("--members", type=int, default=8, help="of a population; 1: none (%(default)s)")
    add("--page", type=Path, default=PAGE, help="whose tables are written (%(default)s)")
    add("--table", action="store_true", help="write what the file holds, measure nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    if options.json.is_file():
        results = json.loads(options.json.read_text())
    for case in () if options.table else plan(options.seeds, options.sets, options.members):
        if not any(all(row[key] == case[key] for key in case) for row in results):
            results.append(measure(case, options.data, options.epochs))
            lines = ",\n".join(json.dumps(row) for row in results)
            write_whole(options.json, f"[\n{lines}\n]\n")
    options.page.write_text(filled(options.page.read_text(), results))
    for setting in NAMES:
        print(table(results, setting), end="\n\n")


if __name__ == "__main__":
    main()
