"""Shipped weights: one safetensors file and one card (JSON) each; README.md shows them all."""
