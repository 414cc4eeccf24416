//! A tiny model with its batch, run whole: embedding, blocks, head, and all of it backwards, as training does.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use safetensors::{Dtype, SafeTensors};
use sterna_arch::{Ffn, Init, Layer, ModelConfig, ParamSpec};
use sterna_comm::{Comm, RankEnv, ReduceOp};
use sterna_model::head::{self, HeadGrads, HeadParams, LabelLosses};
use sterna_model::{
    AttentionContext, BlockContext, BlockGrads, BlockParams, Documents, Experts, HeadGroup,
    Implementation, Keep, KeysValues, KeysValuesStore, ModelError, Routing, Streaming, block,
    embed, rotary,
};
use tch::{Device, Kind, Tensor};

/// A model and a batch, with what transformers computes for them.
pub(crate) struct Tiny {
    pub(crate) config: ModelConfig,
    /// The fixture's tensors: weights by name, `grad.` and a name, `logits`.
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) batch: Batch,
    /// Mean over labels.
    pub(crate) loss: f64,
    /// Of routers, times its coefficient; 0 without.
    pub(crate) aux_loss: f64,
    /// How far transformers' bf16 is from its fp32, by name of what is compared.
    pub(crate) bf16_errors: BTreeMap<String, f64>,
}

/// One micro-batch, all of it.
#[derive(Clone)]
pub(crate) struct Batch {
    pub(crate) input_ids: Vec<i64>,
    pub(crate) shift_labels: Vec<i64>,
    /// Lengths of the documents.
    pub(crate) lengths: Vec<i64>,
    pub(crate) num_rows: usize,
}

/// Keeps keys and values as they are and hands out copies of runs of them.
pub(crate) struct Chunks;

struct Waiting([Tensor; 2]);

impl KeysValuesStore for Chunks {
    fn put(
        &self,
        k: Tensor,
        v: Tensor,
    ) -> Result<Box<dyn KeysValues<Error = ModelError>>, ModelError> {
        Ok(Box::new(Waiting([k, v])))
    }
}

impl KeysValues for Waiting {
    type Error = ModelError;

    fn fetch(&mut self, tokens: &Range<i64>) -> Result<(Tensor, Tensor), ModelError> {
        let [k, v] =
            self.0.each_ref().map(|x| x.narrow(0, tokens.start, tokens.end - tokens.start).copy());
        Ok((k, v))
    }

    fn prefetch(&mut self, _: &Range<i64>) -> Result<(), ModelError> {
        Ok(())
    }
}

/// Hands out the experts of a layer whose tensors are all at hand.
pub(crate) struct Resident<'a> {
    pub(crate) layer: &'a Layer,
    /// As [`Layer::params`], and their gradients, which a forward does not need.
    pub(crate) weights: &'a [Tensor],
    pub(crate) grads: &'a [Tensor],
    pub(crate) num_reduced: usize,
}

impl Resident<'_> {
    fn group(&self, group_idx: usize) -> Vec<usize> {
        match &self.layer.ffn {
            Ffn::Dense(_) => unreachable!("a layer without experts asks for none"),
            Ffn::Moe(moe) => moe.params_of(&moe.groups[group_idx]),
        }
    }
}

impl Experts for Resident<'_> {
    fn gather(&mut self, group_idx: usize) -> Result<BlockParams, ModelError> {
        let group = self.group(group_idx);
        let weights = group.iter().map(|&idx| self.weights[idx].shallow_clone()).collect();
        BlockParams::new(self.layer, &group, weights)
    }

    fn gradients(&mut self, group_idx: usize) -> Result<BlockGrads, ModelError> {
        assert_eq!(group_idx, self.num_reduced, "groups go in order");
        let group = self.group(group_idx);
        let grads = group.iter().map(|&idx| Some(self.grads[idx].shallow_clone())).collect();
        BlockGrads::new(self.layer, &group, grads)
    }

    fn reduce(&mut self) -> Result<(), ModelError> {
        self.num_reduced += 1;
        Ok(())
    }
}

/// How to compute it.
#[derive(Clone, Copy)]
pub(crate) struct How {
    pub(crate) kind: Kind,
    pub(crate) tile_len: i64,
    pub(crate) num_groups: usize,
    pub(crate) query_tile_len: Option<i64>,
    pub(crate) keep: Keep,
}

impl How {
    /// One tile, all heads at once, only the inputs of blocks kept.
    pub(crate) const PLAIN: How = How {
        kind: Kind::Float,
        tile_len: 1 << 20,
        num_groups: 1,
        query_tile_len: None,
        keep: Keep { attention: false, graph: false },
    };
}

/// What came out, the same on every rank.
pub(crate) struct Outcome {
    /// `[s, v]`.
    pub(crate) logits: Tensor,
    /// Mean over labels.
    pub(crate) loss: f64,
    /// Of routers, times its coefficient.
    pub(crate) aux_loss: f64,
    /// By name; of the sum of both.
    pub(crate) grads: BTreeMap<String, Tensor>,
}

/// A communicator of one rank, also inside a rank of a larger test.
pub(crate) fn alone() -> Comm {
    Comm::init(&RankEnv::single(), 1, Duration::from_secs(30)).unwrap()
}

/// All ranks of the test as one sequence-parallel group.
pub(crate) fn together(world_size: usize) -> Comm {
    Comm::init(&RankEnv::from_env().unwrap(), world_size, Duration::from_secs(30)).unwrap()
}

impl Batch {
    pub(crate) fn documents(&self) -> Vec<Range<i64>> {
        let mut end = 0;
        let next = |len: &i64| {
            end += len;
            end - len..end
        };
        self.lengths.iter().map(next).collect()
    }

    fn position_ids(&self) -> Vec<i64> {
        self.lengths.iter().flat_map(|len| 0..*len).collect()
    }

    /// This rank's tokens: its run of every row.
    fn shard(&self, sp_size: usize, sp_rank: usize) -> Vec<usize> {
        let row_len = self.input_ids.len() / self.num_rows;
        let shard_len = row_len / sp_size;
        assert_eq!(
            shard_len * sp_size * self.num_rows,
            self.input_ids.len(),
            "the batch is made to be divisible"
        );
        (0..self.num_rows)
            .flat_map(|row| {
                let start = row * row_len + sp_rank * shard_len;
                start..start + shard_len
            })
            .collect()
    }
}

impl Tiny {
    /// Reads `tests/fixtures/{name}.json` and `.safetensors`.
    pub(crate) fn fixture(name: &str) -> Tiny {
        let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let record = std::fs::read(path.with_extension("json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let mut tensors = read_tensors(&path.with_extension("safetensors"));
        let mut ids = |name: &str| Vec::<i64>::try_from(tensors.remove(name).unwrap()).unwrap();
        Tiny {
            config: ModelConfig::from_json(&record["config"].to_string(), &path).unwrap(),
            batch: Batch {
                input_ids: ids("input_ids"),
                shift_labels: ids("shift_labels"),
                lengths: record["lengths"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|len| len.as_i64().unwrap())
                    .collect(),
                num_rows: 1,
            },
            loss: record["loss"].as_f64().unwrap(),
            aux_loss: record["aux_loss"].as_f64().unwrap_or(0.0),
            bf16_errors: record["bf16_errors"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, error)| (name.clone(), error.as_f64().unwrap()))
                .collect(),
            tensors,
        }
    }

    fn weight(&self, spec: &ParamSpec, kind: Kind) -> Tensor {
        match (self.tensors.get(&spec.name), spec.init) {
            (Some(tensor), _) => tensor.to_kind(kind),
            // Fixtures have what is trained.
            (None, Init::Constant(value)) if !spec.is_trained() => {
                let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
                Tensor::full(shape.as_slice(), value, (kind, Device::Cpu))
            }
            (None, _) => panic!("`{}` is not in the fixture", spec.name),
        }
    }

    /// Computes logits, loss and every gradient.
    #[expect(clippy::too_many_lines, reason = "a model from its first op to its last gradient")]
    pub(crate) fn run(&self, comm: &Comm, batch: &Batch, how: How) -> Outcome {
        let How { kind, tile_len, num_groups, keep, .. } = how;
        let config = &self.config;
        let sp = comm.sp();
        let arch = &config.arch;
        let groups: Vec<Vec<HeadGroup>> = arch
            .layers
            .iter()
            .map(|layer| HeadGroup::of_all_ranks(&layer.mixer, sp.size(), num_groups).unwrap())
            .collect();
        let shard = batch.shard(sp.size(), sp.rank());
        let local = |values: &[i64]| shard.iter().map(|token| values[*token]).collect::<Vec<i64>>();
        let (input_ids, shift_labels) = (local(&batch.input_ids), local(&batch.shift_labels));
        let seq_len = *batch.lengths.iter().max().unwrap() as usize;
        let ropes = rotary::tables(arch, &local(&batch.position_ids()), seq_len, kind, Device::Cpu);
        let documents = Documents::new(batch.documents());
        let context = |layer_idx: usize| BlockContext {
            layer: &arch.layers[layer_idx],
            layer_idx,
            attention: AttentionContext {
                sp,
                groups: &groups[layer_idx],
                documents: &documents,
                rope: arch.layers[layer_idx].mixer.rope().map(|rope_idx| &ropes[rope_idx]),
                num_rows: batch.num_rows as i64,
                streaming: how
                    .query_tile_len
                    .map(|tile_len| Streaming { tile_len, store: &Chunks }),
                implementation: Implementation::Automatic,
                qkv_tile_len: tile_len,
            },
            routing: None,
            route: None,
            mlp_tile_len: tile_len,
        };
        let num_valid_tokens = batch.shift_labels.iter().filter(|label| **label != -100).count();

        let grad_kind = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let zeros = |spec: &ParamSpec| {
            let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
            Tensor::zeros(shape.as_slice(), (grad_kind, Device::Cpu))
        };
        let mut grads: BTreeMap<String, Tensor> =
            arch.params().map(|spec| (spec.name.clone(), zeros(spec))).collect();

        let embed_weight = self.weight(&arch.embed.weight, kind);
        let weights: Vec<Vec<Tensor>> = arch
            .layers
            .iter()
            .map(|layer| layer.params.iter().map(|spec| self.weight(spec, kind)).collect())
            .collect();
        let units = arch.units();
        let block_params = |layer_idx: usize| {
            let unit = &units.all()[units.layer(layer_idx)].param_idxs;
            let tensors = unit.iter().map(|&idx| weights[layer_idx][idx].shallow_clone()).collect();
            BlockParams::new(&arch.layers[layer_idx], unit, tensors).unwrap()
        };
        let head_params = HeadParams {
            own: arch.head.params.iter().map(|spec| self.weight(spec, kind)).collect(),
            embedding: arch.is_tied().then(|| embed_weight.shallow_clone()),
        };

        // No row of these batches is padding.
        let mut routing = Routing::new(arch, &vec![true; input_ids.len()], Device::Cpu);
        let mut x = embed::forward(arch, &embed_weight, &input_ids).unwrap();
        let mut all_kept = Vec::new();
        for (layer_idx, of_layer) in weights.iter().enumerate() {
            let params = block_params(layer_idx);
            let context = BlockContext { routing: routing.as_ref(), ..context(layer_idx) };
            let mut experts = Resident {
                layer: &arch.layers[layer_idx],
                weights: of_layer,
                grads: &[],
                num_reduced: 0,
            };
            let (y, kept) =
                block::forward(&context, &params, Some(&mut experts), &x, keep).unwrap();
            all_kept.push(kept);
            x = y;
        }
        let num_routed = batch.input_ids.len() * arch.moe_layers().count();
        let aux_loss = match &mut routing {
            Some(routing) => {
                routing.finish(sp, num_routed, 1.0).unwrap();
                routing.loss()
            }
            None => 0.0,
        };
        let logits = head::logits(arch, &head_params, &x).unwrap();
        let mut head_grads = HeadGrads {
            own: arch
                .head
                .params
                .iter()
                .map(|spec| Some(grads[&spec.name].shallow_clone()))
                .collect(),
            embedding: arch.is_tied().then(|| grads[&arch.embed.weight.name].shallow_clone()),
        };
        let num_labels = shift_labels.iter().filter(|label| **label != -100).count() as i64;
        let scale = 1.0 / num_valid_tokens as f64;
        let token_weights = Tensor::full([num_labels], scale, (Kind::Double, Device::Cpu));
        let (losses, mut d_x) = head::loss_and_backward(
            arch,
            &head_params,
            &mut head_grads,
            &x,
            &shift_labels,
            &token_weights,
            tile_len,
        )
        .unwrap();
        let forward = head::loss(arch, &head_params, &x, &shift_labels, tile_len).unwrap();
        assert_eq!(forward.of_labels, losses.of_labels, "with and without gradients");
        assert_eq!(forward.sum, losses.sum, "with and without gradients");
        assert_eq!(losses.of_labels.size(), [num_labels]);
        let loss_sum = losses.sum.double_value(&[]);
        let difference = losses.of_labels.sum(Kind::Double).double_value(&[]) - loss_sum;
        assert!(difference.abs() <= 1e-12 * loss_sum, "{difference:e}");
        for (layer_idx, kept) in all_kept.into_iter().enumerate().rev() {
            let layer = &arch.layers[layer_idx];
            let params = block_params(layer_idx);
            let of_layer = layer.params.iter().map(|spec| grads[&spec.name].shallow_clone());
            let of_layer: Vec<Tensor> = of_layer.collect();
            let unit = &units.all()[units.layer(layer_idx)].param_idxs;
            let of_unit = unit.iter().map(|&idx| Some(of_layer[idx].shallow_clone())).collect();
            let mut block_grads = BlockGrads::new(layer, unit, of_unit).unwrap();
            let mut experts =
                Resident { layer, weights: &weights[layer_idx], grads: &of_layer, num_reduced: 0 };
            let context = BlockContext { routing: routing.as_ref(), ..context(layer_idx) };
            d_x = block::backward(
                &context,
                &params,
                &mut block_grads,
                Some(&mut experts),
                kept,
                &d_x,
            )
            .unwrap();
            let num_groups = units.experts(layer_idx).len();
            assert_eq!(experts.num_reduced, num_groups, "every group is reduced");
        }
        let d_embed = grads.get_mut(&arch.embed.weight.name).unwrap();
        embed::backward(arch, Some(&embed_weight), d_embed, &input_ids, &d_x).unwrap();
        // No gradient reaches a buffer, and transformers has none.
        for spec in arch.params().filter(|spec| !spec.is_trained()) {
            let grad = grads.remove(&spec.name).unwrap();
            assert!(grad == grad.zeros_like(), "{}", spec.name);
        }

        for grad in grads.values() {
            sp.all_reduce_(grad, ReduceOp::Sum).unwrap();
        }
        Outcome {
            logits: gather(comm, batch, &logits),
            aux_loss,
            loss: mean_loss(comm, &losses, num_valid_tokens),
            grads,
        }
    }
}

/// All tensors of a file.
pub(crate) fn read_tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap();
    SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::BF16 => Kind::BFloat16,
                Dtype::I64 => Kind::Int64,
                other => panic!("`{name}` is {other:?}"),
            };
            let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
            (name, Tensor::from_data_size(view.data(), &shape, kind))
        })
        .collect()
}

fn mean_loss(comm: &Comm, losses: &LabelLosses, num_valid_tokens: usize) -> f64 {
    let num_labels = losses.of_labels.size()[0] as f64;
    let total = Tensor::from_slice(&[losses.sum.double_value(&[]), num_labels]);
    comm.sp().all_reduce_(&total, ReduceOp::Sum).unwrap();
    assert_eq!(total.double_value(&[1]) as usize, num_valid_tokens);
    total.double_value(&[0]) / num_valid_tokens as f64
}

/// The shards of all ranks, in the order of the tokens.
fn gather(comm: &Comm, batch: &Batch, shard: &Tensor) -> Tensor {
    let (num_tokens, v) = (batch.input_ids.len() as i64, shard.size()[1]);
    let sp_size = comm.sp().size() as i64;
    let gathered = Tensor::empty([num_tokens, v], (shard.kind(), Device::Cpu));
    comm.sp().all_gather_into_tensor(&gathered, &shard.contiguous()).unwrap().wait().unwrap();
    gathered.view([sp_size, batch.num_rows as i64, -1, v]).transpose(0, 1).reshape([num_tokens, v])
}

/// `|actual - expected| / |expected|`, in the Euclidean norm.
pub(crate) fn relative_error(actual: &Tensor, expected: &Tensor) -> f64 {
    let (actual, expected) = (actual.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    (&actual - &expected).norm().double_value(&[])
        / expected.norm().double_value(&[]).max(f64::MIN_POSITIVE)
}

/// The error of the gradient of `param`, relative to that gradient.
///
/// A key bias moves all scores of a query almost alike (only rotary tells the keys apart), so its gradient is a small rest of large
/// terms that cancel. Its error is that of the terms, and those are as large as the gradient of the query bias.
pub(crate) fn grad_error<'a>(
    param: &str,
    actual: &Tensor,
    expected: impl Fn(&str) -> &'a Tensor,
) -> f64 {
    let error = relative_error(actual, expected(param));
    if !param.ends_with("k_proj.bias") {
        return error;
    }
    let size = |param: &str| expected(param).norm().double_value(&[]);
    error * size(param) / size(&size_of_terms(param))
}

/// The parameter whose gradient is as large as the terms of that of `param`.
pub(crate) fn size_of_terms(param: &str) -> String {
    param.replace("k_proj.bias", "q_proj.bias")
}

/// Asserts that logits, loss and every gradient agree within a relative error.
#[track_caller]
pub(crate) fn assert_same(name: &str, actual: &Outcome, expected: &Outcome, tolerance: f64) {
    let check = |what: &str, error: f64| {
        assert!(error <= tolerance, "{name}: {what} differs by {error:e}, more than {tolerance:e}");
    };
    check("logits", relative_error(&actual.logits, &expected.logits));
    check("loss", (actual.loss / expected.loss - 1.0).abs());
    check("auxiliary loss", (actual.aux_loss - expected.aux_loss).abs());
    for (param, grad) in &actual.grads {
        check(param, grad_error(param, grad, |param| &expected.grads[param]));
    }
}
