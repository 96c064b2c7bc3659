"""The purifier: a convolutional denoising sparse autoencoder (DSAE)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify.encoder import PyramidTrunk, ResidualBlock
from purify.global_units import GlobalUnits
from purify.images import check_images
from purify.low_pass import low_pass
from purify.noise import estimate_noise
from purify.sparse import CodeName, make_code

__all__ = ["CodeStatistics", "DSAEConfig", "DenoisingSparseAutoencoder"]

EncoderName = Literal["deep", "pyramid", "linear", "tied"]
_FIRST_GAIN = 0.5
"""Of a new unit's row in a linear encoder: so many times its atom."""
_FIRST_SLOPE = 0.5
"""Of an adaptive threshold: one standard deviation of what a new unit of a linear encoder makes of white noise."""


@dataclass(frozen=True, kw_only=True)
class DSAEConfig:
    """Architecture of a :class:`DenoisingSparseAutoencoder`. Sizes in pixels unless said otherwise."""

    channels: int = 1
    """Image channels C (1 grey, 3 colour)."""
    units: int = 96
    """Code channels K, which is also the number of atoms."""
    atom: int = 6
    """Side of a (square) atom."""
    stride: int = 2
    """The code has one position for each stride × stride pixels."""
    encoder: EncoderName = "deep"
    """deep: residual convolutions, then linear; pyramid: as deep, at three scales (:class:`purify.encoder.PyramidTrunk`); linear:
    one learnt convolution; tied: the dictionary's transpose (with ``steps`` > 1 the textbook ISTA)."""
    shortcut: bool = False
    """Add a linear encoder to a deep one or a pyramid, which begins as a linear autoencoder: detail is there from the first step,
    and few photographs are enough to learn from."""
    width: int = 64
    """Hidden channels of the deep encoder; of the pyramid at its finest scale."""
    depth: int = 3
    """Residual blocks of the deep encoder, at the resolution of the code; of the pyramid at each scale."""
    adaptive: bool = False
    """Thresholds grow with the noise around each place (:func:`purify.noise.estimate_noise`): little is lost of a clean picture,
    much is removed of a noisy one."""
    low_pass: float = 1.0
    """The encoder sees the image as if it had been shrunk so many times and enlarged again (:func:`purify.low_pass.low_pass`):
    what is finer is removed, with the attack in it, and the atoms paint it anew. 1: as it is."""
    steps: int = 1
    """Unrolled proximal-gradient steps T. 1 is the classic sparse autoencoder."""
    code: CodeName = "soft"
    """What makes the code sparse (``purify.sparse``): soft, the default; hard, top-k and batch-top-k jump."""
    density: float = 0.1
    """Share of the code's entries that top-k and batch-top-k leave."""
    global_units: int = 0
    """Further units, of a pyramid, that see the whole image and write on all of it (:class:`purify.global_units.GlobalUnits`)."""
    global_atom: int = 32
    """Side of their atoms: that of the images they learn from."""

    def __post_init__(self) -> None:
        for name in ("channels", "units", "atom", "stride", "width", "steps", "global_atom"):
            if getattr(self, name) < 1:
                raise ValueError(f"DSAEConfig.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("depth", "global_units"):
            if getattr(self, name) < 0:
                raise ValueError(f"DSAEConfig.{name} must not be negative, got {getattr(self, name)}")
        if self.atom < self.stride or (self.atom - self.stride) % 2:
            raise ValueError(
                "DSAEConfig.atom must be at least the stride and differ from it by an even number (atoms overlap "
                f"evenly on both sides), got atom {self.atom} with stride {self.stride}"
            )
        if not 1 <= self.low_pass < math.inf:
            raise ValueError(f"DSAEConfig.low_pass must be at least 1, which lets everything through, got {self.low_pass}")
        if not 0 < self.density <= 1:
            raise ValueError(f"DSAEConfig.density must be above 0 and at most 1, got {self.density}")
        if self.encoder not in get_args(EncoderName):
            raise ValueError(f"DSAEConfig.encoder must be one of {', '.join(get_args(EncoderName))}, got {self.encoder!r}")
        if self.shortcut and self.encoder not in ("deep", "pyramid"):
            raise ValueError(f"DSAEConfig.shortcut is for the encoders 'deep' and 'pyramid', got {self.encoder!r}")
        if self.encoder == "pyramid" and (self.stride % 4 or self.width % 2):
            raise ValueError(
                "DSAEConfig.encoder 'pyramid' needs a stride that is a multiple of 4 and an even width, got stride "
                f"{self.stride} with width {self.width}"
            )
        fits = self.encoder == "pyramid" and self.steps == 1 and not self.adaptive and self.code in ("soft", "hard")
        if self.global_units and not fits:
            raise ValueError(
                "DSAEConfig.global_units need encoder 'pyramid', one step, no adaptive thresholds and code 'soft' or 'hard', got "
                f"encoder {self.encoder!r}, steps {self.steps}, adaptive {self.adaptive}, code {self.code!r}"
            )


@dataclass(frozen=True)
class CodeStatistics:
    """How sparse and how faithful a code is, over a set of images."""

    l0: float
    """Mean number of active units (entries > 0 of the code tensor) for one image."""
    density: float
    """``l0`` as a share of all units at all their positions (a global unit has one), 0 … 1."""
    explained_variance: float
    """1 − Σ(x − x̂)² / Σ(x − mean image)², at most 1."""
    dead_units: float
    """Share of the units, global ones among them, that were active nowhere in these images, 0 … 1."""


class DenoisingSparseAutoencoder(nn.Module):
    """Rebuilds an image from a few active units of a non-negative convolutional code.

    With dictionary D (a transposed convolution whose K atoms have unit norm), encoder E, offset b (one value for each
    channel) and thresholds θ_k ≥ 0 (one for each unit, learnt; an adaptive one is θ_k + s_k · σ̂, with the noise σ̂ estimated
    around the place and a learnt slope s_k ≥ 0), T = ``config.steps`` proximal-gradient steps

        z₀ = 0,   z_{t+1} = relu( z_t + E(x − b − D z_t) − θ )          (other codes: another operator than this relu)

    give the code z = z_T, and the purified image is x̂ = clip(D z + b, 0, 1). T = 1 is the classic sparse autoencoder
    with shifted ReLU; a tied encoder E = η Dᵀ makes it ISTA on ½‖x − b − Dz‖² + (θ/η)·Σz, z ≥ 0
    (Beck & Teboulle 2009; learnt encoders: Gregor & LeCun 2010; convolutional: Papyan, Romano & Elad 2017).

    Images (N, C, H, W) in [0, 1] with any H and W (odd, non-square, smaller than an atom: the border is replicated up to
    the next multiple of the stride and cut off again). Codes (N, K, ⌈H/stride⌉, ⌈W/stride⌉), not negative. With G global units
    (K + G in the place of K), these come last, are active at the first position only, and D z has their patterns added to it.

    >>> purifier = DenoisingSparseAutoencoder(DSAEConfig(channels=3, units=8, width=4, depth=1))
    >>> x = torch.rand(2, 3, 9, 7)
    >>> code = purifier.encode(x)
    >>> code.shape, purifier.decode(code, size=(9, 7)).shape, purifier(x).shape
    (torch.Size([2, 8, 5, 4]), torch.Size([2, 3, 9, 7]), torch.Size([2, 3, 9, 7]))
    """

    def __init__(self, config: DSAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DSAEConfig()
        atom_shape = (config.units, config.channels, config.atom, config.atom)
        self.overlap = (config.atom - config.stride) // 2
        self.atoms = nn.Parameter(torch.randn(atom_shape))  # (K, C, a, a), normalised when used
        self.offset = nn.Parameter(torch.zeros(config.channels, 1, 1))  # b
        self.raw_threshold = nn.Parameter(torch.full((config.units, 1, 1), _inverse_softplus(0.05)))
        if config.adaptive:
            self.raw_threshold_slope = nn.Parameter(torch.full((config.units, 1, 1), _inverse_softplus(_FIRST_SLOPE)))
        self.sparsify = make_code(config.code, density=config.density, steps=config.steps)
        self.stem: nn.Module = nn.Identity()
        self.blocks: nn.Module = nn.Identity()
        self._make_encoder(config)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(memory_format=torch.channels_last)  # quicker with a single image on a processor

    def _make_encoder(self, config: DSAEConfig) -> None:
        """The layers of E, before their training."""
        if config.encoder == "tied":
            self.log_step_size = nn.Parameter(torch.tensor(math.log(self._first_step_size())))  # log η
        elif config.encoder == "linear":
            self.analysis = self._image_layer(config.units)
            with torch.no_grad():  # starts as the tied encoder with η = 1
                self.analysis.weight.copy_(self.dictionary)
        elif config.encoder == "pyramid":
            self.stem = trunk = PyramidTrunk(config.channels, config.width, config.depth, config.stride)
            if config.global_units:
                self.raw_global_threshold = nn.Parameter(torch.full((config.global_units, 1, 1), _inverse_softplus(0.05)))
                self.whole = GlobalUnits(trunk.coarse, config.global_units, config.channels, config.global_atom)
            self.analysis = nn.Conv2d(2 * config.width, config.units, 3, padding=1)
        else:
            self.stem = self._image_layer(config.width)
            self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.depth)), nn.ReLU())
            self.analysis = nn.Conv2d(config.width, config.units, 3, padding=1)
        if config.shortcut:
            self.shortcut = self._image_layer(config.units, bias=False)
            with torch.no_grad():  # starts as a linear autoencoder: atoms in pairs of either sign, and nothing deep
                half = config.units // 2
                self.atoms[half : 2 * half] = -self.atoms[:half]
                self.shortcut.weight.copy_(_FIRST_GAIN * self.dictionary)
                self.analysis.weight.zero_()
                cast(Tensor, self.analysis.bias).zero_()

    def _image_layer(self, width: int, *, bias: bool = True) -> nn.Conv2d:
        """A convolution that sees the image as the atoms do."""
        return nn.Conv2d(self.config.channels, width, self.config.atom, self.config.stride, self.overlap, bias=bias)

    @property
    def dictionary(self) -> Tensor:
        """The atoms (K, C, a, a), each of unit Euclidean norm."""
        return F.normalize(self.atoms.flatten(1), dim=1).view_as(self.atoms)

    @property
    def threshold(self) -> Tensor:
        """The thresholds θ (K + G, 1, 1), never negative: softplus of the learnt parameter."""
        if self.config.global_units:
            return F.softplus(torch.cat([self.raw_threshold, self.raw_global_threshold]))
        return F.softplus(self.raw_threshold)

    def _threshold_for(self, padded: Tensor) -> Tensor:
        """The thresholds for images (N, C, H, W): (K, 1, 1), or (N, K, h, w) where they are adaptive."""
        if not self.config.adaptive:
            return self.threshold
        return self.threshold + F.softplus(self.raw_threshold_slope) * estimate_noise(padded, self.config.stride)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to the sparse, non-negative code (N, K, ⌈H/stride⌉, ⌈W/stride⌉).

        Raises:
            ValueError: another rank or number of channels. Values are checked by the wrapped classifier, not here.
        """
        if images.ndim != 4 or images.shape[1] != self.config.channels:
            raise ValueError(f"expected images (N, {self.config.channels}, H, W), got shape {tuple(images.shape)}")
        padded = self._seen(images) - self.offset
        threshold = self._threshold_for(padded)
        code: Tensor = self.sparsify(self._analyse(padded), threshold, 0)
        for step in range(1, self.config.steps):
            rest = padded - self._synthesise(code)
            code = self.sparsify(code + self._analyse(rest), threshold, step)
        return code

    def analyse(self, images: Tensor) -> Tensor:
        """E(x − b), the first step's code before its threshold: (N, K, ⌈H/stride⌉, ⌈W/stride⌉), of either sign."""
        return self._analyse(self._seen(images) - self.offset)

    def global_code(self, code: Tensor) -> Tensor:
        """Of a code (N, K + G, h, w), the activity of the global units: (N, G). They stand at its first position."""
        return code[:, self.config.units :, 0, 0]

    def decode(self, code: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Code (N, K, h, w) to the image (N, C, H, W) in [0, 1].

        ``size`` = (H, W) cuts the border off; without it the image has the code's full extent (h·stride, w·stride).
        """
        return self.synthesise(code, size).clamp(0, 1)

    def synthesise(self, code: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """D z + b: what :meth:`decode` gives before it clips to [0, 1]."""
        image = self._synthesise(code) + self.offset
        image = image.contiguous()  # a classifier's speed is not to depend on how the purifier's weights are laid out
        return image if size is None else image[..., : size[0], : size[1]]

    def forward(self, images: Tensor) -> Tensor:
        """Purify: images (N, C, H, W) in [0, 1] to the same shape and range."""
        return self.decode(self.encode(images), size=(images.shape[-2], images.shape[-1]))

    def relaxed(self, images: Tensor) -> Tensor:
        """The purifier without its final clip: a differentiable stand-in whose gradient does not vanish at 0 and 1."""
        return self.synthesise(self.encode(images), size=(images.shape[-2], images.shape[-1]))

    def tied_analysis_norm(self, size: tuple[int, int], iterations: int = 50) -> float:
        """Largest eigenvalue of Dᵀ D for images of ``size``, by power iteration: ISTA converges for η below 2 / this."""
        with torch.no_grad():
            h, w = (-(-s // self.config.stride) for s in size)
            generator = torch.Generator(device=self.atoms.device).manual_seed(0)
            z = torch.empty(1, self.config.units, h, w).to(self.atoms).normal_(generator=generator)
            value = 0.0
            for _ in range(iterations):
                z = z / z.norm()
                z = F.conv2d(self._synthesise(z), self.dictionary, None, self.config.stride, self.overlap)
                value = float(z.norm())
        return value

    def _first_step_size(self) -> float:
        """η of a tied encoder to begin with: 1, and for unrolled steps 1 / ‖Dᵀ D‖, without which they diverge."""
        side = 8 * self.config.stride
        return 1.0 if self.config.steps == 1 else 1 / self.tied_analysis_norm((side, side))

    def encoder_parameters(self) -> list[nn.Parameter]:
        """What decides the code, and not only what it is decoded to: all but the atoms (of a tied encoder, and of several steps,
        each of which encodes what the last one did not rebuild, these too)."""
        every = self.config.encoder == "tied" or self.config.steps > 1
        return [parameter for name, parameter in self.named_parameters() if every or name.split(".")[-1] != "atoms"]

    def unit_rows(self) -> list[tuple[str, Tensor]]:
        """Name and parameter of everything whose first axis is the unit: atoms, thresholds, last layer of the encoder."""
        mine: list[tuple[str, Tensor]] = [("atoms", self.atoms), ("raw_threshold", self.raw_threshold)]
        if self.config.adaptive:
            mine += [("raw_threshold_slope", self.raw_threshold_slope)]
        if self.config.shortcut:
            mine += [("shortcut.weight", self.shortcut.weight)]
        if self.config.encoder != "tied":
            mine += [("analysis.weight", self.analysis.weight)]
            mine += [("analysis.bias", self.analysis.bias)] if self.analysis.bias is not None else []
        return mine

    @torch.no_grad()
    def revive(self, units: Tensor, images: Tensor, generator: torch.Generator) -> None:
        """Give dead units a new start: their atoms become patches that are rebuilt badly now (Bricken et al. 2023).

        Args:
            units: indices (n,) of the units.
            images: (N, C, H, W) in [0, 1], the source of the patches.
            generator: chooses among the worst rebuilt patches, and draws the encoder's rows.
        """
        side = self.config.atom
        rest = F.pad(images - self(images), (0, max(0, side - images.shape[-1]), 0, max(0, side - images.shape[-2])))
        patches = F.unfold(rest, side, stride=self.config.stride)  # (N, C·a·a, positions)
        patches = patches.transpose(1, 2).flatten(0, 1)  # (N · positions, C·a·a)
        energy = patches.square().sum(1)
        chosen = patches[torch.multinomial(energy + 1e-12, len(units), replacement=True, generator=generator)]
        self.atoms[units] = F.normalize(chosen + 1e-6, dim=1).view(-1, *self.atoms.shape[1:])
        self.raw_threshold[units] = _inverse_softplus(0.05)
        if self.config.adaptive:
            self.raw_threshold_slope[units] = _inverse_softplus(_FIRST_SLOPE)
        if self.config.encoder == "linear":
            self.analysis.weight[units] = _FIRST_GAIN * self.atoms[units]
        elif self.config.shortcut:
            self.shortcut.weight[units] = _FIRST_GAIN * self.atoms[units]
            self.analysis.weight[units] = 0.0
        elif self.config.encoder != "tied":
            spread = 0.5 * self.analysis.weight.std()
            self.analysis.weight[units] = spread * torch.randn(self.analysis.weight[units].shape, generator=generator)
        if self.config.encoder != "tied" and self.analysis.bias is not None:
            self.analysis.bias[units] = 0.0

    @torch.no_grad()
    def statistics(self, images: Tensor, batch_size: int | None = None) -> CodeStatistics:
        """L0, density, explained variance and dead-unit share over ``images`` (N, C, H, W), all or ``batch_size`` at once."""
        check_images(images, self.config.channels)
        mean, wrong, spread, count = images.mean(0, keepdim=True), 0.0, 0.0, 0
        fired = torch.zeros(self.config.units + self.config.global_units, dtype=torch.bool, device=images.device)
        for part in torch.split(images, batch_size or len(images)):
            code = self.encode(part)
            active = code > 0
            count += int(active.sum())
            fired |= active.any(dim=3).any(dim=2).any(dim=0)
            wrong += (part - self.decode(code, size=(part.shape[-2], part.shape[-1]))).square().sum().item()
            spread += (part - mean).square().sum().item()
        l0 = count / len(images)
        return CodeStatistics(
            l0=l0,
            density=l0 / (self.config.units * code[0, 0].numel() + self.config.global_units),
            explained_variance=1 - wrong / max(spread, 1e-12),
            dead_units=1 - fired.float().mean().item(),
        )

    def extra_repr(self) -> str:
        """The configuration, as ``print(purifier)`` shows it; a ``low_pass`` of 1 is left out, since digests of models are made
        of this, and runs older than it are to go on."""
        shown = dataclasses.asdict(self.config)
        if self.config.low_pass == 1:
            del shown["low_pass"]
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())

    def _seen(self, images: Tensor) -> Tensor:
        """What the encoder is shown of the images: coarse enough, and padded to a multiple of the stride."""
        images = low_pass(images, self.config.low_pass)
        height, width = images.shape[-2:]
        below, right = -height % self.config.stride, -width % self.config.stride
        return F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images

    def _analyse(self, rest: Tensor) -> Tensor:
        """E: (N, C, H, W) to (N, K, h, w)."""
        if self.config.encoder == "tied":
            return self.log_step_size.exp() * F.conv2d(rest, self.dictionary, None, self.config.stride, self.overlap)
        if isinstance(self.stem, PyramidTrunk):
            features, coarse = self.stem(rest)
        else:
            features = coarse = self.stem(rest)
        out: Tensor = self.analysis(self.blocks(features))
        if self.config.shortcut:
            out = out + self.shortcut(rest)
        if self.config.global_units:
            summary = self.whole.analyse(coarse)[..., None, None].to(out.dtype)
            out = torch.cat([out, F.pad(summary, (0, out.shape[-1] - 1, 0, out.shape[-2] - 1))], 1)
        return out

    def _synthesise(self, code: Tensor) -> Tensor:
        """D: (N, K, h, w) to (N, C, H, W)."""
        image = F.conv_transpose2d(code[:, : self.config.units], self.dictionary, None, self.config.stride, self.overlap)
        if self.config.global_units:
            image = image + self.whole.synthesise(self.global_code(code), (image.shape[-2], image.shape[-1]))
        return image


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))
