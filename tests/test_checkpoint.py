"""Checkpoints: plain to load, complete, and safe to open whoever wrote them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lfads_torch.checkpoint import load_model
from lfads_torch.errors import ConfigError, UserError
from lfads_torch.model import LFADS
from lfads_torch.modules import priors, recons
from lfads_torch.modules.augmentations import AugmentationStack, CoordinatedDropout
from lfads_torch.modules.readin_readout import FanInLinear
from lfads_torch.network import PARTS as MODULES
from lfads_torch.tuples import SessionBatch
from tests.small import DIMS, arrays, batch_of, counts, datamodule, lfads, trainer, write

# ---- this project's own ------------------------------------------------------------------------


class Square(nn.Module):
    """Observation model of one's own."""

    n_params = 2

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power
        self.gain = nn.Parameter(torch.ones(()))

    def reshape_output_params(self, output_params: Tensor) -> Tensor:
        return output_params.unflatten(-1, (2, -1)).transpose(-1, -2)

    def compute_loss(self, data: Tensor, output_params: Tensor) -> Tensor:
        return (data - self.compute_means(output_params)).abs() ** self.power

    def compute_means(self, output_params: Tensor) -> Tensor:
        return self.gain * output_params.sum(dim=-1)


class Ridge(nn.Module):
    """Prior of one's own."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.centre = nn.Parameter(torch.zeros(()))

    def make_posterior(self, mean: Tensor, std: Tensor) -> Any:
        return priors.gaussian_posterior(mean, std)

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        return self.weight * ((mean - self.centre) ** 2).mean()


class Offset:
    """Transform of one's own."""

    def __init__(self, by: float) -> None:
        self.by = by

    def process_batch(self, batch: SessionBatch) -> SessionBatch:
        return batch._replace(encod_data=batch.encod_data + self.by)


def trained(folder: Path, *sessions: dict[str, Any], **arguments: Any) -> tuple[LFADS, Path]:
    """Model trained for an epoch and its checkpoint."""
    data = datamodule(write(folder, *(sessions or (arrays(),))))
    model = lfads(data, **arguments)
    run = trainer(folder, max_epochs=1)
    run.fit(model, data)
    run.save_checkpoint(folder / "last.ckpt")
    return model.eval(), folder / "last.ckpt"


def same_model(a: LFADS, b: LFADS) -> None:
    """Fail where two models differ in numbers, parts, or what they infer of a batch."""
    numbers = [{k: v for k, v in m.hparams.items() if k not in MODULES} for m in (a, b)]
    assert numbers[0] == numbers[1]
    assert a.session_names == b.session_names
    states = [model.state_dict() for model in (a, b)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    frozen = [{n for n, p in m.named_parameters() if not p.requires_grad} for m in (a, b)]
    assert frozen[0] == frozen[1]
    for session, readin in enumerate(a.readin):
        n = getattr(readin, "in_features", a.hparams["encod_data_dim"])
        n_out = a.readout[session].out_features // a.recon[session].n_params
        recon = counts(3, a.hparams["recon_seq_len"], max(n, n_out))
        encod = recon[:, : a.hparams["encod_seq_len"], :n]
        batch = {session: batch_of(encod, recon[..., :n_out])}
        outs = []
        for model in (a, b):
            torch.manual_seed(1)
            with torch.no_grad():
                outs.append(model.predict_step(batch, 0)[session])
        first, second = (output._asdict() for output in outs)
        assert first.keys() == second.keys()
        for name, x in first.items():
            assert torch.equal(x, second[name])


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "defaults": dict,
    "augmented": lambda: {
        "train_aug_stack": AugmentationStack([CoordinatedDropout(0.3, 0.2)], [0], [0]),
        "infer_aug_stack": AugmentationStack([Offset(0.5)], [0]),
    },
    "one's own": lambda: {"reconstruction": Square(1.5), "ic_prior": Ridge(0.25)},
    "student": lambda: {"co_prior": priors.MultivariateStudentT(0.0, 1.0, 5.0, 2)},
    "not variational": lambda: {"variational": False},
    "autonomous": lambda: {"ci_enc_dim": 0, "con_dim": 0, "co_dim": 0},
    "frozen read-in": lambda: {"readin": FanInLinear(3, 3).requires_grad_(False)},
}


@pytest.mark.parametrize("parts", PARTS)
def test_a_model_comes_back_as_it_was(tmp_path: Path, parts: str) -> None:
    model, path = trained(tmp_path, **PARTS[parts]())
    for file in tmp_path.glob("*.h5"):
        file.unlink()  # a model needs its data no more
    again = load_model(path)
    assert not again.training
    same_model(model, again)


def test_several_sessions_come_back(tmp_path: Path) -> None:
    sessions = [arrays(channels=(n, n + 1), bins=(5, 7), seed=n) for n in (2, 3)]
    zig = recons.ZeroInflatedGamma(1, -0.5, 20.0, 10.0, 0.1)
    model, path = trained(tmp_path, *sessions, reconstruction=zig)
    again = load_model(path)
    assert again.session_names == ["day0", "day1"]
    same_model(model, again)


def plain(value: Any) -> bool:
    """Whether a value is made of numbers, text and containers."""
    if isinstance(value, dict):
        return all(plain(k) and plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str)


def test_checkpoints_need_no_execution_and_hold_plain_numbers(tmp_path: Path) -> None:
    model, path = trained(
        tmp_path,
        lr_init=np.float32(0.25),
        kl_ic_scale=np.float64(0.5),
        gen_dim=np.int64(6),
        train_aug_stack=AugmentationStack([CoordinatedDropout(0.3)], [0], [0]),
    )
    checkpoint = torch.load(path, weights_only=True)
    assert plain(checkpoint["hyper_parameters"])
    assert checkpoint["hyper_parameters"]["lr_init"] == 0.25
    assert checkpoint["hyper_parameters"]["gen_dim"] == 6
    own = dict(checkpoint["lfads"])
    smoothed = own.pop("extra")["recon_smth"]
    torch.testing.assert_close(smoothed, model.valid_recon_smth.smoothed)
    assert plain(own)
    assert own["session_names"] == ["day0"]
    # The state dict is the parameters under their golden names, and nothing else.
    assert checkpoint["state_dict"].keys() == dict(model.named_parameters()).keys()


def test_folders_of_checkpoints(tmp_path: Path) -> None:
    model, path = trained(tmp_path)
    folder = tmp_path / "run" / "lightning_checkpoints"
    folder.mkdir(parents=True)
    path.rename(folder / "last.ckpt")
    same_model(model, load_model(tmp_path / "run"))
    same_model(model, load_model(folder))
    same_model(model, load_model(folder / "last.ckpt", best=False))


def test_arguments_replace_those_of_the_checkpoint(tmp_path: Path) -> None:
    _, path = trained(tmp_path)
    again = load_model(path, dropout_rate=0.75, infer_aug_stack=AugmentationStack([Offset(1)], [0]))
    assert again.hparams.dropout_rate == 0.75
    assert len(again.infer_aug_stack) == 1


def test_a_models_own_parts_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = trained(tmp_path, ic_prior=Ridge(0.25))
    monkeypatch.delattr(sys.modules[__name__], "Ridge")
    with pytest.raises(ConfigError, match=r"last\.ckpt: .*Ridge, which cannot be imported"):
        load_model(path, trust=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_what_load_model_refuses(tmp_path: Path) -> None:
    _, path = trained(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_model(tmp_path / "empty")
    with pytest.raises(ConfigError, match="'gen_dims' is no argument of LFADS"):
        load_model(path, gen_dims=3)
    with pytest.raises(UserError, match=r"last\.ckpt is a checkpoint of another shape: .*gen_cell"):
        load_model(path, gen_dim=9)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt holds no state_dict"):
        load_model(tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match=r"list\.ckpt holds no state_dict"):
        load_model(tmp_path / "list.ckpt")
    script = torch.jit.script(nn.Linear(2, 2))
    script.save(str(tmp_path / "program.ckpt"))
    with pytest.raises(UserError, match=r"program\.ckpt is a TorchScript program"):
        load_model(tmp_path / "program.ckpt")


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_are_a_users_error(tmp_path: Path, data: st.DataObject) -> None:
    good = tmp_path / "good.ckpt"
    if not good.exists():
        torch.save({"state_dict": {"a": torch.ones(3)}, "other": object}, good)
    content = good.read_bytes()
    bad = tmp_path / "bad.ckpt"
    if data.draw(st.booleans()):
        bad.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        bad.write_bytes(data.draw(st.binary(max_size=60)))
    with pytest.raises(UserError, match=r"bad\.ckpt"):
        load_model(bad)


def test_what_only_older_checkpoints_lack_is_no_answer_here(tmp_path: Path) -> None:
    _, path = trained(tmp_path)
    for answer in ({"reconstruction": "gaussian"}, {"config": {"model": {}}}):
        with pytest.raises(ConfigError, match=r"says itself .*--reconstruction.*leave them out"):
            load_model(path, **answer)


def test_a_checkpoint_of_another_kind_of_model(tmp_path: Path) -> None:
    torch.save({"state_dict": {"decoder.weight": torch.ones(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match="holds no LFADS model"):
        load_model(tmp_path / "other.ckpt", encod_seq_len=3, recon_seq_len=3)


def test_the_fixed_sizes_of_these_tests_are_a_model() -> None:
    assert LFADS(encod_data_dim=3, encod_seq_len=6, **DIMS).use_con
