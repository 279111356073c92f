"""Train LFADS on spikes of a known system, and see how well it infers the firing rates.

    python examples/minimal.py

No configuration files: only the calls that you need in a script or a notebook. It takes half a
minute on one core. The same on your own data: leave out step 1, and name your file in step 2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch

from lfads_torch import LFADS, BasicDataModule, sample_posterior
from lfads_torch.data import write_session
from lfads_torch.data.synthetic import lorenz
from lfads_torch.metrics import r2_score
from lfads_torch.modules.augmentations import AugmentationStack, CoordinatedDropout


def main(folder: Path, n_conditions: int, epochs: int) -> float:
    """Make data, train, infer and draw; return the R2 of the inferred rates."""
    pl.seed_everything(0, verbose=False)
    folder.mkdir(parents=True, exist_ok=True)

    # 1. A data file. The 30 units follow a Lorenz system, so the true rates are known: the file
    # holds them as `truth`. The model never sees them. A real file has spike counts only.
    data_file = folder / "lorenz.h5"
    write_session(data_file, lorenz(n_conditions, n_trials=8), {"bin_ms": 10.0})

    # 2. Batches of trials. The file says which trials train the model and which validate it.
    data = BasicDataModule(data_file, batch_size=64)

    # 3. The model; numbers of channels and bins come from the data. Coordinated dropout hides 30 %
    # of the entries (trial, bin, channel) from the encoders, and the model learns from these only.
    # It cannot copy single spikes to its output then; it has to learn what the units share.
    dropout = AugmentationStack([CoordinatedDropout(cd_rate=0.3)], batch_order=[0], loss_order=[0])
    model = LFADS.from_data(data, gen_dim=64, fac_dim=16, co_dim=1, train_aug_stack=dropout)

    # 4. Training. The gradient of a recurrent net is sometimes huge: clipping keeps it in bounds.
    trainer = pl.Trainer(
        max_epochs=epochs,
        gradient_clip_val=200,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=data)

    # 5. What the model says about each validation trial: the mean of 20 samples of its posterior.
    # `output_params` are rates (trials x bins x units), in expected spikes per bin.
    output = sample_posterior(model, data, num_samples=20, split="valid")
    trials = data.sessions[0].splits["valid"]
    spikes, truth, rates = trials.recon_data, torch.as_tensor(trials.truth), output.output_params
    r2 = r2_score(rates, truth).item()
    print(f"R2 of the rates on {len(rates)} validation trials: {r2:.3f}")

    # 6. One trial as a picture. Units stand in the order in which their true rates peak.
    order = truth[0].argmax(dim=0).argsort()
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", sharey=True)
    pictures = {"spikes": spikes, "true rates": truth, "inferred rates": rates}
    for axis, (title, values) in zip(axes, pictures.items(), strict=True):
        image = axis.imshow(values[0][:, order].T, aspect="auto", cmap="magma", vmin=0, vmax=2)
        axis.set(title=title, xlabel="bin of 10 ms")
    axes[0].set_ylabel("unit")
    figure.colorbar(image, ax=axes, label="spikes per bin", extend="max")
    figure.suptitle(f"One of {len(rates)} validation trials; R2 of the rates of all: {r2:.2f}")
    figure.savefig(folder / "rates.png", dpi=150)
    plt.close(figure)
    print(f"figure: {folder / 'rates.png'}")
    return r2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/minimal"), help="%(default)s")
    parser.add_argument("--conditions", type=int, default=60, help="of 8 trials (%(default)s)")
    parser.add_argument("--epochs", type=int, default=50, help="%(default)s")
    options = parser.parse_args()
    main(options.folder, options.conditions, options.epochs)
