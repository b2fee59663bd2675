"""Packs: recorded references that a target is held to."""
