"""Slow, independent oracles for the loss tree; nothing here imports the package under test."""
