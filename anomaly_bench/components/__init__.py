"""Parts that several methods share: networks, losses, training, statistics, upsampling, nearest neighbours."""

from __future__ import annotations
