"""From a configuration to records: jobs, fitting, scoring, leases, saved models."""

from __future__ import annotations
