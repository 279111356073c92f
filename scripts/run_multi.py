"""Random search for hyper-parameters: edit the constants, then `python scripts/run_multi.py`.

The same from the command line: `lfads search model=... datamodule=... --run-dir ...`.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from lfads_torch.extensions.tune import HyperParam
from lfads_torch.search.run import run_search
from lfads_torch.search.space import space_overrides

PROJECT_STR = "lfads-torch-example"
DATASET_STR = "nlb_mc_maze"
RUN_TAG = datetime.now().strftime("%y%m%d") + "_exampleMulti"
RUN_DIR = Path("runs") / PROJECT_STR / DATASET_STR / RUN_TAG
RESUME = False  # go on with an interrupted search in RUN_DIR
OVERWRITE = False  # delete the search in RUN_DIR
BACKEND = "local"  # "ray": trials of Ray Tune on one or many machines, see docs/clusters.md

SEARCH: dict[str, Any] = {
    "search.num_samples": 60,
    "search.stop_after": 100,  # epochs without a better score
    "trainer.max_epochs": 1000,
}
HYPERPARAM_SPACE = {
    "model.lr_init": HyperParam(1e-5, 5e-3),
    "model.dropout_rate": HyperParam(0.0, 0.6, sample_fn="uniform", enforce_limits=True),
    "model.train_aug_stack.transforms.0.cd_rate": HyperParam(
        0.01, 0.7, sample_fn="uniform", enforce_limits=True
    ),
    "model.kl_co_scale": HyperParam(1e-6, 1e-4),
    "model.kl_ic_scale": HyperParam(1e-6, 1e-3),
    "model.l2_gen_scale": HyperParam(1e-4, 1.0),
    "model.l2_con_scale": HyperParam(1e-4, 1.0),
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
        config_path="../configs/search.yaml",
        method="random",
        run_dir=RUN_DIR,
        resume=RESUME,
        overwrite=OVERWRITE,
        backend=None if RESUME else BACKEND,
    )
    print("\n".join(str(path) for path in result.outputs))


if __name__ == "__main__":
    main()
