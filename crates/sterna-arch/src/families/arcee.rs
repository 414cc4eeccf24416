//! AFM 4.5B (transformers `models/arcee`): Llama with an MLP without a gate.

use super::{Defaults, Family, Mlp, NormEps, Setting};

pub(super) const ARCEE: Family = Family {
    model_type: "arcee",
    causal_lm_class: "ArceeForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 4096,
        bos_token_id: Some(128_000),
        eos_token_id: &[128_001],
        ..Defaults::USUAL
    },
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    mlp: Mlp::Plain { up: "mlp.up_proj", down: "mlp.down_proj" },
    activation: ("hidden_act", "relu2"),
    mlp_bias: Setting::Key("mlp_bias", false),
    ..Family::USUAL
};
