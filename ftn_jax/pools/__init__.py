"""Pools of components under one contract (DESIGN.md section 4)."""
