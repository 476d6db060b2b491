"""Samplers propose the next architecture: mathematics on plain values, without storage and torch."""
