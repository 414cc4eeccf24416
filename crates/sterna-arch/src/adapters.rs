//! Low-rank adapters: what PEFT's `LoraConfig` makes of an architecture.
//!
//! ```text
//! y = W x + bias + scale * B A x                       A [r, in], B [out, r]
//! y = m * (W x + scale * B A x) / |W + scale * B A| + bias    with DoRA, m and the norms by row
//! ```
//!
//! The weights of the base are frozen: no gradient, no optimizer state, no part in checkpoints. Keys, defaults and matching of names are
//! those of PEFT (0.18 `tuners/lora/config.py`, `tuners/tuners_utils.py`).
//!
//! Source: Hu et al. 2021, <https://arxiv.org/abs/2106.09685>; Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732> (rsLoRA); Liu et al.
//! 2024, <https://arxiv.org/abs/2402.09353> (DoRA).

use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::config::ModelConfig;
use crate::config::reader::Reader;
use crate::error::{Error, Result};
use crate::layer::{Architecture, Layer, LowRank};
use crate::parameters::{Init, ParamSpec, Role};

/// A low-rank adapter, as PEFT's `LoraConfig` says it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// The rank of a module that no pattern names.
    pub r: usize,
    /// What `scale` is made of: `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Which linear maps have an adapter.
    pub target_modules: Modules,
    /// Which of those have none.
    pub exclude_modules: Option<Modules>,
    /// Which biases are trained.
    pub bias: LoraBias,
    /// Modules that are trained whole.
    pub modules_to_save: Vec<String>,
    /// `lora_alpha / sqrt(r)` instead.
    pub use_rslora: bool,
    /// Whether magnitude and direction are apart.
    pub use_dora: bool,
    /// What A and B begin with.
    pub init_lora_weights: LoraInit,
    /// Ranks of modules whose names match, in order of precedence.
    pub rank_pattern: Vec<(String, usize)>,
    /// `lora_alpha` of modules whose names match, in order of precedence.
    pub alpha_pattern: Vec<(String, f64)>,
    /// The layers that have adapters; empty is all.
    pub layers_to_transform: Vec<usize>,
    /// What stands before the number of a layer in names, regular expressions; empty is anything.
    pub layers_pattern: Vec<String>,
    /// What a file of PEFT trained its adapters with, and training here does without.
    pub lora_dropout: f64,
    /// Whether it is of a file of PEFT, which may name modules that other models have.
    pub is_of_file: bool,
    /// The keys as they were read.
    pub raw: Map<String, Value>,
}

/// The keys as they were read.
impl Serialize for LoraConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.raw.serialize(serializer)
    }
}

/// Some of a model's modules, by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Modules {
    /// Every linear map but the head and routers.
    AllLinear,
    /// Those whose name is or ends with one of these.
    Names(Vec<String>),
    /// Those whose whole name matches a regular expression.
    Pattern(String),
}

/// Which biases are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraBias {
    /// None.
    None,
    /// Every one.
    All,
    /// Those of linear maps with an adapter.
    LoraOnly,
}

/// What A and B begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraInit {
    /// A uniform in `1 / sqrt(in)` both ways, B zero.
    Default,
    /// A normal with a deviation of `1 / r`, B zero.
    Gaussian,
    /// A as by default, B uniform in `1 / sqrt(r)` both ways: the model does not begin as its base.
    Random,
}

/// Keys of PEFT that change nothing here, whatever their value.
const INERT: [&str; 8] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Keys of PEFT that are not there, with the reason.
const REFUSED: [(&str, &str); 15] = [
    ("alora_invocation_tokens", "an adapter is on for every token"),
    ("arrow_config", "an adapter is on for every token"),
    ("corda_config", "no first values need a pass over data"),
    ("ensure_weight_tying", "a tied embedding cannot be trained beside adapters"),
    ("eva_config", "no first values need a pass over data"),
    ("fan_in_fan_out", "no supported class stores weights as `[in, out]`"),
    ("layer_replication", "the layers are those of the base"),
    ("loftq_config", "the base is not quantised"),
    ("lora_bias", "`B` has no bias"),
    ("lora_dropout", "training here has no dropout"),
    ("megatron_config", "there are no Megatron layers"),
    ("target_parameters", "adapters are on linear maps, not on experts stored in one tensor"),
    ("trainable_token_indices", "rows of the embedding are not trained by themselves"),
    ("use_bdlora", "`B A` is one product of two"),
    ("use_qalora", "the base is not quantised"),
];

impl LoraConfig {
    /// Reads a mapping with PEFT's keys, as a recipe has it; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for a key or value that is not supported, with the key as it stands in the mapping.
    pub fn from_recipe(map: &Map<String, Value>, path: &Path) -> Result<LoraConfig> {
        Self::read(map, path, false)
    }

    /// The same of an `adapter_config.json` at `path`.
    ///
    /// # Errors
    ///
    /// As [`LoraConfig::from_recipe`].
    pub fn from_file(map: &Map<String, Value>, path: &Path) -> Result<LoraConfig> {
        Self::read(map, path, true)
    }

    fn read(map: &Map<String, Value>, path: &Path, is_of_file: bool) -> Result<LoraConfig> {
        let reader = Reader::new(path, map);
        check_keys(&reader, map, is_of_file)?;
        let targets = reader.get("target_modules");
        let Some(target_modules) = targets.map(|value| modules(&reader, "target_modules", value))
        else {
            let required = "a list of names, a regular expression, or `all-linear`".to_owned();
            return Err(reader.refuse("target_modules", "missing".to_owned(), required));
        };
        let exclude_modules = reader.get("exclude_modules");
        let exclude_modules =
            exclude_modules.map(|value| modules(&reader, "exclude_modules", value));
        let names = |key: &str| reader.or(key, Vec::new(), Self::names);
        let lora = LoraConfig {
            r: reader.or("r", 8, Reader::size)?,
            lora_alpha: reader.or("lora_alpha", 8.0, Reader::positive)?,
            target_modules: target_modules?,
            exclude_modules: exclude_modules.transpose()?,
            bias: reader.or("bias", LoraBias::None, LoraBias::read)?,
            modules_to_save: names("modules_to_save")?,
            use_rslora: reader.flag("use_rslora", false)?,
            use_dora: reader.flag("use_dora", false)?,
            init_lora_weights: reader.or("init_lora_weights", LoraInit::Default, LoraInit::read)?,
            rank_pattern: pattern(&reader, "rank_pattern", Reader::size)?,
            alpha_pattern: pattern(&reader, "alpha_pattern", Reader::positive)?,
            layers_to_transform: reader.or("layers_to_transform", Vec::new(), layer_numbers)?,
            layers_pattern: names("layers_pattern")?,
            lora_dropout: reader.or("lora_dropout", 0.0, Reader::non_negative)?,
            is_of_file,
            raw: map.clone(),
        };
        lora.check_together(&reader)?;
        Ok(lora)
    }

    /// Refuses what has no meaning together, as PEFT does.
    fn check_together(&self, reader: &Reader<'_>) -> Result<()> {
        for key in ["layers_to_transform", "layers_pattern"] {
            if let (Modules::Pattern(_) | Modules::AllLinear, Some(value)) =
                (&self.target_modules, reader.get(key))
            {
                let required = "absent unless `target_modules` is a list of names";
                return Err(reader.wrong(key, value, required));
            }
        }
        if let (None, Some(value)) =
            (reader.get("layers_to_transform"), reader.get("layers_pattern"))
        {
            let required = "absent without `layers_to_transform`";
            return Err(reader.wrong("layers_pattern", value, required));
        }
        for name in &self.layers_pattern {
            layer_number(name)
                .map_err(|error| wrong_pattern(reader, "layers_pattern", name, &error))?;
        }
        if let (true, LoraInit::Random, false) =
            (self.use_dora, self.init_lora_weights, self.is_of_file)
        {
            let required =
                "`true` or `gaussian` with `use_dora`, whose magnitudes begin as the base's";
            return Err(reader.wrong("init_lora_weights", &Value::Bool(false), required));
        }
        Ok(())
    }

    /// Reads `adapter_config.json` of a folder of PEFT.
    ///
    /// # Errors
    ///
    /// [`Error::MissingFile`], [`Error::Read`], [`Error::Json`], and those of [`LoraConfig::from_file`].
    pub fn from_dir(dir: &Path) -> Result<LoraConfig> {
        let path = dir.join(CONFIG_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::MissingFile { path });
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        let map = serde_json::from_str(&text)
            .map_err(|source| Error::Json { path: path.clone(), source })?;
        LoraConfig::from_file(&map, &path)
    }

    /// The keys that it reads, in the order of PEFT's own file.
    const KEYS: [&str; 15] = [
        "peft_type",
        "task_type",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "bias",
        "use_rslora",
        "modules_to_save",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "use_dora",
    ];

    fn names(reader: &Reader<'_>, key: &str, value: &Value) -> Result<Vec<String>> {
        let of = |value: &Value| value.as_str().map(str::to_owned);
        let names = match value {
            Value::Array(all) => all.iter().map(of).collect(),
            value => of(value).map(|name| vec![name]),
        };
        names.ok_or_else(|| reader.wrong(key, value, "a list of names"))
    }

    /// The rank and `scale` of a module.
    fn of_module(&self, patterns: &Patterns, module: &str) -> (usize, f64) {
        let rank = Patterns::first(&patterns.ranks, module).unwrap_or(self.r);
        let alpha = Patterns::first(&patterns.alphas, module).unwrap_or(self.lora_alpha);
        let by = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        (rank, alpha / by)
    }
}

impl LoraBias {
    fn read(reader: &Reader<'_>, key: &str, value: &Value) -> Result<LoraBias> {
        match value.as_str() {
            Some("none") => Ok(LoraBias::None),
            Some("all") => Ok(LoraBias::All),
            Some("lora_only") => Ok(LoraBias::LoraOnly),
            _ => Err(reader.wrong(key, value, "`none`, `all` or `lora_only`")),
        }
    }
}

impl LoraInit {
    fn read(reader: &Reader<'_>, key: &str, value: &Value) -> Result<LoraInit> {
        match value {
            Value::Bool(true) => Ok(LoraInit::Default),
            Value::Bool(false) => Ok(LoraInit::Random),
            Value::String(name) if name.eq_ignore_ascii_case("gaussian") => Ok(LoraInit::Gaussian),
            _ => {
                let required = "`true`, `false` or `gaussian`: other first values change the weights \
                                of the base or need a pass over data";
                Err(reader.wrong(key, value, required))
            }
        }
    }
}

/// One number, or a list of them.
fn layer_numbers(reader: &Reader<'_>, key: &str, value: &Value) -> Result<Vec<usize>> {
    let of = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    let numbers = match value {
        Value::Array(all) => all.iter().map(of).collect(),
        value => of(value).map(|number| vec![number]),
    };
    numbers.ok_or_else(|| reader.wrong(key, value, "numbers of layers, from 0"))
}

/// Refuses another kind of adapter, and keys that are not supported.
fn check_keys(reader: &Reader<'_>, map: &Map<String, Value>, is_of_file: bool) -> Result<()> {
    let peft_type = reader.required("peft_type", Reader::string)?;
    if !peft_type.eq_ignore_ascii_case("lora") {
        let required = "`LORA`, the one kind of adapter that is supported".to_owned();
        return Err(reader.refuse("peft_type", format!("`{peft_type}`"), required));
    }
    if let Some(value) = reader.get("task_type")
        && value.as_str() != Some("CAUSAL_LM")
    {
        return Err(reader.wrong("task_type", value, "`CAUSAL_LM`"));
    }
    for (key, value) in map {
        let is_known = LoraConfig::KEYS.contains(&key.as_str()) || INERT.contains(&key.as_str());
        // What adapters were trained with is no matter for their use.
        if is_known || is_idle(value) || (is_of_file && key == "lora_dropout") {
            continue;
        }
        let required = match REFUSED.iter().find(|(refused, _)| refused == key) {
            Some((_, why)) => format!("absent: {why}"),
            None => format!("absent, or one of {}", listed(LoraConfig::KEYS)),
        };
        return Err(reader.wrong(key, value, required));
    }
    Ok(())
}

/// Whether a value of an unknown key asks for nothing.
fn is_idle(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(all) => all.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::String(_) => false,
    }
}

fn listed(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let names = names.into_iter().map(|name| format!("`{}`", name.as_ref()));
    names.collect::<Vec<_>>().join(", ")
}

fn modules(reader: &Reader<'_>, key: &str, value: &Value) -> Result<Modules> {
    match value {
        Value::String(name) if name.eq_ignore_ascii_case("all-linear") => Ok(Modules::AllLinear),
        Value::String(pattern) => {
            whole(pattern).map_err(|error| wrong_pattern(reader, key, pattern, &error))?;
            Ok(Modules::Pattern(pattern.clone()))
        }
        Value::Array(all) if !all.is_empty() => {
            Ok(Modules::Names(LoraConfig::names(reader, key, value)?))
        }
        value => {
            Err(reader.wrong(key, value, "a list of names, a regular expression, or `all-linear`"))
        }
    }
}

fn pattern<'a, T>(
    reader: &Reader<'a>,
    key: &str,
    of: impl Fn(&Reader<'a>, &str, &Value) -> Result<T>,
) -> Result<Vec<(String, T)>> {
    let Some(value) = reader.get(key) else { return Ok(Vec::new()) };
    let Value::Object(map) = value else {
        return Err(reader.wrong(key, value, "a mapping from names or regular expressions"));
    };
    let entry = |(name, value): (&String, &Value)| {
        suffix(name).map_err(|error| wrong_pattern(reader, key, name, &error))?;
        Ok((name.clone(), of(reader, &format!("{key}.{name}"), value)?))
    };
    map.iter().map(entry).collect()
}

fn wrong_pattern(reader: &Reader<'_>, key: &str, pattern: &str, error: &regex::Error) -> Error {
    // The last line says what is wrong; those before show where.
    let error = error.to_string();
    let why = error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let required = format!("a regular expression without look-around and back-references ({why})");
    reader.refuse(key, format!("`{pattern}`"), required)
}

/// What matches a whole name.
fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!(r"\A(?:{pattern})\z"))
}

/// What matches the end of a name, from a dot on.
fn suffix(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!(r"\A(?:.*\.)?(?:{pattern})\z"))
}

/// What finds the number of a layer in a module's name; `before` stands before it.
fn layer_number(before: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!(r"\A.*\.(?:{before})\.([0-9]+)\."))
}

/// The patterns of a [`LoraConfig`], which it has checked.
struct Patterns {
    layers: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
    targets: Targets,
    excluded: Option<Targets>,
}

enum Targets {
    All,
    Names(Vec<String>),
    Pattern(Regex),
}

impl Patterns {
    const CHECKED: &str = "patterns are checked when they are read";

    fn new(lora: &LoraConfig) -> Patterns {
        fn of<T: Copy>(pairs: &[(String, T)]) -> Vec<(Regex, T)> {
            let one =
                |(name, value): &(String, T)| (suffix(name).expect(Patterns::CHECKED), *value);
            pairs.iter().map(one).collect()
        }
        let layers = match &lora.layers_pattern[..] {
            // The last number, which is an expert's where a module has one.
            [] => vec![layer_number("[^.]*").expect(Patterns::CHECKED)],
            all => all.iter().map(|name| layer_number(name).expect(Patterns::CHECKED)).collect(),
        };
        Patterns {
            layers,
            ranks: of(&lora.rank_pattern),
            alphas: of(&lora.alpha_pattern),
            targets: Targets::new(&lora.target_modules),
            excluded: lora.exclude_modules.as_ref().map(Targets::new),
        }
    }

    fn first<T: Copy>(of: &[(Regex, T)], module: &str) -> Option<T> {
        of.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
    }
}

impl Patterns {
    /// Whether a module has an adapter, unless it is excluded. A whole name is of any layer.
    fn target(&self, lora: &LoraConfig, module: &str) -> bool {
        let is_whole = matches!(&self.targets, Targets::Names(names) if names.iter().any(|name| name == module));
        let layers = &lora.layers_to_transform;
        let is_of_layer =
            || layers.is_empty() || self.layer_of(module).is_some_and(|n| layers.contains(&n));
        is_whole || (self.targets.include(module) && is_of_layer())
    }

    /// The number of the layer that a module is in.
    fn layer_of(&self, module: &str) -> Option<usize> {
        let captures = self.layers.iter().find_map(|pattern| pattern.captures(module))?;
        captures.get(1)?.as_str().parse().ok()
    }
}

impl Targets {
    fn new(modules: &Modules) -> Targets {
        match modules {
            Modules::AllLinear => Targets::All,
            Modules::Names(names) => Targets::Names(names.clone()),
            Modules::Pattern(pattern) => Targets::Pattern(whole(pattern).expect(Patterns::CHECKED)),
        }
    }

    fn include(&self, module: &str) -> bool {
        match self {
            Targets::All => true,
            Targets::Names(names) => names.iter().any(|name| ends_with(module, name)),
            Targets::Pattern(pattern) => pattern.is_match(module),
        }
    }
}

/// Whether a module's name is `name`, or ends with it from a dot on.
fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

impl Architecture {
    /// Freezes every weight and gives the linear maps that `lora` names an adapter, whose weights are the layer's last.
    ///
    /// # Errors
    ///
    /// [`Error::Adapter`] if a name or a layer is none of this model's, or if what is asked for cannot be trained.
    pub fn add_lora(&mut self, lora: &LoraConfig) -> Result<()> {
        let wrong = |key: &'static str, found: String, required: String| Error::Adapter {
            key,
            found,
            required,
        };
        let patterns = Patterns::new(lora);
        let modules_of_model: BTreeSet<String> =
            self.layers.iter().flat_map(linear_modules).collect();
        let weights = self.all_params_mut().filter(|spec| spec.role == Role::Trained);
        weights.for_each(|spec| spec.role = Role::Frozen);
        let mut adapted = BTreeSet::new();
        for layer in &mut self.layers {
            for module in linear_modules(layer) {
                let is_excluded =
                    patterns.excluded.as_ref().is_some_and(|all| all.include(&module))
                        || lora.modules_to_save.iter().any(|name| has_part(&module, name));
                if !is_excluded && patterns.target(lora, &module) {
                    let (rank, scale) = lora.of_module(&patterns, &module);
                    layer.adapt(&module, rank, scale, lora);
                    adapted.insert(module);
                }
            }
        }
        let known = || {
            let last = |module: &String| module.rsplit('.').next().unwrap_or(module).to_owned();
            let all: BTreeSet<String> = modules_of_model.iter().map(last).collect();
            format!("linear maps of the layers of this model: {}", listed(all))
        };
        // A file of PEFT may be of several models.
        if let (Modules::Names(names), false) = (&lora.target_modules, lora.is_of_file) {
            let is_none =
                |name: &&String| !modules_of_model.iter().any(|module| ends_with(module, name));
            if let Some(name) = names.iter().find(is_none) {
                return Err(wrong("target_modules", format!("`{name}`"), known()));
            }
            let numbers = modules_of_model.iter().filter_map(|module| patterns.layer_of(module));
            let numbers: BTreeSet<usize> = numbers.collect();
            if let Some(layer) =
                lora.layers_to_transform.iter().find(|layer| !numbers.contains(layer))
            {
                let most = numbers.last().copied().unwrap_or(0);
                let required = format!("numbers that names of modules have, 0 to {most}");
                return Err(wrong("layers_to_transform", format!("`{layer}`"), required));
            }
        }
        if adapted.is_empty() {
            let found = match &lora.target_modules {
                Modules::Pattern(pattern) => format!("`{pattern}`, which matches no module"),
                _ => "left without a module by `exclude_modules`, `modules_to_save` or `layers_to_transform`"
                    .to_owned(),
            };
            return Err(wrong("target_modules", found, known()));
        }
        self.train_biases(lora, &adapted);
        self.train_modules(lora, &adapted)
    }

    /// Trains the biases that `lora` asks for.
    fn train_biases(&mut self, lora: &LoraConfig, adapted: &BTreeSet<String>) {
        let is_trained = |name: &str| match lora.bias {
            LoraBias::None => false,
            LoraBias::All => name.contains("bias"),
            LoraBias::LoraOnly => {
                name.strip_suffix(".bias").is_some_and(|module| adapted.contains(module))
            }
        };
        let all = self.all_params_mut().filter(|spec| spec.role == Role::Frozen);
        all.filter(|spec| is_trained(&spec.name)).for_each(|spec| spec.role = Role::Trained);
    }

    /// Trains the modules that `lora` names whole: as in PEFT, all whose name ends with one of these, and what is in them.
    fn train_modules(&mut self, lora: &LoraConfig, adapted: &BTreeSet<String>) -> Result<()> {
        let wrong = |name: &String, required: String| Error::Adapter {
            key: "modules_to_save",
            found: format!("`{name}`"),
            required,
        };
        let is_tied = self.is_tied();
        for name in &lora.modules_to_save {
            let mut is_there = false;
            for spec in self.all_params_mut() {
                let module =
                    spec.name.rsplit_once('.').map_or(&spec.name[..], |(module, _)| module);
                let within = module.match_indices('.').map(|(end, _)| &module[..end]);
                if !within.chain([module]).any(|module| module.ends_with(&name[..])) {
                    continue;
                }
                is_there = true;
                if is_tied && ends_with(module, "embed_tokens") {
                    let required = "none of embedding and head where they are one tensor: PEFT would \
                                    train a copy of one of them, and leave the other";
                    return Err(wrong(name, required.to_owned()));
                }
                if adapted.contains(module) {
                    let required = format!("no module with an adapter: it has `{module}`");
                    return Err(wrong(name, required));
                }
                match spec.role {
                    Role::Frozen => spec.role = Role::Trained,
                    Role::Buffer => {
                        let required = format!("modules of weights alone: it has `{}`", spec.name);
                        return Err(wrong(name, required));
                    }
                    Role::Trained | Role::Adapter => {}
                }
            }
            if !is_there {
                let modules = self.params().filter(|spec| spec.role == Role::Frozen);
                let part = |spec: &ParamSpec| {
                    let part = spec.name.rsplit('.').nth(1).map(str::to_owned);
                    part.filter(|part| part.parse::<usize>().is_err())
                };
                let known: BTreeSet<String> = modules.filter_map(part).collect();
                return Err(wrong(name, format!("modules with weights: {}", listed(known))));
            }
        }
        Ok(())
    }
}

/// What PEFT calls the file of a folder that says what its adapters are.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// What PEFT calls the file of a folder that has their weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The keys of PEFT's `LoraConfig` that can be set.
pub fn keys() -> impl Iterator<Item = &'static str> {
    LoraConfig::KEYS.into_iter()
}

/// Whether PEFT's `LoraConfig` has this key, be it supported or not.
pub fn is_key(key: &str) -> bool {
    let refused = REFUSED.iter().any(|(refused, _)| *refused == key);
    LoraConfig::KEYS.contains(&key) || INERT.contains(&key) || refused
}

/// What PEFT puts before the name of everything in its files.
const PREFIX: &str = "base_model.model.";
/// The end of the name of A.
const A: &str = ".lora_A.weight";
/// The magnitudes of DoRA.
const MAGNITUDE: &str = "lora_magnitude_vector";

/// The weight whose rows have the norms that DoRA's magnitudes begin with.
///
/// # Panics
///
/// If `spec` is not of magnitudes.
pub fn weight_of_magnitude(spec: &ParamSpec, row_len: usize) -> ParamSpec {
    let module = spec.name.strip_suffix(MAGNITUDE).expect("magnitudes of DoRA");
    ParamSpec::new(format!("{module}weight"), [spec.shape[0], row_len], Init::Constant(0.0))
}

/// The name that a parameter of an adapter has in PEFT's files.
pub fn name_of(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The name that a tensor of a run has in a file of PEFT, if `contains` one for it.
pub fn name_in(contains: impl Fn(&str) -> bool, name: &str) -> Option<String> {
    let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
    let names = [
        name_of(name),
        // A parameter of a module beside its adapter.
        format!("{PREFIX}{module}.base_layer.{last}"),
    ];
    names.into_iter().find(|name| contains(name))
}

/// The names that PEFT gives in its files to parameters that are trained, `names`, in their order.
pub fn export_names<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let adapted: BTreeSet<&str> = names.clone().filter_map(|name| name.strip_suffix(A)).collect();
    let exported = |name: &str| match name.rsplit_once('.') {
        Some((module, last)) if adapted.contains(module) && last != MAGNITUDE => {
            format!("{PREFIX}{module}.base_layer.{last}")
        }
        _ => name_of(name),
    };
    names.map(exported).collect()
}

impl Architecture {
    /// What an export of a run has, each with the name that it has there: every parameter, or under adapters what is trained, as
    /// PEFT names it.
    pub fn exported(&self) -> Vec<(String, &ParamSpec)> {
        if !self.has_adapters() {
            return self.params().map(|spec| (spec.name.clone(), spec)).collect();
        }
        let trained: Vec<&ParamSpec> = self.params().filter(|spec| spec.is_trained()).collect();
        export_names(trained.iter().map(|spec| &spec.name[..])).into_iter().zip(trained).collect()
    }
}

impl LoraConfig {
    /// An `adapter_config.json` of adapters of `base`, in which every key of PEFT that differs from its default is there.
    pub fn to_json(&self, base: &str, config: &ModelConfig) -> Map<String, Value> {
        let mut map = self.raw.clone();
        map.insert("peft_type".to_owned(), "LORA".into());
        map.insert("task_type".to_owned(), "CAUSAL_LM".into());
        map.insert("base_model_name_or_path".to_owned(), base.into());
        map.insert("inference_mode".to_owned(), true.into());
        let modules = || config.arch.params().filter_map(|spec| spec.name.strip_suffix(A));
        if config.wrapper.is_some() {
            // Other towers have modules of the same names.
            let of_layers = |module: &str| {
                let at = module.find(".layers.").map_or(0, |at| at + ".layers.".len());
                module[at..].replace('.', r"\.")
            };
            let all: BTreeSet<String> = modules().map(of_layers).collect();
            let all = all.into_iter().collect::<Vec<_>>().join("|");
            let pattern = format!(r".*language_model.*\.layers\.({all})");
            map.insert("target_modules".to_owned(), pattern.into());
            for key in ["exclude_modules", "layers_to_transform", "layers_pattern"] {
                map.shift_remove(key);
            }
        } else if self.target_modules == Modules::AllLinear {
            // PEFT of today and tomorrow may find other linear maps than these.
            let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
            let names: BTreeSet<String> = modules().map(last).collect();
            map.insert("target_modules".to_owned(), names.into_iter().collect());
        }
        map
    }
}

/// Whether a module's name has `name` among its parts.
fn has_part(module: &str, name: &str) -> bool {
    format!(".{module}.").contains(&format!(".{name}."))
}

/// The names of the modules of a layer that are linear maps by themselves, each once: neither a router, which is none in
/// transformers 5 but for one class, nor experts that are stored in one tensor.
fn linear_modules(layer: &Layer) -> BTreeSet<String> {
    let router = layer.router().map(|map| map.weight);
    let own = layer.linears().filter(|map| Some(map.weight) != router);
    let specs = own.map(|map| &layer.params[map.weight]).filter(|spec| spec.shape.len() == 2);
    specs.filter_map(|spec| spec.name.strip_suffix(".weight")).map(str::to_owned).collect()
}

impl Layer {
    /// Gives the linear maps of a module, which share a weight, an adapter.
    fn adapt(&mut self, module: &str, rank: usize, scale: f64, lora: &LoraConfig) {
        let weight = format!("{module}.weight");
        let weight_idx = self.params.iter().position(|spec| spec.name == weight);
        let weight_idx = weight_idx.expect("a module of the layer");
        let (out, in_features) =
            (self.params[weight_idx].shape[0], self.params[weight_idx].shape[1]);
        let uniform = |len: usize| Init::Uniform { bound: 1.0 / (len as f64).sqrt() };
        let (of_a, of_b) = match lora.init_lora_weights {
            LoraInit::Default => (uniform(in_features), Init::Constant(0.0)),
            LoraInit::Random => (uniform(in_features), uniform(rank)),
            LoraInit::Gaussian => {
                (Init::Normal { std: 1.0 / rank as f64, zero_row: None }, Init::Constant(0.0))
            }
        };
        let mut push = |name: &str, shape: Vec<usize>, init: Init| {
            let spec = ParamSpec::new(format!("{module}.{name}"), shape, init);
            self.params.push(ParamSpec { role: Role::Adapter, ..spec });
            self.params.len() - 1
        };
        let a = push("lora_A.weight", vec![rank, in_features], of_a);
        let b = push("lora_B.weight", vec![out, rank], of_b);
        let of_magnitude = Init::RowNorms { row_len: in_features };
        let magnitude = lora.use_dora.then(|| push(MAGNITUDE, vec![out], of_magnitude));
        if let Some(magnitude) = magnitude {
            // Steps of a hundredth of a row's length would be lost in bf16.
            self.params[magnitude].is_fp32 = true;
        }
        let low_rank = LowRank { a, b, magnitude, scale };
        for map in self.linears_mut().into_iter().filter(|map| map.weight == weight_idx) {
            map.low_rank = Some(low_rank);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    fn read(mut keys: Value) -> Result<LoraConfig> {
        let map = keys.as_object_mut().expect("a mapping");
        map.entry("peft_type").or_insert("LORA".into());
        LoraConfig::from_recipe(map, Path::new("recipe.yaml"))
    }

    /// Two layers with a shared expert in the second, whose head is its own.
    fn model() -> ModelConfig {
        let config = json!({
            "model_type": "qwen2_moe", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16, "num_experts": 3,
            "num_experts_per_tok": 2, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 4,
            "mlp_only_layers": [0], "tie_word_embeddings": false, "max_position_embeddings": 32,
        });
        ModelConfig::from_json(&config.to_string(), Path::new("config.json")).expect("a config")
    }

    /// The modules with an adapter.
    fn adapted(keys: Value) -> Vec<String> {
        let config = model().with_lora(read(keys).expect("keys")).expect("adapters");
        let modules = config.arch.params().filter_map(|spec| spec.name.strip_suffix(A));
        modules.map(|module| module.trim_start_matches("model.layers.").to_owned()).collect()
    }

    #[test]
    fn names_end_where_a_part_begins() {
        let of = |targets: Value| adapted(json!({"target_modules": targets}));
        assert_eq!(of(json!(["q_proj"])), ["0.self_attn.q_proj", "1.self_attn.q_proj"]);
        assert_eq!(of(json!(["0.self_attn.q_proj"])), ["0.self_attn.q_proj"]);
        assert_eq!(
            of(json!(["model.layers.1.mlp.shared_expert_gate"])),
            ["1.mlp.shared_expert_gate"]
        );
        assert_eq!(
            of(json!(r".*1\.self_attn\.[qk]_proj")),
            ["1.self_attn.k_proj", "1.self_attn.q_proj"]
        );
        // A name is not a part of a name, and an expression is of the whole.
        assert!(model().with_lora(read(json!({"target_modules": ["proj"]})).unwrap()).is_err());
        assert!(model().with_lora(read(json!({"target_modules": "q_proj"})).unwrap()).is_err());
    }

    #[test]
    fn all_linear_is_all_but_head_and_router() {
        let all = adapted(json!({"target_modules": "all-linear"}));
        // Attention twice, the MLP, three experts and the shared one with its gate.
        assert_eq!(all.len(), 2 * 4 + 3 + 3 * 3 + 4, "{all:?}");
        assert!(all.iter().all(|module| !module.ends_with("mlp.gate") && module != "lm_head"));
    }

    #[test]
    fn layers_and_exclusions_narrow_what_is_adapted() {
        let of = |more: Value| {
            let mut keys = json!({"target_modules": ["q_proj", "v_proj"]});
            keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            adapted(keys)
        };
        let second = ["1.self_attn.q_proj", "1.self_attn.v_proj"];
        assert_eq!(of(json!({"layers_to_transform": 1})), second);
        assert_eq!(of(json!({"layers_to_transform": [1], "layers_pattern": "layers"})), second);
        assert_eq!(of(json!({"exclude_modules": ["0.self_attn.q_proj", "v_proj"]})), second[..1]);
        assert_eq!(of(json!({"exclude_modules": r".*\.0\..*"})), second);
        // A whole name is of any layer, and an expert's number is the last.
        assert_eq!(
            of(
                json!({"target_modules": ["model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]})
            ),
            ["0.self_attn.q_proj"]
        );
        assert_eq!(
            of(json!({"target_modules": ["down_proj"], "layers_to_transform": [2]})),
            ["1.mlp.experts.2.down_proj"]
        );
        let config = read(
            json!({"target_modules": ["q_proj"], "layers_pattern": ["h"], "layers_to_transform": [0]}),
        );
        assert!(model().with_lora(config.unwrap()).is_err());
    }

    #[test]
    fn patterns_give_modules_ranks_and_scales() {
        let keys = json!({
            "target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8, "use_rslora": true,
            "rank_pattern": {r"0\.self_attn\.q_proj": 1, "q_proj": 9}, "alpha_pattern": {"v_proj": 6},
        });
        let config = model().with_lora(read(keys).unwrap()).unwrap();
        let of = |layer_idx: usize, name: &str| {
            let layer = &config.arch.layers[layer_idx];
            let map = layer.linears().find(|map| layer.params[map.weight].name.contains(name));
            let low_rank = map.and_then(|map| map.low_rank).expect("an adapter");
            (layer.params[low_rank.a].shape[0], low_rank.scale)
        };
        assert_eq!(of(0, "q_proj"), (1, 8.0));
        assert_eq!(of(1, "q_proj"), (9, 8.0 / 3.0));
        assert_eq!(of(1, "v_proj"), (4, 3.0));
    }

    #[test]
    fn what_is_not_supported_is_refused_with_the_key() {
        let key = |keys: Value| match read(keys) {
            Err(Error::Value { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        let with = |name: &str, value: Value| json!({"target_modules": ["q_proj"], name: value});
        assert_eq!(key(json!({"peft_type": "IA3"})), "peft_type");
        assert_eq!(key(json!({})), "target_modules");
        for (name, value) in [
            ("lora_dropout", json!(0.1)),
            ("target_parameters", json!(["experts.gate_up_proj"])),
            ("init_lora_weights", json!("pissa")),
            ("layer_replication", json!([[0, 2]])),
            ("a_key_of_tomorrow", json!(true)),
            ("r", json!(0)),
            ("bias", json!("some")),
            ("target_modules", json!("(?!x)q_proj")),
            ("layers_pattern", json!(["layers"])),
        ] {
            assert_eq!(key(with(name, value)), name);
        }
        let both = |targets: Value| json!({"target_modules": targets, "layers_to_transform": [0]});
        assert_eq!(key(both(json!("all-linear"))), "layers_to_transform");
        assert_eq!(key(both(json!(".*q_proj"))), "layers_to_transform");
        // As PEFT writes what it does not use.
        read(with("a_key_of_tomorrow", Value::Null)).unwrap();
        read(with("lora_dropout", json!(0.0))).unwrap();
    }

    /// [`Layer::linears_mut`] has what [`Layer::linears`] has.
    #[test]
    fn every_map_is_adapted_that_is_listed() {
        let config = model().with_lora(read(json!({"target_modules": "all-linear"})).unwrap());
        for layer in &mut config.unwrap().arch.layers {
            let listed: Vec<_> = layer.linears().cloned().collect();
            let changed: Vec<_> = layer.linears_mut().into_iter().map(|map| map.clone()).collect();
            assert_eq!(listed, changed);
            let router = layer.router().map(|map| map.weight);
            let others = listed.iter().filter(|map| Some(map.weight) != router);
            assert!(others.clone().all(|map| map.low_rank.is_some()));
        }
    }
}
