"""Tests of lfads-torch; the folders mirror the package's."""
