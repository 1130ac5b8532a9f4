"""What both quantization techniques share: which layers, how they are prepared and delivered, what is checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ...errors import ConfigError, NoOpError
from ..run import Run
from ..technique import Check, Record, State, Technique, Traits
from ..weight import Weight
from ._weights import off_here
from .activations import ActivationQuantizer
from .fold import factor_of, fold, fold_scale, foldable_pairs, make_room
from .grid import grid_of, snap_, weight_range
from .modules import Quantized, can_be_quantized, quantized

_FLOAT = 32  # bits of a weight that is on no grid


@dataclass(frozen=True, kw_only=True)
class Quantization(Technique):
    """Settings and steps of the two techniques; what is done with weights while the phase runs is theirs."""

    weight_bits: Literal[8, 4, 2] = 8
    granularity: Literal["tensor", "channel"] | int = "channel"
    """One step size for each ``tensor``, output ``channel`` (row), or group of that many input features."""
    symmetric_weights: bool = True
    """Signed levels around zero; False: unsigned ones with a zero point of their own."""
    activations: str = "none"
    symmetric_inputs: bool = False
    """The same for the layers' inputs."""
    edge_bits: Literal[8, 4, 2, 32] = 8
    """Bits of the model's first and last layer, which stand coarse grids badly; 32 = they stay float."""

    changes_model: ClassVar[bool] = True
    delivers: ClassVar[tuple[str, ...]] = ("scale", "zero_point")

    def __post_init__(self) -> None:
        """raises: ValueError naming the setting that is out of range."""
        if isinstance(self.granularity, int) and self.granularity < 2:
            raise ValueError(f"granularity={self.granularity}: want a group of at least 2 input features")

    # ── which layers

    def selected(self, model: nn.Module) -> dict[str, int]:
        """Layer name → bits, of the layers whose weight ``match`` selects, in the model's order.

        raises: ConfigError for a matching parameter that is no weight of a layer that can be quantized.
        """
        parameters = dict(model.named_parameters())
        wanted = {id(parameters[name]): name for name in Technique.matched(self, model)}
        layers = {n: m for n, m in model.named_modules() if can_be_quantized(m)}
        found = {id(m.weight) for m in layers.values()}
        strange = [name for key, name in wanted.items() if key not in found]
        if strange:
            raise ConfigError(
                f"quantization: {', '.join(strange[:5])}{' …' if len(strange) > 5 else ''} can not be quantized; "
                "want weights of Linear, Conv1d, Conv2d or Embedding layers; leave the others out, such as with "
                f"match: [weights, '!{strange[0]}']"
            )
        edges = {id(m.weight) for m in (list(layers.values())[:1] + list(layers.values())[-1:])}
        bits = {n: self.edge_bits if id(m.weight) in edges else self.weight_bits for n, m in layers.items()}
        return {n: bits[n] for n, m in layers.items() if id(m.weight) in wanted and bits[n] != _FLOAT}

    def traits(self) -> Traits:
        """See `Traits`."""
        return Traits(writes="working", gives="grid")

    def matched(self, model: nn.Module) -> list[str]:
        """Names of the parameters that will be on a grid."""
        weights = {id(model.get_submodule(name).weight) for name in self.selected(model)}
        return [name for name, parameter in model.named_parameters() if id(parameter) in weights]

    # ── the model

    def prepare(self, model: nn.Module) -> None:
        """Let the layers be quantized ones; where a batch normalisation follows one, it says so."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        selected = self.selected(model)
        group = self.granularity if isinstance(self.granularity, int) else 0
        for name, bits in selected.items():
            layer = model.get_submodule(name)
            assert isinstance(layer.weight, Tensor)
            quantized(
                layer,
                weight_name=names[id(layer.weight)],
                weight_bits=bits,
                group_size=group,
                weight_symmetric=self.symmetric_weights,
                input_quantizer=self._input_quantizer(layer),
            )
        for name, norm in foldable_pairs(model):
            if name in selected:
                vars(model.get_submodule(norm))["follows"] = name

    def _input_quantizer(self, layer: nn.Module) -> ActivationQuantizer | None:
        if self.activations == "none":
            return None
        quantizer = ActivationQuantizer(
            symmetric=self.symmetric_inputs,
            dynamic=self.activations == "dynamic",
            row_dims={nn.Conv2d: 3, nn.Conv1d: 2}.get(_base(layer), 1),
            with_histogram=self.activations in ("percentile", "mse"),
            learned=self.activations == "learned",
        )
        assert isinstance(layer.weight, Tensor)
        return quantizer.to(layer.weight.device)

    def rebuild(self, model: nn.Module, record: Record) -> None:
        """Room for folded biases and for the delivered grids; quantizers as they are after the phase."""
        for layer, norm in record["folded"]:
            make_room(model, layer, norm)
        for name, shape in record["layers"].items():
            layer = model.get_submodule(name)
            assert isinstance(layer, Quantized)
            scale = torch.ones(shape, device=layer.weight.device)
            layer.deliver(scale, None if layer.weight_symmetric else torch.zeros_like(scale))
            if layer.input_quantizer is not None:
                layer.input_quantizer.settle()

    def finalize(self, model: nn.Module, state: State) -> Record:
        """Write the grids into the layers, fold batch normalisations, settle the quantizers of inputs.

        returns: what `rebuild` needs, and the parameters whose grids later phases keep.
        raises:  NoOpError for layers that are still float, and for layers that nothing has flowed into.
        """
        layers = self.layers_of(model)
        scales, zero_points = state.get("scale", {}), state.get("zero_point", {})
        for layer in layers.values():
            if layer.weight_name in scales:
                layer.deliver(scales[layer.weight_name], zero_points.get(layer.weight_name))
            else:  # nobody trains it, so no projection has seen it
                deliver_range(layer, self.granularity)
        _refuse_float(layers)
        folded = fold_delivered(model, layers)
        for layer in layers.values():
            if layer.input_quantizer is not None:
                layer.input_quantizer.settle()
        return {
            "layers": {n: list(layer.weight_scale.shape) for n, layer in layers.items()},  # pyright: ignore[reportOptionalMemberAccess]
            "folded": [list(pair) for pair in folded],
            "grids": list(dict.fromkeys(layer.weight_name for layer in layers.values())),
        }

    def layers_of(self, model: nn.Module) -> dict[str, Quantized]:
        """The layers that this technique has prepared, by name."""
        found = {name: model.get_submodule(name) for name in self.selected(model)}
        return {name: layer for name, layer in found.items() if isinstance(layer, Quantized)}

    # ── the run

    def weights(self, run: Run) -> Iterator[tuple[Weight, int]]:
        """The weights held here that lie on a grid, with their bits."""
        bits = {layer.weight_name: layer.weight_bits for layer in _layers(run)}
        return ((w, bits[w.name]) for w in run.weights(self.match) if w.name in bits)

    def quantizers(self, run: Run) -> list[ActivationQuantizer]:
        """What rounds the inputs of those layers on this stage, in the model's order."""
        names = {weight.name for weight in run.weights(self.match)}
        layers = (layer for layer in _layers(run) if layer.weight_name in names)
        return [layer.input_quantizer for layer in layers if layer.input_quantizer is not None]

    def grid_checks(self, run: Run) -> list[Check]:
        """Bits a weight, where one that is not exactly on its grid counts as 32.

        Collective. On the grid means one of at most ``2 ** bits`` levels: the values are taken to the nearest and
        compared with what they were, on the parameters that the model computes with.
        """
        held = list(self.weights(run))
        weights = [weight for weight, _ in held]
        off = [off_here(run, w, self.granularity, bits, self.symmetric_weights) for w, bits in held]
        counts = [torch.tensor(w.local.numel()) for w in weights]
        count = max(float(run.total(weights, counts)), 1.0)
        bits = [n * b for n, (_, b) in zip(counts, held, strict=True)]
        more = [o * (_FLOAT - b) for o, (_, b) in zip(off, held, strict=True)]
        wanted = float(run.total(weights, bits)) / count
        found = wanted + float(run.total(weights, more)) / count
        return [Check(quantity="bits a weight", requested=wanted, achieved=found, at_least=False)]

    def input_checks(self, run: Run) -> list[Check]:
        """The share of weights whose layer's input has been seen and has a range. Collective."""
        if self.activations in ("none", "dynamic"):
            return []
        blind = {layer.weight_name for layer in _layers(run) if not _is_ready(layer)}
        weights = [weight for weight, _ in self.weights(run)]
        counts = [torch.tensor(w.local.numel()) for w in weights]
        seen = [n * (w.name not in blind) for n, w in zip(counts, weights, strict=True)]
        share = float(run.total(weights, seen)) / max(float(run.total(weights, counts)), 1.0)
        return [Check(quantity="share of weights with inputs seen", requested=1.0, achieved=share)]


def _is_ready(layer: Quantized) -> bool:
    quantizer = layer.input_quantizer
    return quantizer is None or quantizer.dynamic or int(quantizer.steps) > 0


def _layers(run: Run) -> list[Quantized]:
    return [module for module in run.modules.values() if isinstance(module, Quantized)]


def _base(layer: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in (nn.Conv2d, nn.Conv1d) if isinstance(layer, kind)), None)


def deliver_range(layer: Quantized, granularity: str | int) -> None:
    """Put a whole weight on the grid of its range."""
    weight = layer.weight.detach()
    scale, zero_point = grid_of(*weight_range(weight, granularity), layer.weight_bits, layer.weight_symmetric)
    layer.deliver(scale, None if layer.weight_symmetric else zero_point)
    snap_(weight, *layer.weight_grid(), layer.weight_bits)


def _refuse_float(layers: dict[str, Quantized]) -> None:
    off = [name for name, layer in layers.items() if layer.weights_off_grid()]
    if off:
        raise NoOpError(
            f"quantization: the weights of {', '.join(off)} are not on their grid; they stayed float"
        )
    quantizers = {name: layer.input_quantizer for name, layer in layers.items()}
    blind = [n for n, q in quantizers.items() if q is not None and not q.dynamic and not int(q.steps)]
    if blind:
        raise NoOpError(
            f"quantization: nothing has flowed into {', '.join(blind)}, so its inputs have no grid; is its forward "
            "ever called? Leave it out with a leading '!' in match, or set activations to none"
        )


def fold_delivered(model: nn.Module, layers: dict[str, Quantized]) -> list[tuple[str, str]]:
    """Fold batch normalisations into layers whose grid is delivered: the levels stay, the step sizes change.

    A negative factor turns levels around. Of the four levels -2…1 one has no opposite: there the normalisation stays.
    returns: the (layer, normalisation) pairs that were folded.
    """
    folded = []
    for name, norm_name in foldable_pairs(model):
        norm, layer = model.get_submodule(norm_name), layers.get(name)
        if layer is None or layer.weight_scale is None:
            continue
        lopsided = layer.weight_bits == 2 and layer.weight_symmetric
        if lopsided and bool((factor_of(norm)[0] < 0).any()):  # pyright: ignore[reportArgumentType]
            continue
        factor = fold(model, name, norm_name)
        scale, zero_point = fold_scale(layer.weight_scale, factor), layer.weight_zero_point
        if zero_point is not None:
            turned = (factor < 0).view(-1, *[1] * (zero_point.ndim - 1))
            zero_point = torch.where(turned, 2**layer.weight_bits - 1 - zero_point, zero_point)
        layer.deliver(scale, zero_point)
        with torch.no_grad():
            snap_(layer.weight, *layer.weight_grid(), layer.weight_bits)
        folded.append((name, norm_name))
    return folded
