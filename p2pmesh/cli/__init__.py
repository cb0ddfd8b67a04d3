"""The verbs: short, no logic."""
