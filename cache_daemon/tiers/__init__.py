"""Tiers: directories with budgets, and where they lie."""
