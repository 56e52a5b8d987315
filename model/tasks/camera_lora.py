"""Camera-motion LoRA (paper section 4.3.1, App. D.4.2): rank-16 adapters in the temporal attention, one per motion.

The paper trains three (horizontal, zooming, static) on clips with that camera label. Here: adapters in peft's own
format (adapter_config.json, adapter_model.safetensors), any number at once, each with a scale, combined by adding up:

    W = W_0 + sum_k scale_k (alpha_k / r_k) B_k A_k

`LoraAdapters` keeps them beside the weights (peft's layers), or merged into them, and goes back from merged to the
original weights bit for bit: it keeps those, since subtracting what was added would not give them back.

On the published network, all four projections of both attentions of the 16 temporal blocks have 3,319,808 parameters.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.weight_files import write_weights

TEMPORAL_ATTENTION = r".*temporal_transformer_blocks.*\.(to_q|to_k|to_v|to_out\.0)"
"""Module names that get an adapter (a full-match regular expression, as peft takes it)."""
RANK = 16
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."


class LoraError(ValueError):
    """An adapter cannot be used; the message names it and says why."""


@dataclass
class _Merged:
    """What merging replaced: peft's layer, and the weight its base layer had before."""

    layer: Any
    weight: Tensor


def add_lora(
    unet: nn.Module, *, name: str = "camera", rank: int = RANK, alpha: float | None = None
) -> list[nn.Parameter]:
    """Inject a fresh adapter for training, in place: everything else is frozen, and B = 0, so nothing changes yet.

    Args:
        alpha: LoRA's alpha; default the rank, so that scale 1 means B A.

    Returns:
        the trainable parameters.

    Raises:
        LoraError: the network has no temporal attention, or an adapter of that name.
    """
    if name in _adapter_names(unet):
        raise LoraError(f"the network already has an adapter {name!r}")
    unet.requires_grad_(False)
    config = {"r": rank, "lora_alpha": rank if alpha is None else alpha, "target_modules": TEMPORAL_ATTENTION}
    _inject(unet, name, config)
    _set_active(unet, dict.fromkeys(_adapter_names(unet), 1.0))
    trainable = [p for key, p in unet.named_parameters() if f".{name}." in key]
    for parameter in trainable:
        parameter.requires_grad_(True)
    return trainable


def save_lora(unet: nn.Module, directory: str | Path, *, name: str = "camera") -> None:
    """Write an adapter in peft's format.

    Raises:
        LoraError: the network has no adapter of that name.
        CheckpointError: no space, or no permission.
    """
    if name not in _adapter_names(unet):
        raise LoraError(f"no adapter {name!r} on this network; it has {sorted(_adapter_names(unet)) or 'none'}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {}
    for key, layer in _lora_layers(unet).items():
        if name in layer.lora_A:
            state[f"{_PREFIX}{key}.lora_A.weight"] = layer.lora_A[name].weight.detach().contiguous().cpu()
            state[f"{_PREFIX}{key}.lora_B.weight"] = layer.lora_B[name].weight.detach().contiguous().cpu()
            rank, alpha = layer.r[name], layer.lora_alpha[name]
    write_weights(state, directory / WEIGHTS_FILE)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": TEMPORAL_ATTENTION,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


class LoraAdapters:
    """The adapters on one network, for sampling.

    loras = LoraAdapters(model.unet)
    loras.load("zoom-lora", name="zoom"); loras.load("pan-lora", name="pan", scale=0.5)
    loras.merge()      # no cost per step; the network is plain again, also for saving
    loras.unmerge()    # bit for bit the weights from before
    loras.unload("pan")
    """

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet
        self.scales: dict[str, float] = {}
        self._merged: dict[str, _Merged] = {}

    def load(self, directory: str | Path, *, name: str | None = None, scale: float = 1.0) -> str:
        """Put an adapter on the network; returns its name (default: the directory's).

        Raises:
            LoraError: files missing, keys that do not fit the network, a name that is taken, or merged weights.
        """
        self._refuse_merged("load an adapter")
        directory = Path(directory)
        name = (name or directory.resolve().name).replace(".", "_")  # peft keeps adapters in ModuleDicts: no dots
        if name in _adapter_names(self.unet):
            raise LoraError(f"an adapter {name!r} is already loaded; unload it or give another name")
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            if not (directory / file).is_file():
                raise LoraError(
                    f"{directory / file} is missing; a LoRA directory holds {CONFIG_FILE} and {WEIGHTS_FILE}"
                )
        config = _read_config(directory / CONFIG_FILE)
        try:
            read = load_file(directory / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise LoraError(f"{directory / WEIGHTS_FILE}: not a readable safetensors file ({error})") from error
        state = {key.removeprefix(_PREFIX): value for key, value in read.items()}
        self._check_fits(state, config["r"], directory / WEIGHTS_FILE)
        wanted = {key.rsplit(".lora_", 1)[0] for key in state}
        trainable = {key for key, p in self.unet.named_parameters() if p.requires_grad}
        _inject(self.unet, name, config | {"target_modules": sorted(wanted)})
        for key, layer in _lora_layers(self.unet).items():
            if key in wanted:
                base = layer.base_layer.weight
                for part in ("lora_A", "lora_B"):
                    weight = state[f"{key}.{part}.weight"].to(base.device, base.dtype)
                    getattr(layer, part)[name].weight = nn.Parameter(weight, requires_grad=False)
        for key, parameter in self.unet.named_parameters():
            parameter.requires_grad_(key.replace(".base_layer.", ".") in trainable)
        self.set_scale(name, scale)
        return name

    def set_scale(self, name: str, scale: float) -> None:
        """How strongly an adapter acts: 0 not at all, 1 as trained, negative the other way.

        Raises:
            LoraError: not loaded here, or merged weights.
        """
        self._refuse_merged("change a scale")
        if name not in _adapter_names(self.unet):
            raise LoraError(f"no adapter {name!r}; loaded: {sorted(self.scales) or 'none'}")
        self.scales[name] = scale
        _set_active(self.unet, self.scales)

    def unload(self, name: str | None = None) -> None:
        """Take an adapter off, or all; the network computes exactly what it did before.

        Raises:
            LoraError: not loaded, or merged weights.
        """
        self._refuse_merged("unload an adapter")
        names = [name] if name is not None else list(self.scales)
        for each in names:
            if each not in self.scales:
                raise LoraError(f"no adapter {each!r}; loaded: {sorted(self.scales) or 'none'}")
            del self.scales[each]
        for key, layer in _lora_layers(self.unet).items():
            for each in names:
                if each in layer.lora_A:
                    layer.delete_adapter(each)
            if not layer.lora_A:
                _replace(self.unet, key, layer.base_layer)
        config = getattr(self.unet, "peft_config", {})
        for each in names:
            config.pop(each, None)
        if not config and hasattr(self.unet, "peft_config"):
            del self.unet.peft_config
        if self.scales:
            _set_active(self.unet, self.scales)

    def merge(self) -> None:
        """Add the adapters into the weights; the network's modules are plain again until `unmerge`."""
        self._refuse_merged("merge")
        for key, layer in _lora_layers(self.unet).items():
            base = layer.base_layer
            original = base.weight.detach().clone()
            total = original.to(torch.float32)
            for name in self.scales:
                if name in layer.lora_A:
                    a, b = layer.lora_A[name].weight.float(), layer.lora_B[name].weight.float()
                    total = total + layer.scaling[name] * (b @ a)
            with torch.no_grad():
                base.weight.copy_(total)
            self._merged[key] = _Merged(layer, original)
            _replace(self.unet, key, base)

    def unmerge(self) -> None:
        """Back to the weights from before `merge`, bit for bit, with the adapters beside them again."""
        for key, merged in self._merged.items():
            with torch.no_grad():
                merged.layer.base_layer.weight.copy_(merged.weight)
            merged.layer.to(merged.layer.base_layer.weight.device)  # the network may have moved since
            _replace(self.unet, key, merged.layer)
        self._merged.clear()

    @property
    def merged(self) -> bool:
        """Whether the adapters are in the weights."""
        return bool(self._merged)

    def _refuse_merged(self, action: str) -> None:
        if self._merged:
            raise LoraError(f"the adapters are merged into the weights: unmerge() before you {action}")

    def _check_fits(self, state: dict[str, Tensor], rank: int, path: Path) -> None:
        """Every adapter key must name a linear layer of the network, with its width and the rank, both halves there."""
        modules = dict(self.unet.named_modules())
        wrong = []
        for key, value in state.items():
            module_name, _, part = key.rpartition(".lora_")
            module = modules.get(module_name)
            linear: Any = getattr(module, "base_layer", module)
            if not isinstance(linear, nn.Linear):
                wrong.append(f"{key}: no such layer")
            elif part not in ("A.weight", "B.weight"):
                wrong.append(f"{key}: not a LoRA weight")
            elif f"{module_name}.lora_{'B' if part[0] == 'A' else 'A'}.weight" not in state:
                wrong.append(f"{key}: its other half is missing")
            else:
                out, width = linear.weight.shape
                fits = (rank, width) if part[0] == "A" else (out, rank)
                if tuple(value.shape) != fits:
                    wrong.append(
                        f"{key}: {tuple(value.shape)} does not fit a layer of {(out, width)} at rank {rank}: {fits}"
                    )
        if wrong or not state:
            listed = "; ".join(wrong[:10]) or "the file is empty"
            raise LoraError(f"{path}: {len(wrong)} keys do not fit this network: {listed}")


def _read_config(path: Path) -> dict[str, Any]:
    """What decides an adapter's strength: its rank, alpha, and how the two become a factor."""
    try:
        config = json.loads(path.read_text())
        kind = config.get("peft_type")
    except (OSError, ValueError, AttributeError) as error:
        raise LoraError(f"{path}: not a JSON object ({error})") from error
    if kind != "LORA":
        raise LoraError(f"{path}: peft_type {kind!r}; LORA is needed")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise LoraError(f"{path}: r {rank!r} and lora_alpha {alpha!r}; a rank of at least 1 and a number are needed")
    for key in ("rank_pattern", "alpha_pattern", "use_dora"):
        if config.get(key):
            raise LoraError(f"{path}: {key} is not supported; one rank and one alpha for all layers are")
    return {"r": rank, "lora_alpha": alpha, "use_rslora": bool(config.get("use_rslora"))}


def _inject(unet: nn.Module, name: str, config: dict[str, Any]) -> None:
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from peft import LoraConfig, inject_adapter_in_model

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
            inject_adapter_in_model(LoraConfig(**config), unet, adapter_name=name)
    except ValueError as error:
        raise LoraError(f"adapter {name!r} cannot be put on this network: {error}") from error


def _lora_layers(unet: nn.Module) -> dict[str, Any]:
    return {key: m for key, m in unet.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}


def _adapter_names(unet: nn.Module) -> set[str]:
    return {name for layer in _lora_layers(unet).values() for name in layer.lora_A}


def _set_active(unet: nn.Module, scales: dict[str, float]) -> None:
    for layer in _lora_layers(unet).values():
        here = [name for name in scales if name in layer.lora_A]
        layer._active_adapter = here
        layer._disable_adapters = not here
        for name in here:
            layer.set_scale(name, scales[name])


def _replace(root: nn.Module, key: str, module: nn.Module) -> None:
    parent_name, _, child = key.rpartition(".")
    parent = root.get_submodule(parent_name)
    if isinstance(parent, nn.ModuleList | nn.Sequential):
        parent[int(child)] = module
    else:
        setattr(parent, child, module)
