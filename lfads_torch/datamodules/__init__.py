"""HDF5 sessions as batches: read once, held once on the device, drawn by index."""

from .batches import SessionTensors
from .loaders import Batch, OrderedLoader, TrainLoader
from .module import BasicDataModule, SessionSizes

__all__ = [
    "BasicDataModule",
    "Batch",
    "OrderedLoader",
    "SessionSizes",
    "SessionTensors",
    "TrainLoader",
]
