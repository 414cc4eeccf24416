//! From the facts of a family and the keys of a config to an [`Architecture`].

use serde_json::Value;

use crate::config::reader::Reader;
use crate::config::{layers, rope_section};
use crate::error::Result;
use crate::families::{
    ClampFacts, DeltaNetMaps, EmbeddingScale, ExpertWeights, Experts, Family, Fused, Gate,
    GroupFacts, LatentFacts, LogitsScale, Mlp, NormEps, NormParams, QkNorms, Scale, Setting,
    Shared, SharedSize, SparseLayers,
};
use crate::layer::{
    Activation, Architecture, Attention, DeltaNet, Dense, Direct, Elementwise, Embed, ExpertGroups,
    ExpertNorms, Ffn, Head, Latent, Layer, Linear, Mixer, Moe, Norm, NormKind, QkNorm, QkNormWidth,
    Qkv, QueryLatent, Router, RouterNorm, SharedExpert, TopkNorm,
};
use crate::parameters::{Init, ParamSpec};
use crate::wrappers::Names;

/// The description of the model that a config asks for.
pub(crate) fn architecture(
    reader: &Reader<'_>,
    family: &'static Family,
    names: Names,
    max_position_embeddings: usize,
) -> Result<Architecture> {
    let facts = Facts::read(reader, family, names)?;
    let num_layers = reader.required("num_hidden_layers", Reader::num_layers)?;
    let of_layers = layers::read(reader, family, num_layers)?;
    let heads = of_layers
        .iter()
        .enumerate()
        .map(|(layer_idx, of_layer)| facts.heads(reader, layer_idx, of_layer))
        .collect::<Result<Vec<_>>>()?;
    let mut full_dims = heads
        .iter()
        .zip(&of_layers)
        .filter(|(_, of_layer)| of_layer.sliding_window.is_none())
        .map(|(heads, _)| heads.dim);
    let full_dim = full_dims.next().unwrap_or(facts.head_dim);
    if let Some(other) = full_dims.find(|dim| *dim != full_dim) {
        let required = format!("heads of `{full_dim}` as in the first layer without a window");
        return Err(reader.refuse("per_layer_config", format!("heads of `{other}`"), required));
    }
    let dims = match &facts.latent {
        // What turns is a head by itself, for transformers too.
        Some(sizes) => {
            let counts_whole = family.latent.as_ref().is_some_and(|facts| facts.counts_whole_heads);
            let whole = counts_whole.then_some(sizes.nope + sizes.rope);
            rope_section::HeadDims { full: sizes.rope, sliding: sizes.rope, whole }
        }
        None => rope_section::HeadDims { full: full_dim, sliding: facts.head_dim, whole: None },
    };
    let ropes = rope_section::Ropes::read(reader, family, dims, max_position_embeddings)?;
    let vocab_size = reader.required("vocab_size", Reader::size)?;
    let pad_token_id =
        reader.nullable("pad_token_id", family.defaults.pad_token_id, |r, key, value| {
            r.embedding_row(key, value, vocab_size)
        })?;
    if let (None, Some(id)) = (reader.entry("pad_token_id"), pad_token_id)
        && id as usize >= vocab_size
    {
        let found = format!("missing, which is `{id}` in this family");
        let required = format!("`null`, or a token id below vocab_size `{vocab_size}`");
        return Err(reader.refuse("pad_token_id", found, required));
    }
    let normal = facts.normal();
    let rows = [vocab_size, facts.hidden_size];
    let zero_row = pad_token_id.map(|id| id as usize);
    let embed_init = Init::Normal { std: facts.initializer_range, zero_row };
    let (multiplier, rounds_multiplier) = embedding_multiplier(reader, family, facts.hidden_size)?;

    let mut of_head = Params::new(names.decoder, facts.norm_init);
    let norm = of_head.norm(
        "norm",
        family.final_norm.unwrap_or(facts.norm),
        facts.norm_eps,
        family.norm_params,
        &[facts.hidden_size],
    );
    let is_tied = reader.flag("tie_word_embeddings", family.defaults.tie_word_embeddings)?;
    let mut params = of_head.specs;
    let lm_head = (!is_tied).then(|| {
        params.push(ParamSpec::new(names.lm_head, rows, normal));
        params.len() - 1
    });
    Ok(Architecture {
        hidden_size: facts.hidden_size,
        vocab_size,
        embed: Embed {
            weight: ParamSpec::new(
                format!("{}embed_tokens.weight", names.decoder),
                rows,
                embed_init,
            ),
            pad_token_id,
            multiplier,
            rounds_multiplier,
            norm: (family.embedding == EmbeddingScale::Normalised).then_some(Norm {
                kind: NormKind::RmsRoundedOnce,
                eps: facts.norm_eps,
                weight: None,
                bias: None,
            }),
        },
        layers: of_layers
            .iter()
            .enumerate()
            .map(|(layer_idx, of_layer)| facts.layer(layer_idx, heads[layer_idx], of_layer, &ropes))
            .collect(),
        head: Head {
            params,
            norm,
            lm_head,
            logits_multiplier: logits_multiplier(reader, family)?,
            softcap: softcap(reader, family.final_softcap)?,
        },
        ropes: ropes.into_list(),
        router_aux_loss_coef: router_aux_loss_coef(reader, &facts)?,
    })
}

/// The widest head accepted: far above any model's.
const MAX_HEAD_DIM: usize = 1 << 16;

/// What all layers of a model have in common.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an independent property of the class or of its config"
)]
struct Facts {
    family: &'static Family,
    names: Names,
    hidden_size: usize,
    intermediate_size: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    latent: Option<LatentSizes>,
    norm: NormKind,
    norm_eps: f64,
    post_norm_eps: f64,
    norm_init: f64,
    is_parallel: bool,
    qkv_bias: bool,
    o_bias: bool,
    mlp_bias: bool,
    has_qk_norm: bool,
    clip_qkv: Option<f64>,
    scale: f64,
    softcap: Option<f64>,
    activation: ActivationName,
    residual_multiplier: f64,
    initializer_range: f64,
    experts: Option<ExpertsOfModel>,
    delta_nets: Option<DeltaNets>,
}

/// What a config says of its gated delta nets.
struct DeltaNets {
    maps: DeltaNetMaps,
    num_value_heads: usize,
    num_key_heads: usize,
    key_head_dim: usize,
    value_head_dim: usize,
    /// Tokens that the convolution reads.
    conv_width: usize,
}

/// What a config says of its latents.
#[derive(Clone, Copy)]
struct LatentSizes {
    q_lora_rank: Option<usize>,
    kv_lora_rank: usize,
    /// Of a head of queries and keys, what does not turn and what does.
    nope: usize,
    rope: usize,
    v: usize,
}

/// What a config says of its experts.
struct ExpertsOfModel {
    facts: &'static Experts,
    num: usize,
    num_per_tok: usize,
    intermediate_size: usize,
    expert_groups: Option<ExpertGroups>,
    topk_norm: Option<TopkNorm>,
    scale: f64,
    /// What experts have in place of the activation of the class.
    activation: Option<Activation>,
    /// With its width.
    shared: Option<(&'static Shared, usize)>,
    /// Of each layer.
    is_sparse: Vec<bool>,
}

/// An activation by its name in transformers' `ACT2FN`.
#[derive(Debug, Clone, Copy)]
enum ActivationName {
    Elementwise(Elementwise),
    Xielu,
}

impl Facts {
    fn read(reader: &Reader<'_>, family: &'static Family, names: Names) -> Result<Self> {
        let hidden_size = reader.required("hidden_size", Reader::size)?;
        let num_heads = reader.required("num_attention_heads", Reader::num_heads)?;
        let num_kv_heads = num_kv_heads(reader, family, num_heads)?;
        let latent = match &family.latent {
            Some(facts) => Some(latent_sizes(reader, facts, num_heads, num_kv_heads)?),
            None => None,
        };
        let head_dim = match &latent {
            Some(sizes) => sizes.nope + sizes.rope,
            None => head_dim(reader, family, hidden_size, num_heads)?,
        };
        let is_set = |setting: &Setting| match setting {
            Setting::Never => Ok(false),
            Setting::Always => Ok(true),
            Setting::Key(key, default) => reader.flag(key, *default),
        };
        let norm_eps = match family.norm_eps {
            NormEps::Fixed(eps) => eps,
            NormEps::Key(key, default) => reader.or(key, default, Reader::positive)?,
        };
        Ok(Self {
            family,
            names,
            hidden_size,
            intermediate_size: reader.required("intermediate_size", Reader::size)?,
            num_heads,
            num_kv_heads,
            head_dim,
            latent,
            norm: family.norm,
            norm_eps,
            post_norm_eps: match family.post_norm_eps {
                Some((key, default)) => reader.or(key, default, Reader::positive)?,
                None => norm_eps,
            },
            norm_init: family.norm_init,
            is_parallel: is_set(&family.parallel)?,
            qkv_bias: is_set(&family.qkv_bias)?,
            o_bias: is_set(&family.o_bias)?,
            mlp_bias: is_set(&family.mlp_bias)?,
            has_qk_norm: family.qk_norm.as_ref().map_or(Ok(false), |norms| is_set(&norms.when))?,
            clip_qkv: if family.clips_qkv {
                reader.nullable("clip_qkv", None, Reader::positive)?
            } else {
                None
            },
            scale: match family.scale {
                Scale::HeadDim => 1.0 / (head_dim as f64).sqrt(),
                Scale::HeadDimAndYarn => {
                    let magnitude = rope_section::magnitude(reader, family)?;
                    1.0 / (head_dim as f64).sqrt() * magnitude * magnitude
                }
                Scale::Key(key, default) => reader.or(key, default, Reader::positive)?,
                Scale::RootOf(key, default) => {
                    1.0 / reader.or(key, default, Reader::positive)?.sqrt()
                }
                Scale::HeadDimTimes(key, default) => {
                    reader.or(key, default, Reader::positive)? / (head_dim as f64).sqrt()
                }
                Scale::One => 1.0,
            },
            softcap: softcap(reader, family.attention_softcap)?,
            activation: activation(reader, family)?,
            residual_multiplier: match family.residual_multiplier {
                Some(key) => reader.or(key, 1.0, Reader::positive)?,
                None => 1.0,
            },
            experts: match &family.experts {
                Some(facts) => experts(reader, facts)?,
                None => None,
            },
            delta_nets: match family.delta_nets {
                Some(maps) => Some(delta_nets(reader, maps)?),
                None => None,
            },
            initializer_range: reader.or(
                "initializer_range",
                family.defaults.initializer_range,
                Reader::non_negative,
            )?,
        })
    }

    fn normal(&self) -> Init {
        Init::Normal { std: self.initializer_range, zero_row: None }
    }

    /// The tensors in the order of use, which is their order in flat buffers and checkpoints.
    fn layer(
        &self,
        layer_idx: usize,
        heads: Heads,
        of_layer: &layers::OfLayer,
        ropes: &rope_section::Ropes,
    ) -> Layer {
        let mut params =
            Params::new(format!("{}layers.{layer_idx}.", self.names.decoder), self.norm_init);
        let norms = &self.family.norms;
        let norm = |params: &mut Params, name: Option<&str>, eps: f64| {
            let of_model = [self.hidden_size];
            let norm_params = self.family.norm_params;
            name.map(|name| params.norm(name, self.norm, eps, norm_params, &of_model))
        };
        let (eps, post_eps) = (self.norm_eps, self.post_norm_eps);
        let pre_attention_norm = norm(&mut params, norms.pre_attention, eps);
        let mixer = match &self.delta_nets {
            Some(nets) if of_layer.is_delta_net => {
                Mixer::DeltaNet(self.delta_net(&mut params, nets))
            }
            _ => Mixer::Attention(self.attention(&mut params, heads, of_layer, ropes)),
        };
        let post_attention_norm = norm(&mut params, norms.post_attention, post_eps);
        let pre_ffn_norm = norm(&mut params, norms.pre_ffn.filter(|_| !self.is_parallel), eps);
        let ffn = self.ffn(&mut params, layer_idx);
        let post_ffn_norm = norm(&mut params, norms.post_ffn, post_eps);
        let output_scale =
            self.family.has_layer_scalar.then(|| params.buffer("layer_scalar", &[1], 1.0));
        Layer {
            params: params.specs,
            mixer,
            ffn,
            pre_attention_norm,
            post_attention_norm,
            pre_ffn_norm,
            post_ffn_norm,
            is_parallel: self.is_parallel,
            residual_multiplier: self.residual_multiplier,
            output_scale,
        }
    }

    /// The heads of a layer.
    fn heads(
        &self,
        reader: &Reader<'_>,
        layer_idx: usize,
        of_layer: &layers::OfLayer,
    ) -> Result<Heads> {
        let usual = Heads { num_kv: self.num_kv_heads, dim: self.head_dim, values_are_keys: false };
        if !self.family.has_global_heads {
            return Ok(usual);
        }
        if of_layer.sliding_window.is_some() {
            return match of_layer_config(reader, layer_idx) {
                Some((path, value)) => {
                    let required = "absent: only layers without a window may differ here";
                    Err(reader.wrong(&path, value, required))
                }
                None => Ok(usual),
            };
        }
        global_heads(reader, layer_idx, usual, self.num_heads)
    }

    fn attention(
        &self,
        params: &mut Params,
        heads: Heads,
        of_layer: &layers::OfLayer,
        ropes: &rope_section::Ropes,
    ) -> Attention {
        let (h, v_head_dim) = (heads.dim, self.latent.map_or(heads.dim, |sizes| sizes.v));
        let (qkv, half_of_q) = if let Some(sizes) = &self.latent {
            (Qkv::Latent(self.latent(params, sizes)), None)
        } else {
            let (direct, half_of_q) = self.direct(params, heads);
            (Qkv::Direct(direct), half_of_q)
        };
        let (d, o_width, normal) = (self.hidden_size, self.num_heads * v_head_dim, self.normal());
        let sinks = self
            .family
            .has_sinks
            .then(|| params.push("self_attn.sinks", &[self.num_heads], normal));
        let gate = match self.family.gate {
            Gate::None => None,
            Gate::Projection => {
                Some(params.linear("self_attn.gate_proj", o_width, d, false, normal))
            }
            Gate::HalfOfQ => half_of_q,
        };
        Attention {
            num_heads: self.num_heads,
            num_kv_heads: heads.num_kv,
            head_dim: h,
            v_head_dim,
            qkv,
            gate,
            o: params.linear("self_attn.o_proj", d, o_width, self.o_bias, normal),
            rope: of_layer.is_rotated.then(|| ropes.of(of_layer.sliding_window.is_some())),
            scale: self.scale,
            softcap: self.softcap,
            sliding_window: of_layer.sliding_window,
            sinks,
        }
    }

    /// With the other half of the queries' projection, where that is the gate.
    fn direct(&self, params: &mut Params, heads: Heads) -> (Direct, Option<Linear>) {
        let (d, h) = (self.hidden_size, heads.dim);
        let (q_width, kv_width) = (self.num_heads * h, heads.num_kv * h);
        let widths = [q_width, kv_width, kv_width];
        let normal = self.normal();
        let mut half_of_q = None;
        let [q, k, v] = if self.family.fused == Fused::QkvAndGateUp {
            params.fused("self_attn.qkv_proj", widths, d, self.qkv_bias, normal).map(Some)
        } else {
            ["q", "k", "v"].map(|name| {
                let is_left_out = name == "v" && heads.values_are_keys;
                let width = if name == "q" { q_width } else { kv_width };
                let is_doubled = name == "q" && self.family.gate == Gate::HalfOfQ;
                let name = format!("self_attn.{name}_proj");
                if is_doubled {
                    let whole = params.linear(&name, 2 * width, d, self.qkv_bias, normal);
                    half_of_q = Some(whole.alternating(h, 2 * h, h));
                    return Some(whole.alternating(h, 2 * h, 0));
                }
                (!is_left_out).then(|| params.linear(&name, width, d, self.qkv_bias, normal))
            })
        };
        let (q, k) = q.zip(k).expect("only values may have no projection of their own");
        let qk_norm = self
            .family
            .qk_norm
            .as_ref()
            .filter(|_| self.has_qk_norm)
            .map(|norms| self.qk_norm(params, norms, heads));
        let without_weight = |kind| Norm { kind, eps: self.norm_eps, weight: None, bias: None };
        let direct = Direct {
            q,
            k,
            v,
            clip_qkv: self.clip_qkv,
            qk_norm,
            v_norm: self.family.has_v_norm.then(|| without_weight(NormKind::RmsRoundedOnce)),
        };
        (direct, half_of_q)
    }

    fn latent(&self, params: &mut Params, sizes: &LatentSizes) -> Latent {
        let (d, n, normal) = (self.hidden_size, self.num_heads, self.normal());
        let LatentSizes { q_lora_rank, kv_lora_rank, nope, rope, v } = *sizes;
        let linear = |params: &mut Params, name: &str, out, in_features, bias| {
            params.linear(&format!("self_attn.{name}"), out, in_features, bias, normal)
        };
        // Whatever the config says of other norms.
        let norm = |params: &mut Params, name: &str, width| {
            let name = format!("self_attn.{name}");
            params.norm(&name, self.norm, 1e-6, self.family.norm_params, &[width])
        };
        let q_latent = q_lora_rank.map(|rank| QueryLatent {
            map: linear(params, "q_a_proj", rank, d, self.qkv_bias),
            norm: norm(params, "q_a_layernorm", rank),
        });
        let (name, read) = q_lora_rank.map_or(("q_proj", d), |rank| ("q_b_proj", rank));
        let q = linear(params, name, n * (nope + rope), read, false);
        Latent {
            q_latent,
            q,
            kv_a: linear(params, "kv_a_proj_with_mqa", kv_lora_rank + rope, d, self.qkv_bias),
            kv_a_norm: norm(params, "kv_a_layernorm", kv_lora_rank),
            kv_b: linear(params, "kv_b_proj", n * (nope + v), kv_lora_rank, false),
            nope_head_dim: nope,
        }
    }

    /// Transformers makes `A_log` from numbers up to 16 and `dt_bias` of ones.
    fn delta_net(&self, params: &mut Params, nets: &DeltaNets) -> DeltaNet {
        let (d, normal) = (self.hidden_size, self.normal());
        let DeltaNets { num_value_heads, num_key_heads, key_head_dim, value_head_dim, .. } = *nets;
        let (keys, values) = (num_key_heads * key_head_dim, num_value_heads * value_head_dim);
        let linear = |params: &mut Params, name: &str, width: usize| {
            params.linear(&format!("linear_attn.in_proj_{name}"), width, d, false, normal)
        };
        let ([q, k, v], [z, b, a]) = match nets.maps {
            DeltaNetMaps::Apart => {
                let widths = [keys, keys, values];
                let qkv = params.fused("linear_attn.in_proj_qkv", widths, d, false, normal);
                let zba = [("z", values), ("b", num_value_heads), ("a", num_value_heads)];
                (qkv, zba.map(|(name, width)| linear(params, name, width)))
            }
            DeltaNetMaps::ByKeyHead => {
                let qkvz = linear(params, "qkvz", 2 * (keys + values));
                let ba = linear(params, "ba", 2 * num_value_heads);
                // Of a key head.
                let num_values = num_value_heads / num_key_heads;
                let (key, value) = (key_head_dim, num_values * value_head_dim);
                let of_qkvz = |len, offset| qkvz.alternating(len, 2 * (key + value), offset);
                let of_ba = |offset| ba.alternating(num_values, 2 * num_values, offset);
                let qkv = [(key, 0), (key, key), (value, 2 * key)];
                (
                    qkv.map(|(len, offset)| of_qkvz(len, offset)),
                    [of_qkvz(value, 2 * key + value), of_ba(0), of_ba(num_values)],
                )
            }
        };
        let channels = [2 * keys + values, 1, nets.conv_width];
        let conv = params.push("linear_attn.conv1d.weight", &channels, normal);
        let of_heads = [num_value_heads];
        let dt_bias = params.push("linear_attn.dt_bias", &of_heads, Init::Constant(1.0));
        let uniform = Init::LogUniform { low: 0.01, high: 16.0 };
        let a_log = params.push("linear_attn.A_log", &of_heads, uniform);
        let ones = Init::Constant(1.0);
        let weight = params.push("linear_attn.norm.weight", &[value_head_dim], ones);
        let norm =
            Norm { kind: NormKind::Rms, eps: self.norm_eps, weight: Some(weight), bias: None };
        let o = params.linear("linear_attn.out_proj", d, values, false, normal);
        DeltaNet {
            num_value_heads,
            num_key_heads,
            key_head_dim,
            value_head_dim,
            q,
            k,
            v,
            z,
            b,
            a,
            conv,
            dt_bias,
            a_log,
            norm,
            o,
        }
    }

    fn qk_norm(&self, params: &mut Params, norms: &QkNorms, heads: Heads) -> QkNorm {
        let mut norm = |name: &str, num_heads: usize| {
            let name = format!("self_attn.{name}");
            let mut of_shape = |name: &str, shape: &[usize]| {
                params.norm(name, norms.kind, self.norm_eps, norms.params, shape)
            };
            match norms.width {
                QkNormWidth::AllHeads => of_shape(&name, &[num_heads * heads.dim]),
                QkNormWidth::HeadWithRow => of_shape(&name, &[num_heads, heads.dim]),
                QkNormWidth::Head => of_shape(&name, &[heads.dim]),
                QkNormWidth::HeadWithTensor => {
                    let mut of_head =
                        |head: usize| of_shape(&format!("{name}.{head}"), &[heads.dim]);
                    let first = of_head(0);
                    (1..num_heads).for_each(|head| {
                        of_head(head);
                    });
                    first
                }
            }
        };
        QkNorm {
            q: norm(norms.names[0], self.num_heads),
            k: norm(norms.names[1], heads.num_kv),
            width: norms.width,
            is_after_rope: norms.is_after_rope,
        }
    }

    fn ffn(&self, params: &mut Params, layer_idx: usize) -> Ffn {
        match &self.experts {
            Some(experts) if experts.is_sparse[layer_idx] => Ffn::Moe(self.moe(params, experts)),
            _ => Ffn::Dense(self.dense(params)),
        }
    }

    fn router(&self, params: &mut Params, experts: &ExpertsOfModel) -> Router {
        let (d, normal) = (self.hidden_size, self.normal());
        let of_router = &experts.facts.router;
        let map = params.linear(of_router.name, experts.num, d, of_router.has_bias, normal);
        if let Some(bias) = map.bias {
            params.specs[bias].init = normal;
        }
        Router {
            map,
            scores: of_router.scores,
            is_fp32: of_router.is_fp32,
            correction_bias: of_router.correction_bias.map(|(name, shape)| {
                let bias = params.buffer(name, &[shape, &[experts.num]].concat(), 0.0);
                params.specs[bias].is_fp32 = true;
                bias
            }),
            expert_groups: experts.expert_groups,
            num_experts_per_tok: experts.num_per_tok,
            topk_norm: experts.topk_norm,
            scale: experts.scale,
            expert_scales: of_router
                .expert_scales
                .map(|name| params.push(name, &[experts.num], Init::Constant(1.0))),
            norm: of_router.norm_scale.map(|name| RouterNorm {
                norm: Norm {
                    kind: NormKind::Rms,
                    eps: self.norm_eps,
                    weight: Some(params.push(name, &[d], Init::Constant(1.0))),
                    bias: None,
                },
                multiplier: 1.0 / (d as f64).sqrt(),
            }),
        }
    }

    fn moe(&self, params: &mut Params, experts: &ExpertsOfModel) -> Moe {
        let (d, normal) = (self.hidden_size, self.normal());
        let names = &experts.facts;
        let router = self.router(params, experts);
        let of_branch = |params: &mut Params, name: &str| {
            params.norm(name, self.norm, self.norm_eps, self.family.norm_params, &[d])
        };
        let input_norm = names.norms.as_ref().map(|norms| of_branch(params, norms.input));
        let f = experts.intermediate_size;
        let mut all: Vec<Dense> = match &names.weights {
            ExpertWeights::Each { list, projections } => {
                let expert = |expert_idx: usize| {
                    self.expert(params, &format!("{list}.{expert_idx}"), *projections, f)
                };
                (0..experts.num).map(expert).collect()
            }
            ExpertWeights::Stacked { gate_up, down } => {
                let mut stacked = |name: &str, out: usize, in_features: usize| {
                    params.push(name, &[experts.num, out, in_features], normal)
                };
                let (gate_up, down) = (stacked(gate_up, 2 * f, d), stacked(down, d, f));
                let map = |weight: usize, first: usize, out: usize, in_features: usize| Linear {
                    weight,
                    bias: None,
                    rows: first..first + out,
                    in_features,
                    alternate: None,
                    low_rank: None,
                    of_stack: None,
                };
                let expert = |expert_idx: usize| {
                    let first = expert_idx * 2 * f;
                    let gate = map(gate_up, first, f, d);
                    let up = map(gate_up, first + f, f, d);
                    self.mlp(gate, up, map(down, expert_idx * d, d, f))
                };
                (0..experts.num).map(expert).collect()
            }
            ExpertWeights::Transposed { gate_up, gate_up_bias, down, down_bias } => {
                let mut stacked =
                    |weight: &str, bias: &str, in_features: usize, out: usize| Linear {
                        weight: params.push(weight, &[experts.num, in_features, out], normal),
                        bias: Some(params.push(bias, &[experts.num, out], Init::Constant(0.0))),
                        rows: 0..out,
                        alternate: None,
                        of_stack: Some(0),
                        in_features,
                        low_rank: None,
                    };
                let gate_up = stacked(gate_up, gate_up_bias, d, 2 * f);
                let down = stacked(down, down_bias, f, d);
                let expert = |expert_idx: usize| {
                    let of_expert =
                        |map: &Linear| Linear { of_stack: Some(expert_idx), ..map.clone() };
                    let gate_up = of_expert(&gate_up);
                    let (gate, up) = (gate_up.alternating(1, 2, 0), gate_up.alternating(1, 2, 1));
                    self.mlp(gate, up, of_expert(&down))
                };
                (0..experts.num).map(expert).collect()
            }
        };
        if let Some(activation) = experts.activation {
            for expert in &mut all {
                expert.activation = activation;
            }
        }
        let shared = experts.shared.map(|(facts, f)| SharedExpert {
            mlp: self.expert(params, facts.name, ["gate_proj", "up_proj", "down_proj"], f),
            gate: facts.gate.map(|gate| params.linear(gate, 1, d, false, normal)),
            output_norm: facts.output_norm.map(|name| of_branch(params, name)),
        });
        let norms = names
            .norms
            .as_ref()
            .zip(input_norm)
            .map(|(norms, input)| ExpertNorms { input, output: of_branch(params, norms.output) });
        let groups = std::iter::once(0..experts.num).collect();
        Moe { router, experts: all, groups, shared, norms }
    }

    fn expert(&self, params: &mut Params, name: &str, projections: [&str; 3], f: usize) -> Dense {
        let (d, normal) = (self.hidden_size, self.normal());
        let mut linear = |projection: &str, out: usize, in_features: usize| {
            params.linear(&format!("{name}.{projection}"), out, in_features, false, normal)
        };
        let [gate, up, down] = projections;
        let (gate, up) = (linear(gate, f, d), linear(up, f, d));
        let down = linear(down, d, f);
        self.mlp(gate, up, down)
    }

    fn mlp(&self, gate: Linear, up: Linear, down: Linear) -> Dense {
        Dense {
            intermediate_size: up.out_features(),
            gate: Some(gate),
            up,
            down,
            activation: match self.activation {
                ActivationName::Elementwise(function) => Activation::Elementwise(function),
                ActivationName::Xielu => unreachable!("no class with experts has it"),
            },
        }
    }

    fn dense(&self, params: &mut Params) -> Dense {
        let (d, f, bias, normal) =
            (self.hidden_size, self.intermediate_size, self.mlp_bias, self.normal());
        let (gate, up, down) = match self.family.mlp {
            Mlp::Gated if self.family.fused != Fused::None => {
                let [gate, up] = params.fused("mlp.gate_up_proj", [f, f], d, bias, normal);
                (Some(gate), up, "mlp.down_proj")
            }
            Mlp::Gated => (
                Some(params.linear("mlp.gate_proj", f, d, bias, normal)),
                params.linear("mlp.up_proj", f, d, bias, normal),
                "mlp.down_proj",
            ),
            Mlp::Plain { up, down } => (None, params.linear(up, f, d, bias, normal), down),
        };
        let activation = match self.activation {
            ActivationName::Elementwise(function) => Activation::Elementwise(function),
            ActivationName::Xielu => params.xielu(),
        };
        Dense {
            intermediate_size: f,
            gate,
            up,
            down: params.linear(down, d, f, bias, normal),
            activation,
        }
    }
}

/// The heads of a layer.
#[derive(Clone, Copy)]
struct Heads {
    num_kv: usize,
    dim: usize,
    values_are_keys: bool,
}

/// The heads of a layer without a window: by `per_layer_config`, which transformers writes, or else by the keys of the hub's configs.
fn global_heads(
    reader: &Reader<'_>,
    layer_idx: usize,
    usual: Heads,
    num_heads: usize,
) -> Result<Heads> {
    let values_are_keys = reader.or("attention_k_eq_v", false, Reader::bool)?;
    let (num_kv, dim) = if reader.entry("per_layer_config").is_some() {
        let Some((path, value)) = of_layer_config(reader, layer_idx) else {
            return Ok(Heads { values_are_keys, ..usual });
        };
        let map = value.as_object().ok_or_else(|| reader.wrong(&path, value, "an object"))?;
        let section = reader.section(&path, map);
        if let Some(other) =
            map.keys().find(|key| !["head_dim", "num_key_value_heads"].contains(&key.as_str()))
        {
            let required =
                "`head_dim` or `num_key_value_heads`: training here varies nothing else by layer";
            return Err(section.wrong(other, &map[other], required));
        }
        (
            section.or("num_key_value_heads", usual.num_kv, Reader::size)?,
            section.or("head_dim", usual.dim, Reader::size)?,
        )
    } else {
        let num_kv = reader.or("num_global_key_value_heads", usual.num_kv, Reader::size)?;
        let num_kv = if values_are_keys { num_kv } else { usual.num_kv };
        (num_kv, reader.or("global_head_dim", 512, Reader::size)?)
    };
    if !num_heads.is_multiple_of(num_kv) || !dim.is_multiple_of(2) || dim < 4 {
        let found = format!("`{num_kv}` kv heads of `{dim}` in layer `{layer_idx}`");
        let required = format!(
            "a divisor of num_attention_heads `{num_heads}`, and an even size of at least `4`"
        );
        let key = if reader.entry("per_layer_config").is_some() {
            "per_layer_config"
        } else {
            "global_head_dim"
        };
        return Err(reader.refuse(key, found, required));
    }
    Ok(Heads { num_kv, dim, values_are_keys })
}

/// What `per_layer_config` has of a layer, and the path of that.
fn of_layer_config<'v>(reader: &Reader<'v>, layer_idx: usize) -> Option<(String, &'v Value)> {
    let layers = reader.get("per_layer_config")?.as_object()?;
    let (key, value) = layers.iter().find(|(key, _)| key.parse() == Ok(layer_idx))?;
    Some((format!("per_layer_config.{key}"), value))
}

/// The tensors of a layer or of the head, as they are named one after the other.
struct Params {
    prefix: String,
    norm_init: f64,
    specs: Vec<ParamSpec>,
}

impl Params {
    fn new(prefix: impl Into<String>, norm_init: f64) -> Self {
        Self { prefix: prefix.into(), norm_init, specs: Vec::new() }
    }

    /// Adds a tensor and returns its index.
    fn push(&mut self, name: &str, shape: &[usize], init: Init) -> usize {
        self.specs.push(ParamSpec::new(format!("{}{name}", self.prefix), shape, init));
        self.specs.len() - 1
    }

    fn linear(
        &mut self,
        name: &str,
        out: usize,
        in_features: usize,
        bias: bool,
        init: Init,
    ) -> Linear {
        let weight = self.push(&format!("{name}.weight"), &[out, in_features], init);
        let bias = bias.then(|| self.push(&format!("{name}.bias"), &[out], Init::Constant(0.0)));
        Linear {
            weight,
            bias,
            rows: 0..out,
            alternate: None,
            of_stack: None,
            in_features,
            low_rank: None,
        }
    }

    /// Several maps of the same input in one tensor, in the order of its rows.
    fn fused<const N: usize>(
        &mut self,
        name: &str,
        widths: [usize; N],
        in_features: usize,
        bias: bool,
        init: Init,
    ) -> [Linear; N] {
        let whole = self.linear(name, widths.iter().sum(), in_features, bias, init);
        let mut end = 0;
        widths.map(|width| {
            end += width;
            whole.part(&(end - width..end))
        })
    }

    fn norm(
        &mut self,
        name: &str,
        kind: NormKind,
        eps: f64,
        params: NormParams,
        shape: &[usize],
    ) -> Norm {
        let (has_weight, has_bias) = match params {
            NormParams::None => (false, false),
            NormParams::Weight => (true, false),
            NormParams::WeightAndBias => (true, true),
        };
        let init = Init::Constant(self.norm_init);
        let weight = has_weight.then(|| self.push(&format!("{name}.weight"), shape, init));
        let bias = has_bias.then(|| self.push(&format!("{name}.bias"), shape, Init::Constant(0.0)));
        Norm { kind, eps, weight, bias }
    }

    /// Transformers makes the constants of `XIELUActivation` in bf16, whatever the dtype of the model.
    fn xielu(&mut self) -> Activation {
        let in_bf16 = |x: f64| half::bf16::from_f64(x).to_f64();
        let inverse_softplus = |x: f64| Init::Constant(in_bf16(x.exp_m1().ln()));
        Activation::Xielu {
            alpha_p: self.push("mlp.act_fn.alpha_p", &[1], inverse_softplus(0.8)),
            alpha_n: self.push("mlp.act_fn.alpha_n", &[1], inverse_softplus(0.8 - 0.5)),
            beta: self.buffer("mlp.act_fn.beta", &[], 0.5),
            eps: self.buffer("mlp.act_fn.eps", &[], in_bf16(-1e-6)),
        }
    }

    fn buffer(&mut self, name: &str, shape: &[usize], value: f64) -> usize {
        let name = format!("{}{name}", self.prefix);
        self.specs.push(ParamSpec::buffer(name, shape, Init::Constant(value)));
        self.specs.len() - 1
    }
}

fn delta_nets(reader: &Reader<'_>, maps: DeltaNetMaps) -> Result<DeltaNets> {
    let size = |key: &str, default: usize| reader.or(key, default, Reader::size);
    let num_key_heads = reader.or("linear_num_key_heads", 16, Reader::num_heads)?;
    let num_value_heads = reader.or("linear_num_value_heads", 32, Reader::num_heads)?;
    if !num_value_heads.is_multiple_of(num_key_heads) {
        let required = format!("a multiple of linear_num_key_heads `{num_key_heads}`");
        let found = Value::from(num_value_heads);
        return Err(reader.wrong("linear_num_value_heads", &found, required));
    }
    let widest = |key: &str| {
        let dim = size(key, 128)?;
        if dim > MAX_HEAD_DIM {
            let required = format!("at most `{MAX_HEAD_DIM}`");
            return Err(reader.wrong(key, &Value::from(dim), required));
        }
        Ok(dim)
    };
    // The class takes the activation of its convolutions from the key of the MLP's.
    let activation = reader.or("hidden_act", "silu".to_owned(), Reader::string)?;
    if !["silu", "swish"].contains(&activation.as_str()) {
        let required = "`silu`: convolutions of this family have the same activation, and training here has no other there";
        return Err(reader.wrong("hidden_act", &Value::from(activation), required));
    }
    Ok(DeltaNets {
        maps,
        num_value_heads,
        num_key_heads,
        key_head_dim: widest("linear_key_head_dim")?,
        value_head_dim: widest("linear_value_head_dim")?,
        conv_width: size("linear_conv_kernel_dim", 4)?,
    })
}

/// `None` if the config has no experts.
fn experts(reader: &Reader<'_>, facts: &'static Experts) -> Result<Option<ExpertsOfModel>> {
    if let Setting::Key(key, default) = facts.when
        && !reader.flag(key, default)?
    {
        return Ok(None);
    }
    let (key, default) = facts.num;
    // Transformers 5 writes the one name for all classes.
    let key = [key, "num_local_experts"].into_iter().find(|key| reader.get(key).is_some());
    let num = key.map_or(Ok(default), |key| {
        let value = alike(reader, key)?;
        value.map_or(Ok(default), |value| reader.num_experts(key, value))
    })?;
    if num == 0 {
        let Setting::Key(switch, _) = facts.when else { return Ok(None) };
        let required = format!("a number of experts beside {switch} `true`");
        return Err(reader.refuse(facts.num.0, "missing or `0`", required));
    }
    let size = |(key, default): (&str, Option<usize>)| match (alike(reader, key)?, default) {
        (Some(value), _) => reader.size(key, value),
        (None, Some(default)) => Ok(default),
        (None, None) => reader.required(key, Reader::size),
    };
    let num_per_tok = size(facts.num_per_tok)?;
    if num_per_tok > num {
        let required = format!("at most the `{num}` experts");
        return Err(reader.wrong(facts.num_per_tok.0, &Value::from(num_per_tok), required));
    }
    let intermediate_size = size(facts.intermediate_size)?;
    let shared = match &facts.shared {
        Some(shared) => {
            let width = match shared.intermediate_size {
                SharedSize::Key(key, default) => size((key, Some(default)))?,
                // Of some classes there may be none.
                SharedSize::Experts(key, _) if reader.get(key).is_some_and(|num| num == 0) => 0,
                SharedSize::Experts(key, default) => size((key, default))? * intermediate_size,
            };
            Some((shared, width)).filter(|(_, width)| *width > 0)
        }
        None => None,
    };
    let router = &facts.router;
    let norm_topk_prob = match router.norm_topk_prob {
        Setting::Never => false,
        Setting::Always => true,
        Setting::Key(key, default) => reader.flag(key, default)?,
    };
    Ok(Some(ExpertsOfModel {
        facts,
        num,
        num_per_tok,
        intermediate_size,
        expert_groups: match &router.groups {
            Some(groups) => expert_groups(reader, groups, num, num_per_tok)?,
            None => None,
        },
        topk_norm: if norm_topk_prob {
            let least = match router.norm_least {
                Some((key, default)) => reader.or(key, default, Reader::non_negative)?,
                None => 0.0,
            };
            Some(TopkNorm { added: router.norm_added, least })
        } else {
            None
        },
        scale: match router.scale {
            Some((key, default)) => reader.or(key, default, Reader::positive)?,
            None => 1.0,
        },
        activation: match &facts.clamped_swiglu {
            Some(facts) => Some(clamped_swiglu(reader, facts)?),
            None => None,
        },
        shared,
        is_sparse: sparse_layers(reader, facts)?,
    }))
}

fn clamped_swiglu(reader: &Reader<'_>, facts: &ClampFacts) -> Result<Activation> {
    let constant = |(key, default): (&str, f64)| reader.or(key, default, Reader::positive);
    Ok(Activation::ClampedSwiglu { alpha: constant(facts.alpha)?, limit: constant(facts.limit)? })
}

/// A number, or the one that a list has for every layer.
fn alike<'v>(reader: &Reader<'v>, key: &str) -> Result<Option<&'v Value>> {
    let Some(value) = reader.get(key) else { return Ok(None) };
    let Some([first, others @ ..]) = value.as_array().map(Vec::as_slice) else {
        return Ok(Some(value));
    };
    if others.iter().any(|other| other != first) {
        return Err(reader.wrong(key, value, "one number for all layers"));
    }
    Ok(Some(first))
}

/// `None` where one group has all experts.
fn expert_groups(
    reader: &Reader<'_>,
    facts: &GroupFacts,
    num_experts: usize,
    num_per_tok: usize,
) -> Result<Option<ExpertGroups>> {
    if facts.has_method {
        let method = reader.or("topk_method", "greedy".to_owned(), Reader::string)?;
        match method.as_str() {
            "greedy" => return Ok(None),
            "group_limited_greedy" => {}
            _ => {
                let required = "`greedy` or `group_limited_greedy`";
                return Err(reader.wrong("topk_method", &Value::from(method), required));
            }
        }
    }
    let num = reader.or("n_group", facts.num, Reader::size)?;
    let num_chosen = reader.or("topk_group", facts.num_chosen, Reader::size)?;
    if num_chosen > num {
        let required = format!("at most n_group `{num}`");
        return Err(reader.wrong("topk_group", &Value::from(num_chosen), required));
    }
    if num == num_chosen {
        return Ok(None);
    }
    if !num_experts.is_multiple_of(num) || num_experts / num < facts.num_best {
        let least = facts.num_best;
        let required =
            format!("a divisor of the `{num_experts}` experts that leaves `{least}` a group");
        return Err(reader.wrong("n_group", &Value::from(num), required));
    }
    if num_experts / num * num_chosen < num_per_tok {
        let required = format!("groups that have the `{num_per_tok}` experts of a token");
        return Err(reader.wrong("topk_group", &Value::from(num_chosen), required));
    }
    Ok(Some(ExpertGroups { num, num_chosen, num_best: facts.num_best }))
}

/// Whether each layer has experts.
fn sparse_layers(reader: &Reader<'_>, facts: &Experts) -> Result<Vec<bool>> {
    let num_layers = reader.required("num_hidden_layers", Reader::num_layers)?;
    Ok(match facts.layers {
        SparseLayers::All => vec![true; num_layers],
        SparseLayers::AllButFirst(default) => {
            let first = reader.or("first_k_dense_replace", default, Reader::count)?;
            (0..num_layers).map(|layer_idx| layer_idx >= first).collect()
        }
        SparseLayers::Listed => {
            let Some(value) = reader.get("mlp_layer_types") else {
                return Ok((0..num_layers).map(|layer_idx| layer_idx > 0).collect());
            };
            let is_sparse = |value: &Value| match value.as_str()? {
                "sparse" => Some(true),
                "dense" => Some(false),
                _ => None,
            };
            let list = value.as_array().filter(|list| list.len() == num_layers);
            let list = list.and_then(|list| list.iter().map(is_sparse).collect::<Option<_>>());
            let required = format!("`dense` or `sparse` for each of the `{num_layers}` layers");
            list.ok_or_else(|| reader.wrong("mlp_layer_types", value, required))?
        }
        SparseLayers::Between => {
            let start = reader.or("moe_layer_start_index", 1, Reader::count)?;
            let interval = reader.or("moe_layer_interval", 1, Reader::size)?;
            let end = reader.get("moe_layer_end_index").filter(|end| **end != -1);
            let end = end.map(|end| reader.count("moe_layer_end_index", end)).transpose()?;
            let is_sparse = |layer_idx: usize| {
                (layer_idx + 1).is_multiple_of(interval)
                    && layer_idx >= start
                    && end.is_none_or(|end| layer_idx <= end)
            };
            (0..num_layers).map(is_sparse).collect()
        }
        SparseLayers::Stepped => {
            let step = reader.or("decoder_sparse_step", 1, Reader::size)?;
            let none = Value::Array(Vec::new());
            let dense = reader.get("mlp_only_layers").unwrap_or(&none);
            let required = "a list of numbers of layers";
            let numbers =
                dense.as_array().and_then(|list| list.iter().map(Value::as_u64).collect());
            let dense: Vec<u64> =
                numbers.ok_or_else(|| reader.wrong("mlp_only_layers", dense, required))?;
            let is_sparse = |layer_idx: usize| {
                !dense.contains(&(layer_idx as u64)) && (layer_idx + 1).is_multiple_of(step)
            };
            (0..num_layers).map(is_sparse).collect()
        }
    })
}

/// Transformers adds that loss where a config has routers give their logits.
fn router_aux_loss_coef(reader: &Reader<'_>, facts: &Facts) -> Result<Option<f64>> {
    let experts = facts.experts.as_ref().filter(|experts| experts.is_sparse.contains(&true));
    let Some(experts) = experts else { return Ok(None) };
    if !reader.flag("output_router_logits", false)? {
        return Ok(None);
    }
    let Some(default) = experts.facts.aux_loss_coef else {
        let required = "`false`: routers of this family have no auxiliary loss";
        return Err(reader.refuse("output_router_logits", "`true`", required));
    };
    // Transformers fails at `null`, which is no default there.
    let key = "router_aux_loss_coef";
    let coef = reader.entry(key).map_or(Ok(default), |value| reader.non_negative(key, value))?;
    Ok(Some(coef).filter(|coef| *coef > 0.0))
}

fn num_kv_heads(reader: &Reader<'_>, family: &Family, num_heads: usize) -> Result<usize> {
    let default = family.defaults.num_key_value_heads.unwrap_or(num_heads);
    let found = match reader.entry("num_key_value_heads") {
        Some(Value::Null) => num_heads,
        _ => reader.or("num_key_value_heads", default, Reader::num_heads)?,
    };
    if !num_heads.is_multiple_of(found) {
        let required = format!("a divisor of num_attention_heads `{num_heads}`");
        return Err(reader.wrong("num_key_value_heads", &Value::from(found), required));
    }
    Ok(found)
}

fn head_dim(
    reader: &Reader<'_>,
    family: &Family,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize> {
    if family.heads_fill_hidden && !hidden_size.is_multiple_of(num_heads) {
        let required = format!(
            "a multiple of num_attention_heads `{num_heads}`: heads of this family fill it"
        );
        return Err(reader.wrong("hidden_size", &Value::from(hidden_size), required));
    }
    let default = family.defaults.head_dim.filter(|_| reader.entry("head_dim").is_none());
    let head_dim = match (reader.get("head_dim"), default) {
        (Some(value), _) => reader.size("head_dim", value)?,
        (None, Some(default)) => default,
        (None, None) if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        (None, None) => {
            let required = format!(
                "a multiple of num_attention_heads `{num_heads}`, or a config that gives head_dim"
            );
            return Err(reader.wrong("hidden_size", &Value::from(hidden_size), required));
        }
    };
    if family.heads_fill_hidden && head_dim != hidden_size / num_heads {
        let found = match reader.get("head_dim") {
            Some(value) => format!("`{value}`"),
            None => format!("missing, which is `{head_dim}` in this family"),
        };
        let required = format!(
            "`{}`, hidden_size `{hidden_size}` over num_attention_heads `{num_heads}`: heads of this family fill it",
            hidden_size / num_heads
        );
        return Err(reader.refuse("head_dim", found, required));
    }
    // Rotary embeddings turn pairs; dynamic scaling divides by `head_dim - 2`.
    if !head_dim.is_multiple_of(2) || !(4..=MAX_HEAD_DIM).contains(&head_dim) {
        let required = format!("an even number from `4` to `{MAX_HEAD_DIM}`");
        return Err(reader.wrong("head_dim", &Value::from(head_dim), required));
    }
    Ok(head_dim)
}

fn latent_sizes(
    reader: &Reader<'_>,
    facts: &LatentFacts,
    num_heads: usize,
    num_kv_heads: usize,
) -> Result<LatentSizes> {
    if num_kv_heads != num_heads {
        let required = format!(
            "num_attention_heads `{num_heads}`: keys and values of this family are made for each query head"
        );
        return Err(reader.refuse("num_key_value_heads", format!("`{num_kv_heads}`"), required));
    }
    let size = |key: &str, default: usize| {
        let found = reader.or(key, default, Reader::size)?;
        if found > MAX_HEAD_DIM {
            let required = format!("at most `{MAX_HEAD_DIM}`");
            return Err(reader.wrong(key, &Value::from(found), required));
        }
        Ok(found)
    };
    let (nope, rope) =
        (size("qk_nope_head_dim", facts.nope)?, size("qk_rope_head_dim", facts.rope)?);
    let v = size("v_head_dim", facts.v)?;
    // Rotary embeddings turn pairs; dynamic scaling divides by the size less two.
    if !rope.is_multiple_of(2) || rope < 4 {
        return Err(reader.wrong("qk_rope_head_dim", &Value::from(rope), "even, at least `4`"));
    }
    if !(nope + rope).is_multiple_of(2) {
        return Err(reader.wrong("qk_nope_head_dim", &Value::from(nope), "even"));
    }
    if v > nope + rope {
        let required = format!("at most qk_nope_head_dim and qk_rope_head_dim, `{}`", nope + rope);
        return Err(reader.wrong("v_head_dim", &Value::from(v), required));
    }
    // Transformers writes these, which follow from others, and reads its angles from the first.
    let head_dim = if facts.counts_whole_heads { nope + rope } else { rope };
    for (key, follows) in [("head_dim", head_dim), ("qk_head_dim", nope + rope)] {
        if let Some(value) = reader.get(key).filter(|value| **value != follows) {
            let required = format!("missing, or `{follows}` as the sizes of its parts say");
            return Err(reader.wrong(key, value, required));
        }
    }
    Ok(LatentSizes {
        q_lora_rank: reader.nullable("q_lora_rank", facts.q_lora_rank, Reader::size)?,
        kv_lora_rank: reader.or("kv_lora_rank", facts.kv_lora_rank, Reader::size)?,
        nope,
        rope,
        v,
    })
}

fn softcap(reader: &Reader<'_>, key: Option<(&str, Option<f64>)>) -> Result<Option<f64>> {
    key.map_or(Ok(None), |(key, default)| reader.nullable(key, default, Reader::positive))
}

fn activation(reader: &Reader<'_>, family: &Family) -> Result<ActivationName> {
    let (key, default) = family.activation;
    let found = reader.or(key, default.to_owned(), Reader::string)?;
    let elementwise = match found.as_str() {
        "silu" | "swish" => Elementwise::Silu,
        "gelu" => Elementwise::Gelu,
        // The same formula.
        "gelu_pytorch_tanh" | "gelu_new" => Elementwise::GeluTanh,
        "relu2" => Elementwise::Relu2,
        // It has weights, which only checkpoints of its class hold.
        "xielu" if default == "xielu" => return Ok(ActivationName::Xielu),
        _ => {
            let own = if default == "xielu" { ", `xielu`" } else { "" };
            let required =
                format!("one of `silu`, `gelu`, `gelu_pytorch_tanh`, `gelu_new`, `relu2`{own}");
            return Err(reader.wrong(key, &Value::from(found), required));
        }
    };
    Ok(ActivationName::Elementwise(elementwise))
}

/// The multiplier, and whether it is rounded to the dtype of the weights.
fn embedding_multiplier(
    reader: &Reader<'_>,
    family: &Family,
    hidden_size: usize,
) -> Result<(f64, bool)> {
    Ok(match family.embedding {
        EmbeddingScale::One | EmbeddingScale::Normalised => (1.0, false),
        EmbeddingScale::Key(key) => (reader.or(key, 1.0, Reader::positive)?, false),
        EmbeddingScale::RootOfHidden => ((hidden_size as f64).sqrt(), true),
    })
}

fn logits_multiplier(reader: &Reader<'_>, family: &Family) -> Result<f64> {
    match family.logits {
        LogitsScale::One => Ok(1.0),
        LogitsScale::Over(key) => Ok(1.0 / reader.or(key, 1.0, Reader::positive)?),
        LogitsScale::Times(key, default) => reader.or(key, default, Reader::positive),
    }
}
