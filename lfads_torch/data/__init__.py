"""Data files: the HDF5 schema and synthetic recordings. NumPy and h5py only, never torch."""
