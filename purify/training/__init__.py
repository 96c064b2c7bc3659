"""How checkpoints are made: recipes say what, tasks by which loss, the loop runs them and never loses anything.

``recipes``: settings. ``catalogue``: recipes by name. ``tasks``: classifiers and denoisers. ``robust_task``: purifiers that
know their attacker. ``attack``: what adversarial training learns from. ``augmentation``: random changes of the images. ``loop``:
epochs, averaging, saving. ``card``: what is written beside the weights. ``distributed``: several processes.
"""
