"""Several LoRA adapters on one base model: load, activate, unload. The weights of the base are never changed.

    adapters = Adapters(model)
    adapters.load("9be0…", folder)          # named by content hash
    adapters.activate("9be0…")              # microseconds; None: the base model alone
    adapters.unload("9be0…")

LoRA layers are injected into `model` and not merged, so `model` can be called directly, as the decoder does. Not
thread-safe: call it from the thread that runs the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_pipeline.errors import ServingError, StorageError
from finetune_pipeline.inference.adapter_files import adapter_config, adapter_errors, load_weights
from finetune_pipeline.inference.fused_lora import use_fused_lora
from finetune_pipeline.inference.weight_layout import column_major


class Adapters:
    """`model`: a transformers causal LM in eval mode."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._peft: Any = None  # peft's wrapper of the model, created with the first adapter
        self._lora_layers: list[Any] = []
        self._active: str | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._peft.peft_config) if self._peft is not None else frozenset()

    def load(self, name: str, folder: Path) -> None:
        """Load the adapter in `folder` (peft's format, safetensors), unless it is loaded already.

        StorageError when it does not fit the base model completely; it is then removed again.
        """
        from peft import PeftModel

        if name in self.names:
            return
        config = adapter_config(folder)
        try:
            with adapter_errors(folder):
                if self._peft is None:
                    self._peft = PeftModel(self._model, config, adapter_name=name, autocast_adapter_dtype=False)
                load_weights(self._peft, name, folder)
        except StorageError:
            self._forget(name)
            raise
        use_fused_lora(self._model)
        column_major(self._model)  # as in evaluation; does not copy weights that have this layout already
        self._find_layers()

    def unload(self, name: str) -> None:
        """Remove the adapter if it is loaded."""
        if name in self.names:
            self.activate(None)  # peft activates another one, with a warning, when the active one is deleted
            self._forget(name)

    def activate(self, name: str | None) -> None:
        """Compute with this adapter, or with the base model alone.

        peft's `set_adapter` visits all modules and parameters to set what is trainable, which takes longer than a step
        of the decoder (150 ms for 30 layers); only the attribute set here determines what the layers compute.
        """
        if name == self._active:
            return
        active = [] if name is None else [name]
        for layer in self._lora_layers:
            layer._active_adapter = active
        if self._lora_layers and self._lora_layers[0].active_adapters != active:
            raise ServingError("this version of peft activates adapters in another way", "install the locked version")
        self._active = name

    def _forget(self, name: str) -> None:
        if name in self.names:
            self._peft.delete_adapter(name)
        self._find_layers()

    def _find_layers(self) -> None:
        """Collect the LoRA layers, and activate the same adapter in all of them: peft activates one in new layers."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._model.eval()
        self._lora_layers = [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        previous, self._active = self._active, ""
        self.activate(previous if previous in self.names else None)
