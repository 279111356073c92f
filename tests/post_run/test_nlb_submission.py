"""The benchmark's submission file: layout, order of trials, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lfads_torch import cli
from lfads_torch.errors import DataError, UserError
from lfads_torch.post_run.nlb_submission import nlb_submission
from tests.post_run.outputs_of import write_run

# MC_RTT at 20 ms: bins and neurons that are read, of all.
READ, ALL = (30, 98), (40, 130)


def session(n_train: int = 5, n_valid: int = 3, n_test: int = 2, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    inds = np.split(rng.permutation(n_train + n_valid), [n_train])
    found: dict[str, Any] = {"train_inds": inds[0], "valid_inds": inds[1]}
    for split, n in (("train", n_train), ("valid", n_valid), ("test", n_test)):
        found[f"{split}_output_params"] = rng.gamma(2.0, 0.1, size=(n, *ALL)).astype(np.float32)
        found[f"{split}_encod_data"] = np.zeros((n, *READ), np.uint8)
    return found


def written(folder: Path, own: dict[str, Any], **attributes: Any) -> Path:
    attributes = {"bin_ms": 20.0, "session_name": "mc_rtt-20ms-test", **attributes}
    return write_run(folder, own, **attributes)


def test_layout_of_the_test_phase(tmp_path: Path) -> None:
    own = session()
    run = written(tmp_path / "run", own)
    path, shapes = nlb_submission([run], tmp_path / "submission.h5")
    with h5py.File(path) as file:
        assert list(file) == ["mc_rtt_20"]
        group = {key: item[()] for key, item in file["mc_rtt_20"].items()}
    assert {f"mc_rtt_20/{key}": value.shape for key, value in group.items()} == shapes
    # Training and validation trials both train, as they were recorded.
    both = np.concatenate([own["train_output_params"], own["valid_output_params"]])
    both = both[np.argsort(np.concatenate([own["train_inds"], own["valid_inds"]]))]
    test = own["test_output_params"]
    expected = {
        "train_rates_heldin": both[:, :30, :98],
        "train_rates_heldout": both[:, :30, 98:],
        "eval_rates_heldin": test[:, :30, :98],
        "eval_rates_heldout": test[:, :30, 98:],
        "eval_rates_heldin_forward": test[:, 30:, :98],
        "eval_rates_heldout_forward": test[:, 30:, 98:],
    }
    assert group.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(group[key], value), key


def test_validation_phase_and_several_data_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = written(tmp_path / "a", session())
    bump = session(seed=1)
    for key in list(bump):
        if key.endswith("output_params"):
            bump[key] = np.repeat(bump[key][:, :, :65], 4, axis=1)[:, :120]
        elif key.endswith("encod_data"):
            bump[key] = np.zeros((len(bump[key]), 120, 49), np.uint8)
    second = written(tmp_path / "b", bump, bin_ms=5.0, session_name="mine")
    target = tmp_path / "both.h5"
    arguments = ["nlb-submit", str(first), str(second), "--dataset", "mc_rtt", "area2_bump"]
    assert cli.main([*arguments, "--split", "valid", "--output", str(target)]) == 0
    assert "mc_rtt_20/eval_rates_heldout" in capsys.readouterr().out
    with h5py.File(target) as file:
        assert set(file) == {"mc_rtt_20", "area2_bump"}
        assert file["mc_rtt_20/train_rates_heldin"].shape == (5, *READ)
        assert file["mc_rtt_20/eval_rates_heldin"].shape == (3, *READ)
        # Without bins beyond those read there is no forward prediction.
        assert set(file["area2_bump"]) == {
            f"{kind}_rates_{neurons}"
            for kind in ("train", "eval")
            for neurons in ("heldin", "heldout")
        }


class TestRefused:
    def refuse(self, folder: Path, own: dict[str, Any], message: str, **options: Any) -> None:
        attributes = options.pop("attributes", {})
        run = written(folder, own, **attributes)
        with pytest.raises(UserError, match=message):
            nlb_submission([run], folder / "s.h5", **options)
        assert not (folder / "s.h5").exists()

    def test_names(self, tmp_path: Path) -> None:
        own = session()
        self.refuse(tmp_path, own, "did you mean mc_rtt", datasets=["mc_rt"])
        unknown = {"session_name": "jenkins_maze"}
        self.refuse(tmp_path, own, "give --dataset, one of mc_maze", attributes=unknown)
        self.refuse(tmp_path, own, "1 run.* and 2 data set", datasets=["mc_rtt", "mc_maze"])
        self.refuse(tmp_path, own, "legal are test and valid", split="train")

    def test_widths(self, tmp_path: Path) -> None:
        own = session()
        self.refuse(tmp_path, own, "bins of 10 ms", attributes={"bin_ms": 10.0})
        nothing = {"bin_ms": None, "session_name": "mc_rtt"}
        self.refuse(tmp_path, own, "unknown width.*--bin-ms", attributes=nothing)
        named = written(tmp_path, own, bin_ms=None)
        assert nlb_submission([named], tmp_path / "s.h5")[0].is_file(), "the name says 20 ms"

    def test_shapes(self, tmp_path: Path) -> None:
        own = session()
        message = "area2_bump at 20 ms has 30 bins x 49 neurons.*this run has 30 x 98, of 40 x 130"
        self.refuse(tmp_path, own, message, datasets=["area2_bump"])

    def test_rates(self, tmp_path: Path) -> None:
        own = session()
        own["test_output_params"][0, 0, 0] = np.nan
        self.refuse(tmp_path, own, "rates of eval trials are not all finite")
        own = session()
        own["train_output_params"][0, 0, 0] = -0.1
        self.refuse(tmp_path, own, "rates of train trials")

    def test_splits(self, tmp_path: Path) -> None:
        own = session()
        del own["valid_inds"]
        with pytest.raises(DataError, match="add 'valid_inds'"):
            nlb_submission([written(tmp_path / "a", own)], tmp_path / "s.h5")
        own = {key: value for key, value in session().items() if "test" not in key}
        self.refuse(tmp_path / "b", own, "no outputs for split 'test'")

    def test_the_same_twice(self, tmp_path: Path) -> None:
        run = written(tmp_path, session())
        with pytest.raises(UserError, match="mc_rtt_20 is named twice"):
            nlb_submission([run, run], tmp_path / "s.h5")

    def test_several_sessions_under_one_name(self, tmp_path: Path) -> None:
        run = write_run(tmp_path, session(), session())
        with pytest.raises(UserError, match="2 sessions, but a data set is one"):
            nlb_submission([run], tmp_path / "s.h5", datasets=["mc_rtt"])
