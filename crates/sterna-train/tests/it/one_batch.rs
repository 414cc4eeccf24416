//! The tiny model and one micro-batch of its chats, for tests of the engine by itself.

use std::path::Path;

use sterna_arch::ModelConfig;
use sterna_comm::{Comm, RankEnv};
use sterna_data::{MicroBatch, MicroBatches, prepare};
use sterna_hf::{Tokenizer, WeightFiles};
use sterna_plan::{DeviceType, Plan};
use sterna_recipe::Recipe;
use sterna_train::{
    engine::{Engine, EngineOptions},
    load::WeightSource,
};
use tch::Device;

use crate::tiny;

pub(crate) struct OneBatch {
    recipe: Recipe,
    pub(crate) config: ModelConfig,
    pub(crate) batch: MicroBatch,
    pub(crate) comm: Comm,
    pub(crate) plan: Plan,
    files: WeightFiles,
}

impl OneBatch {
    pub(crate) fn new(folder: &Path) -> Self {
        Self::of_rank(folder, &RankEnv::single())
    }

    /// On a rank of one sequence-parallel group.
    pub(crate) fn of_rank(folder: &Path, env: &RankEnv) -> Self {
        let recipe = tiny::load(folder, &format!("one-batch-{}", env.rank), &tiny::recipe(folder));
        let model = folder.join("model");
        let config = ModelConfig::from_dir(&model).expect("a config");
        let tokenizer = Tokenizer::from_dir(&model).expect("a tokenizer");
        let data = prepare(&recipe, 96, &tokenizer, 1, &mut |_| ()).expect("data");
        let timeout = std::time::Duration::from_secs(30);
        let comm = Comm::init(env, env.world_size, timeout).expect("joined");
        let batches =
            MicroBatches::new(&data.train, &recipe, comm.mesh, 96, tokenizer.pad_token_id());
        Self {
            batch: batches.get(0).expect("a micro-batch"),
            plan: Plan::new(&recipe, &config, 1, DeviceType::Cpu).expect("a plan"),
            files: WeightFiles::open(&model).expect("weights"),
            comm,
            recipe,
            config,
        }
    }

    /// As the plan has it, with all attention outputs kept.
    pub(crate) fn options(&self) -> EngineOptions {
        let num_attention = self.config.num_hidden_layers();
        EngineOptions::new(&self.plan, Device::Cpu, num_attention, None).expect("options")
    }

    /// With the model's weights.
    pub(crate) fn engine(&self, options: EngineOptions) -> Engine<'_> {
        let engine = Engine::new(&self.comm, &self.config.arch, &self.recipe, options);
        let mut engine = engine.expect("an engine");
        engine.zero.load(&WeightSource::Files(&self.files)).expect("weights");
        engine
    }
}
