"""The configs of well-known models, as published, are read without a problem or a warning.

They are shortened where a key has no meaning for any model: names of classes, dropout, initialization, versions.
"""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rushlight.errors import ConfigError
from rushlight.models import ARCHITECTURES, Heads, Rope

OLD = """"architectures": ["ForCausalLM"], "attention_dropout": 0.0, "initializer_range": 0.02,
    "torch_dtype": "bfloat16", "transformers_version": "4.45.1", "use_cache": true"""
LONG = [1.0 + i / 4 for i in range(48)]

PUBLISHED = {
    "TinyLlama-1.1B-Chat": f"""{{{OLD}, "model_type": "llama", "attention_bias": false, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632,
    "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 22, "num_key_value_heads": 4,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000.0,
    "tie_word_embeddings": false, "vocab_size": 32000}}""",
    "Llama-2-7b": f"""{{{OLD}, "_name_or_path": "meta-llama/Llama-2-7b-hf", "model_type": "llama", "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false,
    "vocab_size": 32000}}""",
    "SmolLM2-135M-Instruct": f"""{{{OLD}, "model_type": "llama", "attention_bias": false, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536, "is_llama_config": true,
    "max_position_embeddings": 8192, "mlp_bias": false, "num_attention_heads": 9, "num_hidden_layers": 30,
    "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false,
    "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true, "vocab_size": 49152,
    "transformers.js_config": {{"kv_cache_dtype": {{"q4f16": "float16", "fp16": "float16"}}}}}}""",
    "Llama-3.2-1B-Instruct": f"""{{{OLD}, "model_type": "llama", "attention_bias": false, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "num_attention_heads": 32,
    "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling":
    {{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3"}}, "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256}}""",
    "Falcon3-1B-Base": f"""{{{OLD}, "model_type": "llama", "activation": "swiglu", "attention_bias": false,
    "eos_token_id": 11, "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
    "max_position_embeddings": 4096, "mlp_bias": false, "num_attention_heads": 8, "num_hidden_layers": 18,
    "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000042,
    "tie_word_embeddings": false, "vocab_size": 131072}}""",
    "Qwen2.5-0.5B-Instruct": f"""{{{OLD}, "model_type": "qwen2", "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
    "max_window_layers": 21, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
    "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936}}""",
    "Qwen3-0.6B": f"""{{{OLD}, "model_type": "qwen3", "attention_bias": false, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
    "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936}}""",
    "Mistral-7B-v0.1": f"""{{{OLD}, "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000}}""",
    "Mistral-7B-Instruct-v0.3": f"""{{{OLD}, "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32768}}""",
    "Mistral-Nemo-Instruct-2407": f"""{{{OLD}, "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 14336,
    "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
    "vocab_size": 131072}}""",
    "SmolLM3-3B": f"""{{{OLD}, "model_type": "smollm3", "attention_bias": false, "bos_token_id": null,
    "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008,
    "layer_types": {json.dumps(["full_attention"] * 36)}, "max_position_embeddings": 65536, "max_window_layers": 28,
    "mlp_bias": false, "no_rope_layer_interval": 4, "no_rope_layers": {[1, 1, 1, 0] * 9}, "num_attention_heads": 16,
    "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004, "pretraining_tp": 2,
    "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 5000000.0, "sliding_window": null,
    "use_sliding_window": false, "vocab_size": 128256}}""",
    "OLMo-2-0425-1B": f"""{{{OLD}, "model_type": "olmo2", "attention_bias": false, "eos_token_id": 100257,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 4096,
    "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16, "pad_token_id": 100277,
    "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 500000, "tie_word_embeddings": false,
    "vocab_size": 100352}}""",
    "granite-3.3-2b-instruct": f"""{{{OLD}, "model_type": "granite", "attention_bias": false,
    "attention_multiplier": 0.015625, "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "logits_scaling": 8.0,
    "max_position_embeddings": 131072, "mlp_bias": false, "num_attention_heads": 32, "num_hidden_layers": 40,
    "num_key_value_heads": 8, "pad_token_id": 0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05,
    "rope_scaling": null, "rope_theta": 10000000.0, "tie_word_embeddings": true, "vocab_size": 49159}}""",
    "Phi-3-mini-4k-instruct": f"""{{{OLD}, "_name_or_path": "Phi-3-mini-4k-instruct", "model_type": "phi3",
    "attention_bias": false, "auto_map": {{"AutoConfig": "configuration_phi3.Phi3Config"}}, "bos_token_id": 1,
    "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
    "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
    "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false,
    "vocab_size": 32064}}""",
    "Phi-3.5-mini-instruct": f"""{{{OLD}, "model_type": "phi3", "attention_bias": false, "bos_token_id": 1,
    "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192,
    "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
    "rope_scaling": {{"long_factor": {LONG}, "short_factor": {LONG}, "type": "longrope"}}, "rope_theta": 10000.0,
    "sliding_window": 262144, "tie_word_embeddings": false, "vocab_size": 32064}}""",
    "Phi-4-mini-instruct": f"""{{{OLD}, "model_type": "phi3", "attention_bias": false, "bos_token_id": 199999,
    "embd_pdrop": 0.0, "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072,
    "interpolate_factor": 1, "intermediate_size": 8192, "lm_head_bias": false, "max_position_embeddings": 131072,
    "mlp_bias": false, "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096, "pad_token_id": 199999, "partial_rotary_factor": 0.75, "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05, "rope_scaling": {{"long_factor": {LONG}, "short_factor": {LONG}, "type": "longrope"}},
    "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": true, "vocab_size": 200064}}""",
    "stablelm-2-1_6b": f"""{{{OLD}, "model_type": "stablelm", "bos_token_id": 100257, "eos_token_id": 100257,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": 32,
    "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": false, "use_qkv_bias": true,
    "vocab_size": 100352}}""",
    "starcoder2-3b": f"""{{{OLD}, "model_type": "starcoder2", "activation_function": "gelu",
    "attention_softmax_in_fp32": true, "bos_token_id": 0, "embedding_dropout": 0.1, "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072, "intermediate_size": 12288, "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 16384, "mlp_type": "default", "norm_epsilon": 1e-05, "norm_type": "layer_norm",
    "num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2, "residual_dropout": 0.1,
    "rope_theta": 999999.4420358813, "scale_attention_softmax_in_fp32": true, "scale_attn_weights": true,
    "sliding_window": 4096, "use_bias": true, "vocab_size": 49152}}""",
    "gemma-2b": f"""{{{OLD}, "model_type": "gemma", "attention_bias": false, "bos_token_id": 2, "eos_token_id": 1,
    "head_dim": 256, "hidden_act": "gelu", "hidden_size": 2048, "intermediate_size": 16384,
    "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
    "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 10000.0, "vocab_size": 256000}}""",
    "gemma-2-2b": f"""{{{OLD}, "model_type": "gemma2", "attention_bias": false, "attn_logit_softcapping": 50.0,
    "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0,
    "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26,
    "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000}}""",
    "gemma-3-270m": f"""{{{OLD}, "_sliding_window_pattern": 6, "model_type": "gemma3_text", "attention_bias": false,
    "attn_logit_softcapping": null, "bos_token_id": 2, "eos_token_id": 1, "final_logit_softcapping": null,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "intermediate_size": 2048,
    "layer_types": {json.dumps((["sliding_attention"] * 5 + ["full_attention"]) * 3)},
    "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
    "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": false,
    "vocab_size": 262144}}""",
    "gemma-3-1b-it": f"""{{{OLD}, "model_type": "gemma3_text", "attention_bias": false, "attn_logit_softcapping": null,
    "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106], "final_logit_softcapping": null,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
    "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "vocab_size": 262144}}""",
    "gemma-3-4b-it": f"""{{{OLD}, "model_type": "gemma3", "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256, "text_config":
    {{"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
    "rope_scaling": {{"factor": 8.0, "rope_type": "linear"}}, "sliding_window": 1024}}, "vision_config":
    {{"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": false}}}}""",
    "pythia-70m": f"""{{{OLD}, "model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": 512, "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25,
    "tie_word_embeddings": false, "use_parallel_residual": true, "vocab_size": 50304}}""",
    "gpt-neox-20b": f"""{{{OLD}, "model_type": "gpt_neox", "attention_probs_dropout_prob": 0, "bos_token_id": 0,
    "eos_token_id": 0, "hidden_act": "gelu_fast", "hidden_dropout_prob": 0, "hidden_size": 6144,
    "intermediate_size": 24576, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 64,
    "num_hidden_layers": 44, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false,
    "vocab_size": 50432}}""",
    "TinyStories-33M": f"""{{{OLD}, "model_type": "gpt_neo", "activation_function": "gelu_new", "attention_layers":
    ["global", "local", "global", "local"], "attention_types": [[["global", "local"], 2]], "bos_token_id": 50256,
    "embed_dropout": 0, "eos_token_id": 50256, "gradient_checkpointing": false, "hidden_size": 768,
    "intermediate_size": null, "layer_norm_epsilon": 1e-05, "max_position_embeddings": 2048, "num_heads": 16,
    "num_layers": 4, "resid_dropout": 0, "summary_activation": null, "summary_first_dropout": 0.1,
    "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true, "vocab_size": 50257,
    "window_size": 256}}""",
    "phi-1_5": f"""{{{OLD}, "model_type": "phi", "bos_token_id": null, "embd_pdrop": 0.0, "eos_token_id": null,
    "hidden_act": "gelu_new", "hidden_size": 2048, "intermediate_size": 8192, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": null,
    "partial_rotary_factor": 0.5, "qk_layernorm": false, "resid_pdrop": 0.0, "rope_scaling": null,
    "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": 51200}}""",
    "phi-2": f"""{{{OLD}, "model_type": "phi", "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256,
    "hidden_act": "gelu_new", "hidden_size": 2560, "intermediate_size": 10240, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4, "qk_layernorm": false, "resid_pdrop": 0.1, "rope_scaling": null,
    "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": 51200}}""",
    "opt-125m": f"""{{{OLD}, "model_type": "opt", "_remove_final_layer_norm": false, "activation_dropout": 0.0,
    "activation_function": "relu", "bos_token_id": 2, "do_layer_norm_before": true, "dropout": 0.1, "eos_token_id": 2,
    "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "prefix": "</s>", "vocab_size": 50272,
    "word_embed_proj_dim": 768}}""",
    "opt-350m": f"""{{{OLD}, "model_type": "opt", "_remove_final_layer_norm": false, "activation_dropout": 0.0,
    "activation_function": "relu", "bos_token_id": 2, "do_layer_norm_before": false, "dropout": 0.1, "eos_token_id": 2,
    "ffn_dim": 4096, "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
    "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 1, "prefix": "</s>", "vocab_size": 50272,
    "word_embed_proj_dim": 512}}""",
    "galactica-125m": f"""{{{OLD}, "model_type": "opt", "_remove_final_layer_norm": false,
    "activation_function": "gelu", "bos_token_id": 0, "do_layer_norm_before": true, "dropout": 0.1,
    "enable_bias": true, "eos_token_id": 2, "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02,
    "layer_norm_elementwise_affine": true, "layerdrop": 0.0, "learned_embeddings": true,
    "max_position_embeddings": 2048, "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
    "scale_embeddings": false, "vocab_size": 50000, "word_embed_proj_dim": 768}}""",
    "tiny_starcoder_py": f"""{{{OLD}, "model_type": "gpt_bigcode", "activation_function": "gelu_pytorch_tanh",
    "attention_softmax_in_fp32": true, "attn_pdrop": 0.1, "bos_token_id": 0, "embd_pdrop": 0.1, "eos_token_id": 0,
    "inference_runner": 0, "layer_norm_epsilon": 1e-05, "max_batch_size": null, "max_sequence_length": null,
    "multi_query": true, "n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 20, "n_positions": 8192,
    "pad_key_length": true, "pre_allocate_kv_cache": false, "resid_pdrop": 0.1,
    "scale_attention_softmax_in_fp32": true, "scale_attn_weights": true, "summary_activation": null,
    "summary_use_proj": true, "validate_runner_input": true, "vocab_size": 49152}}""",
    "bloom-560m": f"""{{{OLD}, "model_type": "bloom", "apply_residual_connection_post_layernorm": false,
    "attention_softmax_in_fp32": true, "bias_dropout_fusion": true, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_dropout": 0.0, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": true, "n_embed": 1024,
    "n_inner": null, "n_layer": 24, "num_attention_heads": 16, "offset_alibi": 100, "pad_token_id": 3,
    "pretraining_tp": 1, "seq_length": 2048, "skip_bias_add": true, "skip_bias_add_qkv": false,
    "slow_but_exact": false, "unk_token_id": 0, "vocab_size": 250880}}""",
    "gpt-j-6b": f"""{{{OLD}, "model_type": "gptj", "activation_function": "gelu_new", "attn_pdrop": 0.0,
    "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256, "gradient_checkpointing": false,
    "layer_norm_epsilon": 1e-05, "n_embd": 4096, "n_head": 16, "n_inner": null, "n_layer": 28, "n_positions": 2048,
    "resid_pdrop": 0.0, "rotary": true, "rotary_dim": 64, "scale_attn_weights": true, "summary_use_proj": true,
    "task_specific_params": {{"text-generation": {{"do_sample": true, "max_length": 50}}}},
    "tie_word_embeddings": false, "tokenizer_class": "GPT2Tokenizer", "vocab_size": 50400}}""",
}

EXPECTED = {
    "TinyLlama-1.1B-Chat": (Heads(32, 4, 64), 2048, None, "theta 10000"),
    "Llama-2-7b": (Heads(32, 32, 128), 4096, None, "theta 10000"),
    "SmolLM2-135M-Instruct": (Heads(9, 3, 64), 8192, None, "theta 100000"),
    "Llama-3.2-1B-Instruct": (Heads(32, 8, 64), 131072, None, "theta 500000, llama3"),
    "Falcon3-1B-Base": (Heads(8, 4, 256), 4096, None, "theta 1.00004e+06"),
    "Qwen2.5-0.5B-Instruct": (Heads(14, 2, 64), 32768, None, "theta 1e+06"),
    "Qwen3-0.6B": (Heads(16, 8, 128), 40960, None, "theta 1e+06"),
    "Mistral-7B-v0.1": (Heads(32, 8, 128), 32768, 4096, "theta 10000"),
    "Mistral-7B-Instruct-v0.3": (Heads(32, 8, 128), 32768, None, "theta 1e+06"),
    "Mistral-Nemo-Instruct-2407": (Heads(32, 8, 128), 131072, None, "theta 1e+06"),
    "SmolLM3-3B": (Heads(16, 4, 128), 65536, None, "theta 5e+06"),
    "OLMo-2-0425-1B": (Heads(16, 16, 128), 4096, None, "theta 500000"),
    "granite-3.3-2b-instruct": (Heads(32, 8, 64), 131072, None, "theta 1e+07"),
    "Phi-3-mini-4k-instruct": (Heads(32, 32, 96), 4096, 2047, "theta 10000"),
    "Phi-3.5-mini-instruct": (Heads(32, 32, 96), 4096, 262144, "theta 10000, longrope"),
    "Phi-4-mini-instruct": (Heads(24, 8, 128), 4096, 262144, "theta 10000, longrope"),
    "stablelm-2-1_6b": (Heads(32, 32, 64), 4096, None, "theta 10000"),
    "starcoder2-3b": (Heads(24, 2, 128), 16384, 4096, "theta 999999"),
    "gemma-2b": (Heads(8, 1, 256), 8192, None, "theta 10000"),
    "gemma-2-2b": (Heads(8, 4, 256), 8192, [4096, None], "theta 10000"),
    "gemma-3-270m": (Heads(4, 1, 256), 32768, [512] * 5 + [None], "theta 1e+06"),
    "gemma-3-1b-it": (Heads(4, 1, 256), 32768, [512] * 5 + [None], "theta 1e+06"),
    "gemma-3-4b-it": (Heads(8, 4, 256), 131072, [1024] * 5 + [None], "theta 1e+06, linear"),
    "pythia-70m": (Heads(8, 8, 64), 2048, None, "theta 10000"),
    "gpt-neox-20b": (Heads(64, 64, 96), 2048, None, "theta 10000"),
    "TinyStories-33M": (Heads(16, 16, 48), 2048, [None, 256], ""),
    "phi-1_5": (Heads(32, 32, 64), 2048, None, "theta 10000"),
    "phi-2": (Heads(32, 32, 80), 2048, None, "theta 10000"),
    "opt-125m": (Heads(12, 12, 64), 2048, None, ""),
    "opt-350m": (Heads(16, 16, 64), 2048, None, ""),
    "galactica-125m": (Heads(12, 12, 64), 2048, None, ""),
    "tiny_starcoder_py": (Heads(12, 1, 64), 8192, None, ""),
    "bloom-560m": (Heads(16, 16, 64), 2048, None, ""),
    "gpt-j-6b": (Heads(16, 16, 256), 2048, None, ""),
}
"""The heads, the context length, the window of the layers or their pattern, and the rotary embedding, if any."""


def read(values):
    return ARCHITECTURES[values["model_type"]].config_type.from_json(values, file="config.json")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_without_a_warning(name, caplog):
    config = read(json.loads(PUBLISHED[name]))
    heads, context_length, window, rope = EXPECTED[name]
    assert (config.heads, config.context_length) == (heads, context_length)
    assert str(getattr(config, "rope_parameters", "")) == rope
    pattern = window if isinstance(window, list) else [window]
    assert config.windows == tuple(pattern[i % len(pattern)] for i in range(config.kv_shape.n_layer))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("SmolLM2-135M-Instruct", "rope_interleaved", True),
        ("Falcon3-1B-Base", "activation", "gelu"),
        ("Llama-2-7b", "sliding_window", 4096),
        ("Llama-2-7b", "attention_multiplier", 0.5),
        ("Llama-2-7b", "quantization_config", {"bits": 4}),
        ("Qwen2.5-0.5B-Instruct", "use_mrope", True),
        ("Qwen3-0.6B", "attn_logit_softcapping", 50.0),
        ("Phi-4-mini-instruct", "full_attn_mod", 2),
        ("Phi-4-mini-instruct", "interpolate_factor", 4),
        ("Phi-4-mini-instruct", "lm_head_bias", True),
        ("stablelm-2-1_6b", "qk_layernorm", True),
        ("stablelm-2-1_6b", "use_parallel_residual", True),
        ("stablelm-2-1_6b", "rms_norm_eps", 1e-5),
        ("starcoder2-3b", "scale_attn_weights", False),
        ("starcoder2-3b", "norm_type", "rms_norm"),
        ("starcoder2-3b", "mlp_type", "gated"),
        ("gemma-2b", "use_bidirectional_attention", True),
        ("gemma-2b", "hidden_activation", "relu"),
        ("gemma-2b", "query_pre_attn_scalar", 144),
        ("gemma-2b", "final_logit_softcapping", 30.0),
        ("gemma-2-2b", "use_bidirectional_attention", True),
        ("gemma-3-270m", "use_bidirectional_attention", True),
        ("gemma-3-270m", "attn_logit_softcapping", 50.0),
        ("pythia-70m", "sliding_window", 256),
        ("TinyStories-33M", "attention_types", [[["global", "local"], 1]]),
        ("TinyStories-33M", "attention_types", "global"),
        ("TinyStories-33M", "attention_layers", ["global", "global"]),
        ("TinyStories-33M", "scale_attn_weights", True),
        ("phi-2", "qk_layernorm", True),
        ("opt-125m", "layer_norm_elementwise_affine", False),
        ("opt-125m", "scale_embeddings", True),
        ("tiny_starcoder_py", "add_cross_attention", True),
        ("tiny_starcoder_py", "num_key_value_heads", 2),
        ("bloom-560m", "slow_but_exact", True),
        ("bloom-560m", "alibi_bias_max", 4),
        ("gpt-j-6b", "rotary", False),
        ("gpt-j-6b", "rotary_dim", 63),
        ("gpt-j-6b", "rope_scaling", {"type": "linear", "factor": 2.0}),
    ],
)
def test_keys_that_would_change_the_arithmetic_are_refused_by_name(name, key, value):
    with pytest.raises(ConfigError, match=rf"1 problem .*\n  {key} is "):
        read(json.loads(PUBLISHED[name]) | {key: value})


@pytest.mark.parametrize(
    ("name", "n"), [("gemma-2b", 16), ("gemma-2-2b", 4), ("Mistral-7B-v0.1", 8), ("Qwen2.5-0.5B-Instruct", 32)]
)
def test_defaults_of_key_value_heads_do_not_depend_on_the_heads(name, n):
    values = json.loads(PUBLISHED[name])
    del values["num_key_value_heads"]
    assert read(values | {"num_attention_heads": 64, "hidden_size": 4096}).heads.n_kv == n


@pytest.mark.parametrize(
    ("name", "keys", "needed"),
    [
        ("Mistral-7B-Instruct-v0.3", {"sliding_window": None}, "sliding_window"),
        ("gemma-2-2b", {"sliding_window": None}, "sliding_window"),
        ("SmolLM3-3B", {"sliding_window": 64}, "sliding_window and use_sliding_window"),
        ("Qwen2.5-0.5B-Instruct", {"use_sliding_window": False}, "sliding_window and use_sliding_window"),
    ],
)
def test_layers_that_slide_need_a_window(name, keys, needed):
    values = json.loads(PUBLISHED[name]) | keys
    values["layer_types"] = ["sliding_attention"] * values["num_hidden_layers"]
    with pytest.raises(ConfigError, match=f"layer_types has sliding_attention, expected also {needed}, or"):
        read(values)


# Mutations

NUMBERS = [0, 1, -1, 7, 2**24, 2**24 + 1, 10**400, 0.5, 1e30, 1e-30, 1e308, float("nan"), float("inf")]
SETTINGS = [
    {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0},
    {"rope_type": "llama3", "factor": 1e30, "low_freq_factor": 1, "high_freq_factor": 4},
    {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1e-30] * 48, "factor": 1e30},
    {"type": "linear", "factor": 1e-30},
    {"full_attention": {"rope_type": "yarn"}, "sliding_attention": 3},
]
VALUES = [None, True, "", "yarn", "full_attention", [], [1], [[]], [[1, 2]], {}, {"a": 1}, *NUMBERS, *SETTINGS]
KEYS = sorted({key for text in PUBLISHED.values() for key in json.loads(text)})
ROPE_KEYS = ["rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "head_dim", "rotary_dim"]
MISSING = object()


def compute(values):
    """Reads the config, and computes what depends on its sizes."""
    config = read(values)
    assert config.kv_shape.groups
    for rope in vars(config).values():
        if isinstance(rope, Rope):
            for length in {config.context_length, config.max_context_length}:
                assert np.isfinite(rope.frequencies(length)).all()


LAST_OF_TYPE = {json.loads(text)["model_type"]: name for name, text in PUBLISHED.items()}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of factors that float32 cannot hold
@pytest.mark.parametrize("name", LAST_OF_TYPE.values())
def test_any_rotation_is_computed_or_refused(name):
    """No other error, and no infinite frequency."""
    published = json.loads(PUBLISHED[name])
    for key in ROPE_KEYS:
        for value in VALUES:
            with suppress(ConfigError):
                compute(published | {key: value})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of factors that float32 cannot hold
@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(PUBLISHED)),
    changes=st.lists(
        st.tuples(
            st.sampled_from(KEYS) | st.sampled_from(ROPE_KEYS), st.sampled_from([MISSING, *VALUES]), st.booleans()
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_a_mutated_config_is_read_or_refused(name, changes):
    """No other error, and no infinite frequency."""
    whole = json.loads(PUBLISHED[name])
    for key, value, is_inner in changes:
        text = whole.get("text_config")
        values = text if is_inner and isinstance(text, dict) else whole
        if key == "model_type" and values is whole:
            continue
        if value is MISSING:
            values.pop(key, None)
        else:
            values[key] = value
    with suppress(ConfigError):
        compute(whole)
