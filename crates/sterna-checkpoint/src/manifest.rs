//! The manifest: what a checkpoint holds, and which files it is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sterna_hf::weights::stays_inside;

use crate::error::{Error, Result};
use crate::shard::ShardFile;
use crate::verify::hash_bytes;

/// Raised whenever a reader of before could misread what is written.
const FORMAT: u32 = 1;

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const MANIFEST_HASH: &str = "manifest.json.sha256";
/// The folder with the model's config and tokenizer.
pub(crate) const ASSETS: &str = "assets";

/// The largest manifest read: a model of a million parameters' names is far below.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;
/// The longest flat buffer: a manifest that says more than any machine holds is damaged.
const MAX_ELEMENTS: usize = 1 << 48;

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of these files; see [`Manifest::FORMAT`].
    pub format: u32,
    /// The version of sterna that wrote it.
    pub sterna: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps that changed the weights: fewer than `step` if steps were skipped.
    pub num_updates: u64,
    /// Where the data goes on.
    pub position: Position,
    /// Ranks that wrote it, one shard file each.
    pub world_size: usize,
    /// Ranks that shared a sequence.
    pub sequence_parallel_size: usize,
    /// SHA-256 of the samples and their order.
    pub data: String,
    /// The model's `config.json`, with the recipe's changes.
    pub model: Map<String, Value>,
    /// The recipe as it was resolved.
    pub recipe: Value,
    /// The adapters that were trained, as an `adapter_config.json` says them; the parameters are then those alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Map<String, Value>>,
    /// What tells the weights under the adapters from others ([`sterna_hf::WeightFiles::fingerprint`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Bytes of the metrics file when this was written; `None` if none is written.
    pub metrics_bytes: Option<u64>,
    /// What is kept for each element, in the order of the shard files.
    pub states: Vec<StateKind>,
    /// The flat buffers.
    pub flats: Vec<FlatBuffer>,
    /// The parameters, in the model's order.
    pub parameters: Vec<ParameterPlace>,
    /// Every other file.
    pub files: Vec<FileEntry>,
}

/// How far the data was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Micro-batches that each sequence-parallel group has seen, over all epochs.
    pub micro_batches: u64,
    /// Whole epochs seen.
    pub epoch: u64,
    /// Micro-batches of the epoch begun that each group has seen.
    pub of_epoch: u64,
    /// Samples of a micro-batch.
    pub rows: u64,
}

/// One thing that is kept for each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateKind {
    /// Which.
    pub name: StateName,
    /// How it is stored: `F32` or `BF16`, the names of safetensors.
    pub dtype: StateDtype,
}

/// What an optimizer keeps for an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    /// The fp32 weight.
    Master,
    /// The first moment.
    ExpAvg,
    /// The second moment.
    ExpAvgSq,
}

impl StateName {
    /// As it stands in tensor names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::ExpAvg => "exp_avg",
            Self::ExpAvgSq => "exp_avg_sq",
        }
    }
}

/// A storage type of states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateDtype {
    /// Single precision.
    F32,
    /// Brain float.
    BF16,
}

impl StateDtype {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 => 2,
        }
    }

    pub(crate) fn in_safetensors(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::BF16 => safetensors::Dtype::BF16,
        }
    }
}

/// One flat buffer of a unit. Rank `r` of the world that wrote it holds elements `r * shard_len..(r + 1) * shard_len`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlatBuffer {
    /// Unit and buffer, such as `3.decayed`.
    pub name: String,
    /// Elements that each rank holds; the last ones pad.
    pub shard_len: usize,
    /// Whether it is trained; manifests that do not say it are of no adapters, where it does not matter.
    #[serde(default = "yes")]
    pub is_trained: bool,
}

fn yes() -> bool {
    true
}

/// Where a parameter lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterPlace {
    /// Its name in Hugging Face's files.
    pub name: String,
    /// Its sizes, outermost first.
    pub shape: Vec<usize>,
    /// Index among the flat buffers.
    pub flat: usize,
    /// Its first element there.
    pub offset: usize,
    /// Whether exports have it in single precision whatever their dtype; absent where they do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_fp32: bool,
}

impl ParameterPlace {
    /// Number of elements, if that is a number.
    fn checked_numel(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path below the checkpoint's folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

/// The one field that every format has.
#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

impl Manifest {
    /// The format written and read here.
    pub const FORMAT: u32 = FORMAT;

    /// Reads a manifest's text; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Format`], or [`Error::Manifest`] if the text is not what this crate writes.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::Manifest { path: path.to_owned(), reason };
        // The format first: another one need not have the fields of this one.
        let FormatOnly { format } =
            serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        if format != u64::from(FORMAT) {
            return Err(Error::Format { path: path.to_owned(), found: format, required: FORMAT });
        }
        let manifest: Self =
            serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        manifest.check().map_err(wrong)?;
        Ok(manifest)
    }

    /// What the readers rely on.
    fn check(&self) -> Result<(), String> {
        let (world_size, sp_size) = (self.world_size, self.sequence_parallel_size);
        if world_size == 0 || sp_size == 0 || !world_size.is_multiple_of(sp_size) {
            return Err(format!(
                "`sequence_parallel_size` is `{sp_size}` on a `world_size` of `{world_size}`"
            ));
        }
        for flat in &self.flats {
            let len = flat.shard_len.checked_mul(self.world_size);
            if len.is_none_or(|len| len > MAX_ELEMENTS) {
                return Err(format!(
                    "flat buffer `{}` has `{}` elements on each of `{}` ranks",
                    flat.name, flat.shard_len, self.world_size
                ));
            }
        }
        for place in &self.parameters {
            let end = place.checked_numel().and_then(|numel| numel.checked_add(place.offset));
            let len = self.flats.get(place.flat).map(|flat| flat.shard_len * self.world_size);
            if end.is_none() || end > len {
                return Err(format!("parameter `{}` lies outside its flat buffer", place.name));
            }
        }
        let states: BTreeSet<_> = self.states.iter().map(|state| state.name).collect();
        if states.len() != self.states.len() || !states.contains(&StateName::Master) {
            return Err("`states` lists a state twice, or no `master`".to_owned());
        }
        // Far above any run, and safe to add to.
        let Position { micro_batches, epoch, of_epoch, rows } = self.position;
        let numbers = [self.step, self.num_updates, micro_batches, epoch, of_epoch, rows];
        if numbers.iter().any(|number| *number > 1 << 40) {
            return Err("`step` or `position` is out of range".to_owned());
        }
        let bytes = self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.bytes));
        if bytes.is_none() {
            return Err("`files` are larger than any disk".to_owned());
        }
        let mut names = BTreeSet::new();
        for file in &self.files {
            if !stays_inside(&file.name) {
                return Err(format!("file `{}` would be outside the checkpoint", file.name));
            }
            if !names.insert(&file.name) {
                return Err(format!("file `{}` is listed twice", file.name));
            }
        }
        for rank in 0..self.world_size {
            let name = crate::shard_file_name(rank);
            if !names.contains(&name) {
                return Err(format!("the shard `{name}` of rank `{rank}` is not listed"));
            }
        }
        Ok(())
    }

    /// How `name` is stored, if it is.
    pub fn state(&self, name: StateName) -> Option<StateKind> {
        self.states.iter().copied().find(|state| state.name == name)
    }

    /// Bytes of all files but the manifest.
    pub fn num_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    pub(crate) fn to_text(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a manifest is numbers and text")
    }
}

/// A checkpoint whose manifest was read and is as it was written. Its other files are looked at when they are read.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder.
    pub dir: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
    flat_idx: BTreeMap<String, usize>,
    /// One for each rank that wrote it, opened when first read.
    shards: Vec<std::sync::OnceLock<ShardFile>>,
}

impl Checkpoint {
    /// Reads the manifest in `dir`.
    ///
    /// # Errors
    ///
    /// [`Error::NotACheckpoint`] without one; [`Error::FileContent`] or [`Error::FileMissing`] if it is not the one that its hash
    /// was made of; those of [`Manifest::parse`]; [`Error::Read`].
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = match read_limited(&path, MAX_MANIFEST_BYTES) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotACheckpoint { dir: dir.to_owned() });
            }
            Err(source) => return Err(Error::Read { path, source }),
            Ok(text) => text,
        };
        let hash_path = dir.join(MANIFEST_HASH);
        let hash_text = match read_limited(&hash_path, 1 << 10) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Error::FileMissing { path: hash_path });
            }
            Err(source) => return Err(Error::Read { path: hash_path, source }),
            Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        };
        let required = hash_text.split_whitespace().next().unwrap_or_default().to_owned();
        let found = hash_bytes(&text);
        if found != required {
            return Err(Error::FileContent { path, found, required });
        }
        let manifest = Manifest::parse(&text, &path)?;
        let flat_idx = manifest.flats.iter().enumerate();
        Ok(Self {
            dir: dir.to_owned(),
            flat_idx: flat_idx.map(|(idx, flat)| (flat.name.clone(), idx)).collect(),
            shards: (0..manifest.world_size).map(|_| std::sync::OnceLock::new()).collect(),
            manifest,
        })
    }

    /// The folder with config and tokenizer.
    pub fn assets_dir(&self) -> PathBuf {
        self.dir.join(ASSETS)
    }

    /// Elements `range` of one state of the flat buffer called `flat`, as they are stored, little-endian. What lies beyond the
    /// buffer that was written reads as zero: another world size pads to another length.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if there is no such buffer or state, or a shard does not fit the manifest; [`Error::Safetensors`];
    /// [`Error::FileMissing`]; [`Error::Read`].
    pub fn read_state(
        &self,
        flat: &str,
        name: StateName,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<u8>> {
        let tensor = format!("{flat}.{}", name.as_str());
        let missing = |what: &str| Error::Tensor {
            path: self.dir.join(MANIFEST),
            name: tensor.clone(),
            found: "missing".to_owned(),
            required: format!("a {what} that the checkpoint has"),
        };
        let flat_idx = *self.flat_idx.get(flat).ok_or_else(|| missing("flat buffer"))?;
        let state = self.manifest.state(name).ok_or_else(|| missing("state"))?;
        let (shard_len, size) = (self.manifest.flats[flat_idx].shard_len, state.dtype.size());
        let mut bytes = vec![0; range.len() * size];
        for rank in 0..self.manifest.world_size {
            let start = range.start.max(rank * shard_len);
            let end = range.end.min((rank + 1) * shard_len);
            if start >= end {
                continue;
            }
            let shard = self.shard(rank)?;
            let own = (start - rank * shard_len)..(end - rank * shard_len);
            let out = &mut bytes[(start - range.start) * size..(end - range.start) * size];
            shard.read(&tensor, state.dtype, shard_len, own, out)?;
        }
        Ok(bytes)
    }

    fn shard(&self, rank: usize) -> Result<&ShardFile> {
        if let Some(shard) = self.shards[rank].get() {
            return Ok(shard);
        }
        let opened = ShardFile::open(self.dir.join(crate::shard_file_name(rank)))?;
        Ok(self.shards[rank].get_or_init(|| opened))
    }
}

/// A small file's content; one that is larger than it can be is not read.
fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let mut text = Vec::new();
    file.take(limit + 1).read_to_end(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than `{limit}` bytes")));
    }
    Ok(text)
}
