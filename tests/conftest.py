"""Settings for the whole test run: one thread, and the same random numbers in every test."""

from __future__ import annotations

import copy
import gc
import os
import random
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings

matplotlib.use("Agg")
torch.set_num_threads(1)
# A busy machine is no failure.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over what was imported, which stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Leave out what keeps files through a power cut: milliseconds for each of thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _a_home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the key that runs sign with out of the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _packaged_configurations_are_read_once() -> Iterator[None]:
    """Keep what Hydra makes of the packaged files, the larger part of the time of a tiny run."""
    from lfads_torch.runs import compose

    real, known = compose._compose, {}

    def composed(primary: Any, folders: Any, overrides: Any) -> Any:
        if list(folders) != [compose.PACKAGED] or primary.parent != compose.PACKAGED:
            return real(primary, folders, overrides)
        key = (primary, *overrides)
        if key not in known:
            known[key] = real(primary, folders, overrides)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_compose", composed)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Seed every generator before each test, so that no test depends on the ones before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    default_dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(default_dtype)
