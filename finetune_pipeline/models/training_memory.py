"""The memory of a training by parts, from the sizes of a model (architecture.py) and of its largest pass. Pure.

    memory = training_memory(architecture, Train(method="qlora"), Setting("cuda", bf16=True), load)
    memory.total_mb, memory.activations_mb

Bytes per parameter (Rajbhandari et al., ZeRO, arXiv:1910.02054, section 3.1):

    weights      frozen: 2 in bf16, 4 in fp32, 0.516 in NF4 with double quantization (4 bits, and 8 + 32/256 bits for
                 each block of 64: Dettmers et al., QLoRA, arXiv:2305.14314, section 3); trained: 4, and 2 for the copy
                 that autocast multiplies with, from its first use to the end of the step
    gradients    trained: 4, or none before the first backward pass
    optimizer    trained: 8 for Adam's two moments, 2 with `adamw_8bit`

Activations are what the operations of transformers and peft keep for the backward pass, per token and layer, in values
of the compute type unless noted: the normalized values of each plain norm in the type of the weights, of others the
input in fp32; the input of each group of projections; queries, keys,
values and output of attention; in a gated MLP four times its inner size. With gradient checkpointing a layer keeps its
input, and one layer at a time the rest. For a Llama block in bf16 this is 24 to 28 bytes per hidden value, close to the
34 of Korthikanti et al. (arXiv:2205.05198, equation 1), which has dropout masks but no norms in fp32.

Logits: value, fp32 copy, logarithm and gradient of the tokens of one chunk (train/forward.py).

Where several devices share the weights, all of them, gradients and moments are divided, and the layer that computes is
gathered (torch's FSDP2, which gathers one layer ahead); else every device holds everything.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Train
from finetune_pipeline.models.architecture import Architecture, Layer, Matrix
from finetune_pipeline.models.training_load import Load

MB = 1e6
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
LOGITS_BYTES = 128 * 1024**2  # of a chunk of fp32 logits; with logarithms and gradients up to five times as much
# On a CPU in bf16, the weights of attention to up to this many keys are kept for the backward pass; others are computed
# again (train/attention_parts.py).
KEPT_KEYS = 1024
# torch, transformers, peft and their threads (CPU); CUDA context, cuBLAS and the kernels of torch (GPU)
LIBRARIES_MB = {"cpu": 760.0, "cuda": 900.0}
QUANTIZED_MB = {"cpu": 220.0, "cuda": 100.0}  # bitsandbytes, and what loading in 4 bits leaves behind
# Share of the memory of a step that the allocator holds beyond its tensors: free blocks that nothing fits into
# (measured by benchmarks/memory.py: glibc as backends/local.py sets it up; a GPU: an assumption)
UNUSED = {"cpu": 0.1, "cuda": 0.08}


@dataclass(frozen=True)
class Setting(JobData):
    """`device`: "cpu" or "cuda"; `forward`: "packed" or "padded" rows; `checkpointing`: of gradients; `devices`: that
    hold a part of the weights each; `parts`: micro-batches of a step."""

    device: str = "cpu"
    bf16: bool = True
    forward: str = "packed"
    checkpointing: bool = False
    devices: int = 1
    parts: int = 1


@dataclass(frozen=True)
class Memory(JobData):
    """In MB (10^6 bytes), of one device, at the moment of a step with the largest sum."""

    weights_mb: float
    gradients_mb: float
    optimizer_mb: float
    activations_mb: float
    logits_mb: float
    libraries_mb: float

    @property
    def total_mb(self) -> float:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """By name, in the order of the reports."""
        return {
            "weights": self.weights_mb,
            "gradients": self.gradients_mb,
            "optimizer": self.optimizer_mb,
            "activations": self.activations_mb,
            "logits": self.logits_mb,
            "libraries": self.libraries_mb,
        }


def training_memory(architecture: Architecture, rules: Train, setting: Setting, load: Load) -> Memory:
    """The peak of a step whose largest pass is `load`: at the end of a forward pass, or of a backward pass."""
    trained = architecture.trained_parameters(rules)
    share = setting.devices
    weights = _weights(architecture, rules, setting) / share
    copies = _copies(architecture, rules, setting)
    moments = trained * (2 if rules.optimizer == "adamw_8bit" else 8) / share
    gradients = trained * 4 / share
    activations = _activations(architecture, rules, setting, load)
    logits = _logits(architecture, rules, setting, load)
    before = gradients if setting.parts > 1 else 0.0
    # at the end of the forward pass, and at the end of the backward pass, when activations are gone
    during = before + copies + activations + logits
    after = gradients + _transients(architecture, rules)
    if during < after:
        before, copies, activations, logits = gradients, _transients(architecture, rules), 0.0, 0.0
    libraries = (LIBRARIES_MB[setting.device] + (rules.method == "qlora") * QUANTIZED_MB[setting.device]) * MB
    libraries += UNUSED[setting.device] * (copies + before + activations + logits)
    parts = (weights + copies, before, moments, activations, logits, libraries)
    return Memory(*(value / MB for value in parts))


def _weights(architecture: Architecture, rules: Train, setting: Setting) -> float:
    """Bytes of all weights, without the copies of autocast."""
    everything, wide = architecture.parameters, 2 if setting.bf16 else 4
    if rules.method == "full":
        kept = architecture.vocabulary * architecture.hidden if rules.keep_general.weight and not rules.layers else 0
        return 4.0 * (everything + kept)  # replay.py keeps the base model's output layer
    adapter = 4 * architecture.adapter_parameters(rules)
    if rules.method == "lora":
        return wide * everything + adapter
    quantized = sum(
        matrix.parameters for layer in architecture.layers for matrix in layer.matrices if matrix.count == 1
    )
    return NF4_BYTES * quantized + wide * (everything - quantized) + adapter


def _copies(architecture: Architecture, rules: Train, setting: Setting) -> float:
    """Bytes of the copies in bf16 of trained weights, and where devices share the weights, of the two layers that are
    gathered, of the embedding and the output layer."""
    copied, outside = 2 if setting.bf16 else 0, architecture.embedding + architecture.head
    if setting.devices > 1:
        wide = 4 + copied if rules.method == "full" else 2 if setting.bf16 else 4
        return wide * (2 * max(layer.parameters for layer in architecture.layers) + outside)
    if rules.method != "full":
        return copied * architecture.adapter_parameters(rules)
    matrices = sum(m.parameters for layer in architecture.tuned(rules) for m in layer.matrices)
    return copied * (matrices + (0 if rules.layers else outside))


def _transients(architecture: Architecture, rules: Train) -> float:
    """Bytes of the largest gradients while they are added up: those of the embedding, in two types."""
    return 8.0 * architecture.embedding if rules.method == "full" and rules.layers is None else 0.0


def _activations(architecture: Architecture, rules: Train, setting: Setting, load: Load) -> float:
    layers = architecture.tuned(rules)
    each = [_layer(architecture, layer, rules, setting, load) for layer in layers]
    residual = load.tokens * architecture.hidden * _residual(rules, setting)
    last = 2 * residual + 4 * load.tokens * architecture.hidden  # the last norm, and the positions' cosines and sines
    if setting.checkpointing:
        return residual * len(layers) + max(each) + last
    return sum(each) + last


def _residual(rules: Train, setting: Setting) -> int:
    """Bytes of a value between the layers: the type of the weights."""
    return 4 if rules.method == "full" or not setting.bf16 else 2


def _layer(architecture: Architecture, layer: Layer, rules: Train, setting: Setting, load: Load) -> float:
    """Bytes that a layer keeps for the backward pass."""
    wide = 2 if setting.bf16 else 4
    full, tokens = rules.method == "full", load.tokens
    norms = _residual(rules, setting) * layer.plain_norms
    norms += 4 * (layer.norms - layer.plain_norms) * (2 if full else 1)  # full weights: the normalized values, too
    projections = wide * sum(_inputs(architecture, layer.matrices, rules, setting))
    adapters = _adapters(layer.matrices, rules, wide)
    mlp = wide * sum(_mlp(architecture, layer.matrices))
    return tokens * (norms + projections + adapters + mlp) + _attention(architecture, setting, load)


def _inputs(architecture: Architecture, matrices: tuple[Matrix, ...], rules: Train, setting: Setting) -> list[float]:
    """Values per token that the matrices keep of their inputs. Those that share an input share it in memory, unless
    each of them casts it for itself."""
    every = [matrix.active * matrix.inputs for matrix in matrices]
    if _casts(rules, setting):
        return [float(value) for value in every]
    hidden = architecture.hidden
    own = [value for value in every if value != hidden]
    return [float(value) for value in (*own, 2 * hidden, hidden if architecture.queries == hidden else 0)]


def _casts(rules: Train, setting: Setting) -> bool:
    """Whether each projection casts its input: to bf16 from fp32 (full weights), or as peft's own layers do, on a CPU
    for QLoRA, and with dropout and DoRA."""
    if rules.method == "full":
        return setting.bf16
    own = rules.lora.dropout > 0 or rules.lora.use_dora
    return own or (rules.method == "qlora" and setting.device == "cpu")


def _adapters(matrices: tuple[Matrix, ...], rules: Train, wide: int) -> float:
    """Bytes per token that the adapters keep beside their inputs: the products of low rank, dropout's masks."""
    if rules.method == "full":
        return 0.0
    active = sum(matrix.active for matrix in matrices)
    dropout = sum(m.active * m.inputs for m in matrices) * 4 if rules.lora.dropout else 0
    dora = wide * sum(m.active * m.outputs for m in matrices) * 2 if rules.lora.use_dora else 0
    return active * rules.lora.r * wide + dropout + dora


def _mlp(architecture: Architecture, matrices: tuple[Matrix, ...]) -> list[float]:
    """Values per token between the matrices of the MLPs: what goes into the activation function and comes out of it,
    for a gated MLP the gate's result and the other half as well. The product is the input of the last matrix."""
    kept = []
    for down in matrices:
        if down.outputs != architecture.hidden or down.name.startswith("self_attn") or "attention" in down.name:
            continue
        parent = down.name.rpartition(".")[0]
        others = [m for m in matrices if m.name.rpartition(".")[0] == parent and m is not down]
        inner = sum(matrix.outputs * matrix.active for matrix in others)
        gated = inner >= 2 * down.inputs * down.active
        kept.append(float(inner + (down.inputs * down.active if gated else 0)))
    return kept


def _attention(architecture: Architecture, setting: Setting, load: Load) -> float:
    """Bytes that attention keeps: queries, keys, values, output, and a logarithm per head; without a fused kernel the
    scores of all heads twice, in fp32; on a CPU in bf16 the weights of all heads."""
    queries, keys, tokens = architecture.queries, architecture.keys, load.tokens
    wide = 2 if setting.bf16 else 4
    if setting.device == "cuda" and setting.forward == "packed":
        return tokens * (wide * (2 * queries + 2 * keys) + 4 * architecture.heads)
    scores = 8 * architecture.heads * 1.5 * load.pairs if architecture.scores else 0.0  # more than the lower triangle
    grouped = queries if architecture.scores else keys
    if setting.forward == "packed" and setting.bf16 and not architecture.scores:  # train/attention_parts.py
        weights = architecture.heads * min(1.2 * load.pairs, KEPT_KEYS * tokens)
        return tokens * (wide * (2 * queries + 2 * keys) + 8 * architecture.heads) + wide * weights
    if setting.forward == "packed":  # on a CPU in fp32; with scores, the keys of each segment with those above it
        kept = load.keys if architecture.scores else tokens
        return 4 * (tokens * (2 * queries + architecture.heads) + 2 * kept * grouped) + scores
    # with a mask, transformers repeats grouped keys for each head
    return tokens * (wide * 4 * queries + 4 * architecture.heads) + scores


def _logits(architecture: Architecture, rules: Train, setting: Setting, load: Load) -> float:
    """Bytes of the logits: of the task's tokens while their gradient is computed, or of the general texts' (two
    distributions and what their divergence keeps) beside the logarithms that the task's tokens keep."""
    chunk = max(1, LOGITS_BYTES // (4 * architecture.vocabulary))
    learned, wide = load.learned - load.general, 2 if setting.bf16 else 0
    task = min(chunk, learned) * (12 + wide)
    kept = 4 * learned if learned <= chunk else 0  # of more than one chunk, none is kept
    general = min(chunk, load.general) * (20 + wide) + kept if load.general else 0
    return max(task, general) * architecture.vocabulary
