"""HDF5 sessions as batches: read once, held once on the device, drawn by index."""

from ..tuples import SessionBatch
from .attach import (
    MANDATORY_KEYS,
    attach_tensors,
    reshuffle_train_valid,
    to_tensor,
)
from .batches import SessionDataset, SessionTensors
from .loaders import Batch, OrderedLoader, TrainLoader
from .module import BasicDataModule
from .rows import SessionSizes

__all__ = [
    "MANDATORY_KEYS",
    "BasicDataModule",
    "Batch",
    "OrderedLoader",
    "SessionBatch",
    "SessionDataset",
    "SessionSizes",
    "SessionTensors",
    "TrainLoader",
    "attach_tensors",
    "reshuffle_train_valid",
    "to_tensor",
]
