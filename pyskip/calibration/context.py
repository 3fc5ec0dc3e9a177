"""BatchContext, where programs look for it; it lives in pyskip.runtime.batch."""

from __future__ import annotations

from ..runtime.batch import BatchContext

__all__ = ["BatchContext"]
