"""Several LoRA adapters on one base model: put on, taken off, switched between; the base's weights are never touched.

    adapters = Adapters(model)
    adapters.load("9be0…", folder)          # named by content hash
    adapters.activate("9be0…")              # microseconds; None: the base alone
    adapters.unload("9be0…")

LoRA layers are injected into `model` itself and stay unmerged, so `model` may be called directly (the decoder does).

What it is not: thread-safe. The engine's thread owns the model and this with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_pipeline.errors import ServingError, StorageError
from finetune_pipeline.inference.fused_lora import use_fused_lora
from finetune_pipeline.inference.weight_layout import column_major

_CURE = "serve it on the base model it was trained on, or train it again"


class Adapters:
    """See the module's docstring. `model`: a transformers causal LM in eval mode, in fp32."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._peft: Any = None  # peft's wrapper of the model, made with the first adapter
        self._layers: list[Any] = []
        self._active: str | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._peft.peft_config) if self._peft is not None else frozenset()

    def load(self, name: str, folder: Path) -> None:
        """Put the adapter in `folder` (peft's format, safetensors) on the model; nothing to do when it is there.

        StorageError unless every weight of it found its place and none was left over: an adapter that fits only in
        part would answer, and be another model than the one that was evaluated. Nothing of it stays then.
        """
        from peft import PeftConfig, PeftModel

        if name in self.names:
            return
        if not (folder / "adapter_model.safetensors").exists():
            raise StorageError(f"{folder} holds no adapter_model.safetensors", "train the adapter again")
        try:
            config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=name)
            result = self._peft.load_adapter(str(folder), name, is_trainable=False)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            self._forget(name)
            raise StorageError(f"the adapter in {folder} does not fit its base model: {error}", _CURE) from error
        astray = [*result.missing_keys, *result.unexpected_keys]
        if astray:
            self._forget(name)
            raise StorageError(f"the adapter in {folder} fits its base model only in part: {astray[0]} …", _CURE)
        use_fused_lora(self._model)
        column_major(self._model)  # as in the evaluation; leaves what lies so already where it is
        self._settle()

    def unload(self, name: str) -> None:
        """Take the adapter off; nothing happens when it is not there."""
        if name in self.names:
            self.activate(None)  # peft makes another one active, loudly, when the active one goes
            self._forget(name)

    def activate(self, name: str | None) -> None:
        """Let the model compute with this adapter, or with none.

        peft's own `set_adapter` walks all modules and parameters to say what is trainable, which costs more than a step
        of the decoder (150 ms for 30 layers); what the layers compute with is this list of theirs alone.
        """
        if name == self._active:
            return
        wanted = [] if name is None else [name]
        for layer in self._layers:
            layer._active_adapter = wanted
        if self._layers and self._layers[0].active_adapters != wanted:
            raise ServingError("this release of peft switches adapters in another way", "install the locked version")
        self._active = name

    def _forget(self, name: str) -> None:
        if name in self.names:
            self._peft.delete_adapter(name)
        self._settle()

    def _settle(self) -> None:
        """Find the layers that adapters sit on now; in some of them peft has made one active by itself."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._model.eval()
        self._layers = [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        active, self._active = self._active, ""
        self.activate(active if active in self.names else None)
