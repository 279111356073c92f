"""Tests of the network's modules."""
