"""Purifiers on the Hugging Face Hub, or in a local folder of its layout: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

from safetensors import SafetensorError

from purify.autoencoder import DenoisingSparseAutoencoder, DSAEConfig
from purify.checkpoint import CheckpointError

try:
    from huggingface_hub import PyTorchModelHubMixin
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("purify.interop.hub needs huggingface_hub: pip install 'purify-defense[hub]'") from missing

__all__ = ["HubPurifier"]

_CARD = """---
{{ card_data }}
---

An adversarial purifier: a denoising sparse autoencoder that stands in front of an image classifier.

```python
import purify
from purify.interop.hub import HubPurifier

purifier = HubPurifier.from_pretrained("…")  # images (N, C, H, W) in [0, 1] to the same
defended = purify.wrap(classifier, purifier)  # differentiable, to logits
```
"""


class HubPurifier(
    DenoisingSparseAutoencoder,
    PyTorchModelHubMixin,  # type: ignore[misc, unused-ignore]
    library_name="purify-defense",
    license="apache-2.0",
    pipeline_tag="image-to-image",
    tags=["adversarial-robustness", "adversarial-purification", "sparse-autoencoder"],
    model_card_template=_CARD,
):
    """A purifier with ``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of ``huggingface_hub``.

    Weights are stored as safetensors, in the purifier's own dtype; a repository that holds a pickle alone is refused. It is a
    :class:`DenoisingSparseAutoencoder` in every other way. ``from_pretrained`` gives it in eval mode.

    Raises (``from_pretrained``):
        CheckpointError: no ``config.json``, one of another architecture, weights that do not fit it, or a pickle.

    >>> import tempfile, purify
    >>> purifier = HubPurifier.of(purify.load("digits-dsae"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = purifier.save_pretrained(folder)
    ...     again = HubPurifier.from_pretrained(folder)
    Loading weights from local directory
    >>> again.config == purifier.config
    True
    """

    def __init__(self, config: DSAEConfig | None = None) -> None:
        super().__init__(config or DSAEConfig())
        self._hub_mixin_config = self.config  # what save_pretrained writes; the mixin misses a config left to its default

    @classmethod
    def of(cls, purifier: DenoisingSparseAutoencoder) -> HubPurifier:
        """A copy of a purifier, such as :func:`purify.load` gives, in the same mode."""
        mine = cls(config=purifier.config)
        mine.load_state_dict(purifier.state_dict())
        return mine.train(purifier.training)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: Any = None, strict: bool = True, **options: Any) -> HubPurifier:
        if config is None:
            raise CheckpointError(f"{model_id} has no config.json: expected what save_pretrained of a purifier writes")
        try:
            config = config if isinstance(config, DSAEConfig) else DSAEConfig(**config)
        except (TypeError, ValueError) as error:
            fields = ", ".join(f.name for f in dataclasses.fields(DSAEConfig))
            raise CheckpointError(f"config.json of {model_id} is not a purifier's: {error}; expected some of {fields}") from error
        try:
            purifier: HubPurifier = super()._from_pretrained(model_id=model_id, config=config, strict=strict, **options)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{model_id} has no model.safetensors; a pickle is never loaded, since it can run code"
            ) from error
        except (RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"the weights in {model_id} are damaged or not those of its config.json: {error}") from error
        return purifier.eval()  # older mixins leave that to the caller

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, *_: Any) -> NoReturn:
        raise CheckpointError(f"{model_file} is a pickle; only safetensors files are loaded, since a pickle can run code")
