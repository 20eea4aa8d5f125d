"""Allocation: which scheme every site gets under budgets. Solvers are pure functions on arrays."""
