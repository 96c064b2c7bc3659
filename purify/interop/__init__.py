"""Adapters for other people's tools; each file needs its own library, and nothing is imported until it is asked for.

- ``purify.interop.foolbox``: :func:`~purify.interop.foolbox.to_foolbox`; the way back is :class:`purify.attacks.FoolboxAttack`
- ``purify.interop.art``: ``to_art``, ``PurifierPreprocessor``; the way back is ``ARTAttack``
- ``purify.interop.torchattacks``: ``to_torchattacks``; the way back is ``TorchattacksAttack``
- ``purify.interop.robustbench``: ``benchmark``
- ``purify.interop.hub``: ``HubPurifier``, with ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``

``docs/interop.md`` has an example of each.
"""
