"""Selects and packs the files of an upload."""
