"""Why a sparse code can filter: four pieces of theory as experiments, each with its figures.

``subspace``: a linear autoencoder is PCA. ``proximal``: thresholds are proximal operators. ``landscape``: the L1 penalty turns
rotated dictionaries into saddles. ``features``: dense and sparse codes of pictures, in numbers and as atoms.
"""
