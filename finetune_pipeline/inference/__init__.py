"""Generation and likelihood with a base model and LoRA adapters: the same code in evaluation, training and serving.

Bottom up: chat_template (messages to text); model_family (what an architecture has to provide); kv_cache, batch_layout,
attention, batched_forward (one forward pass); request, sampling, decoder (batched generation); base_weights, loading,
adapters, fused_lora, weight_layout and cache_budget (the model in memory); generate, label_choice, stopping (answers to
rows); likelihood (losses).
"""
