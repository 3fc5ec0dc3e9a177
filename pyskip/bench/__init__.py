"""How fast policies are, beside dense and beside each other."""

from __future__ import annotations

from .run import Arm, BenchResult, Row, Test, run_bench

__all__ = ["Arm", "BenchResult", "Row", "Test", "run_bench"]
