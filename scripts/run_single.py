"""Train one model: edit the constants, then `python scripts/run_single.py`.

The same from the command line: `lfads train model=... datamodule=... --run-dir ...`.
"""

from datetime import datetime
from pathlib import Path

from lfads_torch.run_model import run_model

PROJECT_STR = "lfads-torch-example"
DATASET_STR = "nlb_mc_maze"
RUN_TAG = datetime.now().strftime("%y%m%d") + "_exampleSingle"
RUN_DIR = Path("runs") / PROJECT_STR / DATASET_STR / RUN_TAG
RESUME = False  # go on with an interrupted run in RUN_DIR
OVERWRITE = False  # delete the run in RUN_DIR


def main() -> None:
    """Train, and write rates, factors and inferred inputs to the run folder."""
    result = run_model(
        overrides={} if RESUME else {"model": DATASET_STR, "datamodule": DATASET_STR},
        config_path="../configs/single.yaml",
        run_dir=RUN_DIR,
        resume=RESUME,
        overwrite=OVERWRITE,
    )
    print("\n".join(str(path) for path in result.outputs))


if __name__ == "__main__":
    main()
