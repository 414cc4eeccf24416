//! From a recipe to the data that every rank sees.
//!
//! The order of the steps is the reference's: tokenize each source, concatenate, shuffle, drop what is too long, shuffle again and
//! pack, split off evaluation data, repeat until there is enough. Every rank runs this by itself and gets the same result.

use std::sync::Arc;

use sterna_hf::Tokenizer;
use sterna_recipe::{
    DataOptions, ExcessLength, LabelMask, Packing, Recipe, Source, StoppingStrategy, Trainer,
};

use crate::{
    cache::SourceStats,
    dataset::{Corpus, Dataset},
    error::{Error, Result},
    format::Format,
    pack::{PackRule, Packs, pack_global, pack_reference, repeat_to_max_length, slice_reference},
    rng::{MAX_RANDPERM_LEN, PythonRandom, numpy_permutation},
    tokenize::{Progress, tokenize_source},
};

/// What a recipe's `data` section gives.
#[derive(Debug)]
pub struct Datasets {
    /// What is trained on.
    pub train: Dataset,
    /// What is evaluated on, if anything.
    pub eval: Option<Dataset>,
    /// SHA-256 of what is trained on and its order, before `min_iterations` repeats it: the same for any number of ranks.
    pub fingerprint: String,
    /// What was read, kept and dropped on the way.
    pub report: PrepareReport,
}

/// What was read, kept and dropped while data was prepared.
#[derive(Clone, Debug, PartialEq)]
pub struct PrepareReport {
    /// The `sources`.
    pub train: SetReport,
    /// The `eval_sources`; `None` without any, also when `train_eval_split` makes the evaluation data.
    pub eval: Option<SetReport>,
}

/// What happened to the sources of one side.
#[derive(Clone, Debug, PartialEq)]
pub struct SetReport {
    /// Each source.
    pub sources: Vec<SourceReport>,
    /// `max_length` in tokens.
    pub max_length: usize,
    /// Longest sample in tokens, dropped or not.
    pub longest: usize,
    /// Samples longer than `max_length`.
    pub too_long: usize,
    /// Those that were dropped for it.
    pub dropped_too_long: usize,
    /// Samples that were made of the others.
    pub pieces: usize,
    /// Samples kept.
    pub samples: usize,
    /// Tokens of the samples kept.
    pub tokens: u64,
    /// Packs, if samples are packed.
    pub packs: Option<PackReport>,
    /// Samples, or packs, after evaluation data was split off and `min_iterations` repeated the rest.
    pub len: usize,
}

impl SetReport {
    /// What became of samples longer than `max_length`, in a sentence; `None` without any, or if they stay as they are.
    pub fn about_length(&self) -> Option<String> {
        let Self { too_long, dropped_too_long, pieces, max_length, longest, .. } = self;
        let samples = |count: usize| match count {
            1 => "1 sample".to_owned(),
            count => format!("{count} samples"),
        };
        let what = match (*dropped_too_long, *pieces) {
            (0, 0) => return None,
            (dropped, 0) => format!("dropped {} longer", samples(dropped)),
            (0, pieces) => format!("made {} of {too_long} longer", samples(pieces)),
            (dropped, pieces) => format!(
                "made {} of {too_long} longer, and dropped {dropped} without labels there,",
                samples(pieces)
            ),
        };
        Some(format!("{what} than max_length {max_length}; the longest has {longest} tokens"))
    }
}

/// How full packs are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackReport {
    /// Number of packs.
    pub packs: usize,
    /// Longest pack in tokens.
    pub longest: usize,
    /// Tokens in packs over `packs * max_length`.
    pub fill: f64,
}

/// What one source gave.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceReport {
    /// Its name in the recipe.
    pub name: String,
    /// Its split, with the slice.
    pub split: String,
    /// What its rows are.
    pub format: Format,
    /// Whether its tokens were in the cache.
    pub from_cache: bool,
    /// Counts.
    pub stats: SourceStats,
}

/// Makes the data of `recipe` for `world_size` ranks.
///
/// `model_max_length` in tokens is the `max_length` of a recipe that gives none. Tokens are cached in `data.cache_dir`; the rest is
/// a pure function of the arguments and the files. `on_progress` hears of sources that are not in the cache, from none of their rows
/// on, every few hundred.
///
/// # Errors
///
/// Everything that can be wrong with the sources, the chat template or the cache, and too little data for the ranks.
pub fn prepare(
    recipe: &Recipe,
    model_max_length: usize,
    tokenizer: &Tokenizer,
    world_size: usize,
    on_progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Datasets> {
    let data = &recipe.data;
    let context = Context {
        recipe,
        tokenizer,
        world_size,
        max_length: data.max_length.unwrap_or(model_max_length),
    };
    let (mut train, mut train_report) = context.load(&data.sources, "training", on_progress)?;
    let (mut eval, mut eval_report) = (None, None);
    if !data.eval_sources.is_empty() {
        let (dataset, report) = context.load(&data.eval_sources, "evaluation", on_progress)?;
        (eval, eval_report) = (Some(dataset), Some(report));
    }
    // Split before anything is repeated: held-out samples are never trained on. (The reference repeats first.)
    if data.train_eval_split.1 > 0.0 {
        let (train_places, eval_places) =
            train_test_split(train.len(), data.train_eval_split.1, data.seed)?;
        eval = Some(train.select(eval_places));
        train = train.select(train_places);
    }
    let fingerprint = train.fingerprint();
    let train = context.enough(train)?;
    train_report.len = train.len();
    Ok(Datasets {
        train,
        eval,
        fingerprint,
        report: PrepareReport { train: train_report, eval: eval_report },
    })
}

struct Context<'a> {
    recipe: &'a Recipe,
    tokenizer: &'a Tokenizer,
    world_size: usize,
    max_length: usize,
}

impl Context<'_> {
    fn load(
        &self,
        sources: &[Source],
        what: &'static str,
        on_progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(Dataset, SetReport)> {
        let data = &self.recipe.data;
        let mut stores = Vec::new();
        let mut reports = Vec::new();
        for source in sources {
            let (store, format, from_cache) =
                tokenize_source(source, data, self.tokenizer, on_progress)?;
            let stats = store.stats().clone();
            reports.push(SourceReport {
                name: source.name_or_path.clone(),
                split: source.split.clone(),
                format,
                from_cache,
                stats,
            });
            stores.push(store);
        }
        let corpus = self.fit(Corpus::new(stores, self.samples_per_row()))?;

        let mixed = self.mix(sources, &corpus, what)?;
        let samples = self.without_too_long(self.shuffled(&mixed), &corpus)?;
        let tokens = samples.iter().map(|&sample| u64::from(corpus.len_of(sample))).sum();
        let num_whole = corpus.whole_lengths().count();
        let too_long = corpus.whole_lengths().filter(|&len| len as usize > self.max_length).count();
        let (dropped_too_long, pieces) = match data.excess_length {
            ExcessLength::Truncate | ExcessLength::Split => {
                (corpus.num_cut_away(), corpus.num_samples() - (num_whole - too_long))
            }
            ExcessLength::Drop | ExcessLength::Raise if data.filter_samples => (too_long, 0),
            ExcessLength::Drop | ExcessLength::Raise => (0, 0),
        };
        let mut report = SetReport {
            sources: reports,
            max_length: self.max_length,
            longest: corpus.whole_lengths().max().unwrap_or(0) as usize,
            too_long,
            dropped_too_long,
            pieces,
            samples: samples.len(),
            tokens,
            packs: None,
            len: 0,
        };
        if let Some(line) = report.about_length() {
            tracing::warn!("{what} data: {line}");
        }
        let (corpus, packs) = if data.is_sliced() {
            self.slice(&samples, corpus, what)?
        } else if data.pack_samples {
            let packs = self.pack(&samples, &corpus.lens())?;
            (corpus, packs)
        } else {
            (corpus, Packs::singletons(&samples))
        };
        let dataset = Dataset::new(Arc::new(corpus), packs);
        if data.pack_samples {
            report.packs = Some(self.pack_report(&dataset));
        }
        if data.is_sliced() {
            // Without what fills no row.
            report.tokens = (0..dataset.len()).map(|row| dataset.sample_len(row) as u64).sum();
        }
        report.len = dataset.len();
        Ok((dataset, report))
    }

    /// The samples as `excess_length` wants them, unless it drops those that are too long.
    fn fit(&self, corpus: Corpus) -> Result<Corpus> {
        let is_too_long = |len: &u32| *len as usize > self.max_length;
        match self.recipe.data.excess_length {
            ExcessLength::Drop => Ok(corpus),
            ExcessLength::Truncate => corpus.cut(self.max_length, false),
            ExcessLength::Split => corpus.cut(self.max_length, true),
            ExcessLength::Raise => match corpus.whole_lengths().filter(is_too_long).count() {
                0 => Ok(corpus),
                samples => Err(Error::TooLong {
                    samples,
                    max_length: self.max_length,
                    longest: corpus.whole_lengths().max().map_or(0, |len| len as usize),
                }),
            },
        }
    }

    /// The samples of all sources one after the other, each source as often as its `epochs` or its `weight` say. What is less than once
    /// more is a choice by its `sample_seed`.
    ///
    /// # Errors
    ///
    /// [`Error::NothingSampled`] if a source has less than one sample in the mix; [`Error::TooManySamples`].
    fn mix(&self, sources: &[Source], corpus: &Corpus, what: &'static str) -> Result<Vec<u32>> {
        let samples: Vec<Vec<u32>> = (0..sources.len())
            .map(|index| {
                let samples = corpus.samples_of(index);
                // A share is one of what is trained on.
                let is_mixed =
                    |sample: &u32| sources[index].weight.is_none() || self.fits(corpus, *sample);
                samples.filter(is_mixed).collect()
            })
            .collect();
        let sizes: Vec<usize> = samples.iter().map(Vec::len).collect();
        let counts = counts(sources, &sizes, self.recipe.data.stopping_strategy);
        let mut mixed = Vec::with_capacity(corpus.num_samples());
        for (index, (source, count)) in sources.iter().zip(counts).enumerate() {
            let samples = &samples[index];
            let rows = corpus.samples_of(index).len();
            if rows == 0 {
                continue;
            }
            if count == 0 {
                let source_name = source.name_or_path.clone();
                return Err(Error::NothingSampled { source_name, rows });
            }
            // Before there is memory for them.
            check_count(mixed.len().saturating_add(count), what)?;
            for _ in 0..count / samples.len() {
                mixed.extend_from_slice(samples);
            }
            let rest = count % samples.len();
            if rest > 0 {
                let chosen = PythonRandom::new(source.sample_seed).sample(samples.len(), rest);
                mixed.extend(chosen.into_iter().map(|i| samples[i]));
            }
        }
        Ok(mixed)
    }

    /// Whether a sample is not dropped for its length.
    fn fits(&self, corpus: &Corpus, sample: u32) -> bool {
        !self.recipe.data.filter_samples || corpus.longest_of(sample) as usize <= self.max_length
    }

    fn without_too_long(&self, mut samples: Vec<u32>, corpus: &Corpus) -> Result<Vec<u32>> {
        if !self.recipe.data.filter_samples {
            return Ok(samples);
        }
        samples.retain(|&sample| self.fits(corpus, sample));
        if samples.is_empty() {
            return Err(Error::AllTooLong {
                dropped: corpus.whole_lengths().count(),
                max_length: self.max_length,
                shortest: corpus.whole_lengths().min().unwrap_or(0) as usize,
                longest: corpus.whole_lengths().max().unwrap_or(0) as usize,
            });
        }
        Ok(samples)
    }

    fn pack(&self, samples: &[u32], lengths: &[u32]) -> Result<Packs> {
        let data = &self.recipe.data;
        let max_length = data.row_length(self.max_length);
        let rule = pack_rule(data, max_length);
        let repeated;
        let samples = if data.repeat_to_pack_max_length {
            repeated = repeat_to_max_length(samples, lengths, max_length);
            &repeated
        } else {
            samples
        };
        let shuffled = self.shuffled(samples);
        let packs = match data.packing {
            Packing::Reference => pack_reference(&shuffled, lengths, data.num_proc, &rule),
            Packing::Global => {
                if data.always_max_length {
                    return Err(Error::AlwaysMaxLengthWithGlobal);
                }
                let longest = samples
                    .iter()
                    .map(|&sample| lengths[sample as usize] as usize)
                    .max()
                    .unwrap_or(0);
                if longest > max_length {
                    return Err(Error::LongerThanMaxLength { len: longest, max_length });
                }
                pack_global(&shuffled, lengths, &rule)
            }
        };
        if packs.is_empty() {
            let tokens = samples.iter().map(|&sample| lengths[sample as usize] as usize).sum();
            return Err(Error::NoPackLeft { samples: samples.len(), tokens, max_length });
        }
        Ok(packs)
    }

    /// Rows of exactly `max_length` tokens, and the pieces that they are made of.
    fn slice(
        &self,
        samples: &[u32],
        corpus: Corpus,
        what: &'static str,
    ) -> Result<(Corpus, Packs)> {
        let data = &self.recipe.data;
        let shuffled = self.shuffled(samples);
        let max_length = u32::try_from(self.max_length).unwrap_or(u32::MAX);
        let (rows, left_over) =
            slice_reference(&shuffled, &corpus.lens(), data.num_proc, max_length);
        if rows.is_empty() {
            let tokens = samples.iter().map(|&sample| corpus.len_of(sample) as usize);
            return Err(Error::NoPackLeft {
                samples: samples.len(),
                tokens: tokens.sum(),
                max_length: self.max_length,
            });
        }
        if left_over > 0 {
            tracing::warn!(
                "{what} data: dropped the last {left_over} tokens of {} parts (data.num_proc), which fill no row of max_length {}, as the reference does; `data.packing: global` keeps them",
                data.num_proc.min(samples.len()),
                self.max_length
            );
        }
        let packs = Packs::consecutive(rows.iter().map(Vec::len));
        let labels_starts = data.label_mask == LabelMask::Reference;
        Ok((corpus.sliced(rows.iter().flatten(), labels_starts), packs))
    }

    fn shuffled(&self, samples: &[u32]) -> Vec<u32> {
        let order = numpy_permutation(self.recipe.data.seed, samples.len());
        order.into_iter().map(|place| samples[place]).collect()
    }

    /// Samples that were made of a row of a source.
    fn samples_per_row(&self) -> usize {
        match self.recipe.data.trainer {
            Trainer::Sft | Trainer::Causal => 1,
            Trainer::Dpo => 2,
        }
    }

    fn pack_report(&self, packed: &Dataset) -> PackReport {
        let max_length = self.recipe.data.row_length(self.max_length);
        let lengths = || (0..packed.len()).map(|pack| packed.sample_len(pack));
        PackReport {
            packs: packed.len(),
            longest: lengths().max().unwrap_or(0),
            fill: lengths().sum::<usize>() as f64 / (packed.len() * max_length) as f64,
        }
    }

    /// Training data that gives every rank at least one micro-batch, repeated as `min_iterations` asks. Evaluation data needs neither:
    /// each of its samples is used once, whatever the ranks.
    fn enough(&self, dataset: Dataset) -> Result<Dataset> {
        let what = "training";
        check_count(self.required_len().max(dataset.len()), what)?;
        let dataset = self.replicate(dataset);
        if dataset.len() < self.world_size {
            return Err(Error::FewerSamplesThanRanks {
                what,
                samples: dataset.len(),
                world_size: self.world_size,
            });
        }
        self.check_micro_batch(&dataset, what)?;
        Ok(dataset)
    }

    /// `min_iterations`: the data again and again until it gives that many steps on every rank.
    ///
    /// The reference counts every rank as one that reads its own samples, so that under sequence parallelism there are `sp`
    /// times more micro-batches than asked for; the same here.
    fn replicate(&self, dataset: Dataset) -> Dataset {
        let required = self.required_len();
        if required <= dataset.len() {
            return dataset;
        }
        dataset.select((0..required).map(|place| place % dataset.len()))
    }

    /// Samples that `min_iterations` asks for.
    fn required_len(&self) -> usize {
        let recipe = self.recipe;
        recipe.min_iterations
            * recipe.micro_batch_size
            * recipe.gradient_accumulation_steps
            * self.world_size
    }

    /// A last micro-batch that is not full is dropped, so there has to be a full one.
    fn check_micro_batch(&self, dataset: &Dataset, what: &'static str) -> Result<()> {
        let per_rank = dataset.len().div_ceil(self.world_size);
        let micro_batch_size = self.recipe.micro_batch_size;
        if per_rank < micro_batch_size {
            let (samples, world_size) = (dataset.len(), self.world_size);
            return Err(Error::NoFullMicroBatch {
                what,
                samples,
                per_rank,
                world_size,
                micro_batch_size,
            });
        }
        Ok(())
    }
}

/// How many samples of each source are in the mix, of sources that have so many.
///
/// By weights `w`, a mix of `t` samples has `t * w_i / sum(w)` of source `i`: with `first_exhausted` for the largest `t` that asks no source
/// for more than it has, with `all_exhausted` for the smallest that takes all of each. Sources without samples do not count.
fn counts(sources: &[Source], sizes: &[usize], strategy: StoppingStrategy) -> Vec<usize> {
    let by_epochs = |(source, &size): (&Source, &usize)| {
        let whole = source.epochs.floor();
        let rest = ((source.epochs - whole) * size as f64).round() as usize;
        (whole as usize).saturating_mul(size).saturating_add(rest)
    };
    // Samples for each unit of weight.
    let rates = sources
        .iter()
        .zip(sizes)
        .filter(|(_, size)| **size > 0)
        .filter_map(|(source, &size)| Some(size as f64 / source.weight?));
    let rate = match strategy {
        StoppingStrategy::FirstExhausted => rates.reduce(f64::min),
        StoppingStrategy::AllExhausted => rates.reduce(f64::max),
    };
    let count = |(source, size): (&Source, &usize)| match (source.weight, rate) {
        (Some(weight), Some(rate)) => (rate * weight).round() as usize,
        _ => by_epochs((source, size)),
    };
    sources.iter().zip(sizes).map(count).collect()
}

fn check_count(samples: usize, what: &'static str) -> Result<()> {
    if samples > MAX_RANDPERM_LEN {
        return Err(Error::TooManySamples { what, samples });
    }
    Ok(())
}

/// Takes the packing keys out of `data`.
fn pack_rule(data: &DataOptions, max_length: usize) -> PackRule {
    PackRule {
        max_length,
        always_max_length: data.always_max_length,
        drop_last: data.drop_last,
        fuse_positions_prob: data.fuse_positions_prob,
        seed: data.seed,
    }
}

/// `datasets.Dataset.train_test_split(test_size=eval_fraction, seed=seed)` of `len` samples: the places of training and of evaluation,
/// which takes the start of the permutation.
///
/// # Errors
///
/// [`Error::EmptySplit`] if one side would have nothing.
pub fn train_test_split(
    len: usize,
    eval_fraction: f64,
    seed: u64,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let num_eval = (eval_fraction * len as f64).ceil() as usize;
    if num_eval == 0 || num_eval >= len {
        return Err(Error::EmptySplit { samples: len, eval: num_eval });
    }
    let mut eval = numpy_permutation(seed, len);
    let train = eval.split_off(num_eval);
    Ok((train, eval))
}
