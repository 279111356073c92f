"""AutoLFADS, a population of models: edit the constants, then `python scripts/run_pbt.py`.

The same from the command line: `lfads pbt model=... datamodule=... --run-dir ...`.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from lfads_torch.extensions.tune import HyperParam
from lfads_torch.search.run import run_search
from lfads_torch.search.space import space_overrides

PROJECT_STR = "lfads-torch-example"
DATASET_STR = "nlb_mc_maze"
RUN_TAG = datetime.now().strftime("%y%m%d") + "_examplePBT"
RUN_DIR = Path("runs") / PROJECT_STR / DATASET_STR / RUN_TAG
RESUME = False  # go on with an interrupted search in RUN_DIR
OVERWRITE = False  # delete the search in RUN_DIR
BACKEND = "local"  # "ray": trials of Ray Tune on one or many machines, see docs/clusters.md

SEARCH: dict[str, Any] = {
    "search.num_workers": 20,
    "search.perturbation_interval": 25,  # epochs of a generation
    "search.burn_in_period": 80,  # epochs of the ramps, before the first generation counts
    "search.patience": 4,
    "search.min_improvement_ratio": 5e-4,
}
HYPERPARAM_SPACE = {
    "model.lr_init": HyperParam(1e-5, 5e-3, init=4e-3, explore_wt=0.3, enforce_limits=True),
    "model.dropout_rate": HyperParam(
        0.0, 0.6, sample_fn="uniform", explore_wt=0.3, enforce_limits=True
    ),
    "model.train_aug_stack.transforms.0.cd_rate": HyperParam(
        0.01, 0.7, init=0.5, sample_fn="uniform", explore_wt=0.3, enforce_limits=True
    ),
    "model.kl_co_scale": HyperParam(1e-6, 1e-4, explore_wt=0.8),
    "model.kl_ic_scale": HyperParam(1e-6, 1e-3, explore_wt=0.8),
    "model.l2_gen_scale": HyperParam(1e-4, 1.0, explore_wt=0.8),
    "model.l2_con_scale": HyperParam(1e-4, 1.0, explore_wt=0.8),
}
RAY: dict[str, Any] = {
    # "search.ray.address": "auto",
    # "search.ray.members_per_trial": 1,
    # "search.ray.gpus_per_trial": 0.5,
}


def main() -> None:
    """Search, and write the best model's rates, factors and inferred inputs to the run folder."""
    overrides = {
        "model": DATASET_STR,
        "datamodule": DATASET_STR,
        **SEARCH,
        **space_overrides(HYPERPARAM_SPACE),
        **RAY,
    }
    result = run_search(
        RAY if RESUME else overrides,
        config_path="../configs/pbt.yaml",
        run_dir=RUN_DIR,
        resume=RESUME,
        overwrite=OVERWRITE,
        backend=None if RESUME else BACKEND,
    )
    print("\n".join(str(path) for path in result.outputs))


if __name__ == "__main__":
    main()
