"""Records: what remains of a run, and how their files are read and written."""

from __future__ import annotations

from anomaly_bench.records.record import SCHEMA, DamagedRecord, Record, load, load_all, save, write_record

__all__ = ["SCHEMA", "DamagedRecord", "Record", "load", "load_all", "save", "write_record"]
