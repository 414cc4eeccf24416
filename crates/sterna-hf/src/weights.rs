//! Weights as they lie in a model folder: mapped safetensors files, one or many with an index.
//!
//! Files are mapped, not read: a rank that owns a slice of a tensor touches that slice's pages and
//! no others. The `safetensors` crate parses and checks every header before a byte of data is
//! handed out. Pickled weights are refused. Experts of four bits (MXFP4) are there by the name of the weight that they
//! stand for, and widened where they are read.

mod file;
mod mxfp4;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use self::file::MappedFile;
use self::mxfp4::Mxfp4;
use crate::error::{Error, Result};
use crate::hex;
use sterna_arch::DType;
use sterna_arch::{Architecture, ModelConfig, ParamSpec, Role, adapters};

/// The one file of a small model.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// The index of a model in several files.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// What the names of a weight of four bits end in.
const BLOCKS: &str = "_blocks";
const SCALES: &str = "_scales";

/// The mapped safetensors files of a model folder.
#[derive(Debug)]
pub struct WeightFiles {
    dir: PathBuf,
    files: Vec<MappedFile>,
    /// Which of `files` holds a tensor.
    file_idx_of: BTreeMap<String, usize>,
    /// Of a weight of four bits, which of `files` hold its blocks and its scales.
    packed: BTreeMap<String, [usize; 2]>,
}

/// A tensor of a checkpoint by name and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

impl From<&ParamSpec> for TensorSpec {
    fn from(spec: &ParamSpec) -> Self {
        Self { name: spec.name.clone(), shape: spec.shape.clone() }
    }
}

/// One tensor's bytes, where they lie in the mapped file.
#[derive(Debug, Clone)]
pub struct WeightView<'a> {
    /// The type of an element.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    elements: Elements<'a>,
}

/// Where the elements of a tensor are.
#[derive(Debug, Clone)]
enum Elements<'a> {
    /// In row-major order, little-endian, perhaps not aligned to the size of an element.
    AsTheyLie(&'a [u8]),
    /// In four bits each.
    Packed(Mxfp4<'a>),
}

impl<'a> WeightView<'a> {
    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements `range` as [`WeightView::bytes_of`] has them, at most 16 Mi at once, each piece with where it begins in `range`: what lies in
    /// four bits is widened a piece at a time.
    ///
    /// # Panics
    ///
    /// If the tensor has fewer.
    pub fn pieces(&self, range: &Range<usize>) -> impl Iterator<Item = (usize, Cow<'a, [u8]>)> {
        const PIECE_LEN: usize = 1 << 24;
        let (first, end) = (range.start, range.end);
        range
            .clone()
            .step_by(PIECE_LEN)
            .map(move |start| (start - first, self.bytes_of(&(start..end.min(start + PIECE_LEN)))))
    }

    /// All elements, as [`WeightView::bytes_of`] has them.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        match &self.elements {
            Elements::AsTheyLie(bytes) => Cow::Borrowed(bytes),
            Elements::Packed(packed) => Cow::Owned(packed.widened(&(0..packed.numel()))),
        }
    }

    /// Elements `range` in row-major order, little-endian, `range.len() * dtype.size()` bytes, perhaps not aligned to the size of an
    /// element. Owned where they lie in four bits each.
    ///
    /// # Panics
    ///
    /// If the tensor has fewer.
    pub fn bytes_of(&self, range: &Range<usize>) -> Cow<'a, [u8]> {
        match &self.elements {
            Elements::AsTheyLie(bytes) => {
                let size = self.dtype.size();
                Cow::Borrowed(&bytes[range.start * size..range.end * size])
            }
            Elements::Packed(packed) => Cow::Owned(packed.widened(range)),
        }
    }
}

impl WeightFiles {
    /// Maps `model.safetensors` of a folder, or else every file that
    /// `model.safetensors.index.json` names, and checks their headers.
    ///
    /// # Errors
    ///
    /// [`Error::NoWeights`] when there is neither; for a file, [`Error::Read`],
    /// [`Error::Safetensors`] or [`Error::TruncatedSafetensors`]; for an index, [`Error::Json`],
    /// [`Error::Value`], [`Error::IndexLeavesFolder`], [`Error::IndexedFileMissing`] or
    /// [`Error::IndexedTensorMissing`].
    pub fn open(dir: &Path) -> Result<WeightFiles> {
        let single = dir.join(SINGLE_FILE);
        if single.exists() {
            let file = MappedFile::open(single)?;
            let file_idx_of = file.names().map(|name| (name, 0)).collect();
            return Ok(WeightFiles::new(dir, vec![file], file_idx_of));
        }
        let index_path = dir.join(INDEX_FILE);
        let text = match std::fs::read_to_string(&index_path) {
            Ok(text) => text,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
                let pickled = pickled.into_iter().find(|name| dir.join(name).exists());
                return Err(Error::NoWeights { dir: dir.to_owned(), pickled });
            }
            Err(source) => return Err(Error::Read { path: index_path, source }),
        };
        WeightFiles::open_indexed(dir, &index_path, &read_index(&text, &index_path)?)
    }

    /// Maps the file with the weights of adapters in a folder of PEFT, and checks that it has those of `config` and no others.
    ///
    /// # Errors
    ///
    /// [`Error::NoAdapter`], [`Error::Read`], [`Error::Safetensors`] or [`Error::TruncatedSafetensors`]; [`Error::TensorMissing`],
    /// [`Error::TensorShape`] or [`Error::OtherAdapter`] if they are of another base.
    pub fn open_adapter(dir: &Path, config: &ModelConfig) -> Result<WeightFiles> {
        let path = dir.join(adapters::WEIGHTS_FILE);
        if !path.exists() {
            return Err(Error::NoAdapter { path });
        }
        let file = MappedFile::open(path.clone())?;
        let file_idx_of = file.names().map(|name| (name, 0)).collect();
        let files = WeightFiles::new(dir, vec![file], file_idx_of);
        let mut known = HashSet::new();
        // PEFT's files have modules that are trained whole, and may have buffers whose names say bias.
        for spec in config.arch.params().filter(|spec| spec.role != Role::Frozen) {
            let name = match adapters::name_in(|name| files.contains(name), &spec.name) {
                Some(name) => name,
                None if spec.role == Role::Adapter => adapters::name_of(&spec.name),
                // A module that is trained whole may begin as the base's.
                None => continue,
            };
            let view = files.tensor(&name)?;
            if view.shape != spec.shape {
                let (found, required) = (view.shape, spec.shape.clone());
                return Err(Error::TensorShape { path, name, found, required });
            }
            known.insert(name);
        }
        let other = files.names().find(|name| !known.contains(*name)).map(str::to_owned);
        match other {
            Some(name) => Err(Error::OtherAdapter { path, name }),
            None => Ok(files),
        }
    }

    fn open_indexed(
        dir: &Path,
        index_path: &Path,
        weight_map: &BTreeMap<String, String>,
    ) -> Result<WeightFiles> {
        let mut files: Vec<MappedFile> = Vec::new();
        let mut idx_of_file: BTreeMap<&str, usize> = BTreeMap::new();
        let mut file_idx_of = BTreeMap::new();
        for (tensor, name) in weight_map {
            let file_idx = if let Some(file_idx) = idx_of_file.get(name.as_str()) {
                *file_idx
            } else {
                let path = dir.join(name);
                if !path.exists() {
                    return Err(Error::IndexedFileMissing {
                        index: index_path.to_owned(),
                        file: name.clone(),
                        tensor: tensor.clone(),
                    });
                }
                files.push(MappedFile::open(path)?);
                idx_of_file.insert(name, files.len() - 1);
                files.len() - 1
            };
            if !files[file_idx].contains(tensor) {
                return Err(Error::IndexedTensorMissing {
                    index: index_path.to_owned(),
                    file: name.clone(),
                    tensor: tensor.clone(),
                });
            }
            file_idx_of.insert(tensor.clone(), file_idx);
        }
        Ok(WeightFiles::new(dir, files, file_idx_of))
    }

    /// Names weights of four bits by what they stand for, in the file that has their blocks.
    fn new(
        dir: &Path,
        files: Vec<MappedFile>,
        mut file_idx_of: BTreeMap<String, usize>,
    ) -> WeightFiles {
        let part = |name: &str, suffix: &str| {
            let part = format!("{name}{suffix}");
            let file_idx = *file_idx_of.get(&part)?;
            files[file_idx].has_bytes(&part).then_some(file_idx)
        };
        let of = |blocks: &String| {
            let name = blocks.strip_suffix(BLOCKS)?;
            Some((name.to_owned(), [part(name, BLOCKS)?, part(name, SCALES)?]))
        };
        let packed: BTreeMap<String, [usize; 2]> = file_idx_of.keys().filter_map(of).collect();
        for (name, [blocks_file, _]) in &packed {
            for suffix in [BLOCKS, SCALES] {
                file_idx_of.remove(&format!("{name}{suffix}"));
            }
            file_idx_of.insert(name.clone(), *blocks_file);
        }
        WeightFiles { dir: dir.to_owned(), files, file_idx_of, packed }
    }

    /// Whether some weights lie in four bits.
    pub(crate) fn are_packed(&self) -> bool {
        !self.packed.is_empty()
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file_idx_of.keys().map(String::as_str)
    }

    /// What tells the model's weights from others: a SHA-256 of names, types and shapes, and of the ends of each tensor.
    ///
    /// # Errors
    ///
    /// As [`WeightFiles::tensor`].
    pub fn fingerprint(&self, config: &ModelConfig) -> Result<String> {
        // Weights that were trained differ everywhere; 16 GB would take a minute to read.
        const LEN: usize = 2048;
        let mut hash = Sha256::new();
        for spec in config.arch.params().filter(|spec| spec.role != Role::Adapter) {
            let (name, view) = (&spec.name, self.tensor(&spec.name)?);
            let header = format!("{name} {} {:?}\n", view.dtype, view.shape);
            hash.update(header.as_bytes());
            let numel = view.numel();
            hash.update(view.bytes_of(&(0..numel.min(LEN))));
            hash.update(view.bytes_of(&(numel.saturating_sub(LEN)..numel)));
        }
        Ok(hex(&hash.finalize()))
    }

    /// The tensors in each file, sorted by name, the files in the order of their names, which are numbered; each with the type that it is to be
    /// written in.
    pub(crate) fn tensors_by_file(
        &self,
        dtype_of: impl Fn(&str, &WeightView<'_>) -> DType,
    ) -> Result<Vec<Vec<(TensorSpec, DType)>>> {
        let tensor = |name: String| {
            let view = self.tensor(&name)?;
            let dtype = dtype_of(&name, &view);
            Ok((TensorSpec { name, shape: view.shape }, dtype))
        };
        let files = self.names_by_file().into_iter();
        files.map(|names| names.into_iter().map(tensor).collect()).collect()
    }

    fn names_by_file(&self) -> Vec<Vec<String>> {
        let mut files: Vec<(&Path, Vec<String>)> = Vec::new();
        for (file_idx, file) in self.files.iter().enumerate() {
            let of_file = self.file_idx_of.iter().filter(|(_, idx)| **idx == file_idx);
            files.push((file.path(), of_file.map(|(name, _)| name.clone()).collect()));
        }
        files.sort();
        files.into_iter().map(|(_, names)| names).collect()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.file_idx_of.contains_key(name)
    }

    /// The tensor of a name; one of four bits as the weight in bf16 that it stands for.
    ///
    /// # Errors
    ///
    /// [`Error::TensorMissing`]; [`Error::TensorDType`] when its elements are not floats; [`Error::PackedShape`].
    pub fn tensor(&self, name: &str) -> Result<WeightView<'_>> {
        if let Some([blocks_file, scales_file]) = self.packed.get(name) {
            let blocks = self.files[*blocks_file].bytes(&format!("{name}{BLOCKS}"))?;
            let scales = self.files[*scales_file].bytes(&format!("{name}{SCALES}"))?;
            let packed = Mxfp4::new(blocks, scales).ok_or_else(|| Error::PackedShape {
                path: self.files[*blocks_file].path().to_owned(),
                name: name.to_owned(),
                blocks: blocks.1.to_vec(),
                scales: scales.1.to_vec(),
            })?;
            let (dtype, shape) = (DType::BF16, packed.shape());
            return Ok(WeightView { dtype, shape, elements: Elements::Packed(packed) });
        }
        match self.file_idx_of.get(name) {
            Some(file_idx) => self.files[*file_idx].view(name),
            None => Err(Error::TensorMissing {
                dir: self.dir.clone(),
                name: name.to_owned(),
                num_missing: 1,
            }),
        }
    }

    /// Checks that every parameter but those of adapters is there with its shape, in a type that we read.
    ///
    /// Tensors that the model does not have are left alone, with a warning in the log unless they
    /// are known to be redundant (the head of a tied model, rotary frequencies), or other towers of a multimodal model.
    ///
    /// # Errors
    ///
    /// [`Error::TensorMissing`] naming the first and counting all, [`Error::TensorShape`],
    /// [`Error::TensorDType`], [`Error::PackedShape`].
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let arch = &config.arch;
        let own = || arch.params().filter(|spec| spec.role != Role::Adapter);
        let missing: Vec<_> =
            own().filter(|spec| !self.file_idx_of.contains_key(&spec.name)).collect();
        if let Some(first) = missing.first() {
            return Err(Error::TensorMissing {
                dir: self.dir.clone(),
                name: first.name.clone(),
                num_missing: missing.len(),
            });
        }
        for spec in own() {
            let view = self.tensor(&spec.name)?;
            if view.shape != spec.shape {
                return Err(Error::TensorShape {
                    path: self.files[self.file_idx_of[&spec.name]].path().to_owned(),
                    name: spec.name.clone(),
                    found: view.shape,
                    required: spec.shape.clone(),
                });
            }
        }
        if config.wrapper.is_none() {
            self.warn_of_unused(arch);
        }
        Ok(())
    }

    /// The names of the tensors that are not the model's parameters, sorted.
    pub fn names_beside<'a>(&'a self, arch: &Architecture) -> Vec<&'a str> {
        let own: HashSet<&str> = arch.params().map(|spec| spec.name.as_str()).collect();
        self.names().filter(|name| !own.contains(name)).collect()
    }

    fn warn_of_unused(&self, arch: &Architecture) {
        let is_redundant = |name: &str| name == "lm_head.weight" || name.ends_with(".inv_freq");
        let unused: Vec<_> =
            self.names_beside(arch).into_iter().filter(|name| !is_redundant(name)).collect();
        if let Some(first) = unused.first() {
            tracing::warn!(
                dir = %self.dir.display(),
                first,
                "the checkpoint has `{}` tensors that the model does not use",
                unused.len()
            );
        }
    }
}

/// The `weight_map` of an index: which file each tensor is in, none of them outside the folder.
pub(crate) fn read_index(text: &str, path: &Path) -> Result<BTreeMap<String, String>> {
    let index: serde_json::Value = serde_json::from_str(text)
        .map_err(|source| Error::Json { path: path.to_owned(), source })?;
    let wrong = |key: &str, found: &str| Error::Value {
        path: path.to_owned(),
        key: key.to_owned(),
        found: found.to_owned(),
        required: "an object that maps tensor names to file names".to_owned(),
    };
    let weight_map = match index.get("weight_map") {
        None => return Err(wrong("weight_map", "missing")),
        Some(value) => {
            value.as_object().ok_or_else(|| wrong("weight_map", &format!("`{value}`")))?
        }
    };
    weight_map
        .iter()
        .map(|(tensor, file)| {
            let key = || format!("weight_map.{tensor}");
            let file = file.as_str().ok_or_else(|| wrong(&key(), &format!("`{file}`")))?;
            if !stays_inside(file) {
                return Err(Error::IndexLeavesFolder {
                    index: path.to_owned(),
                    file: file.to_owned(),
                    tensor: tensor.clone(),
                });
            }
            Ok((tensor.clone(), file.to_owned()))
        })
        .collect()
}

/// Whether a relative path names something below the folder it is joined to: it is not empty, not absolute, and has no `..`.
///
/// Every path that a file of others gives (an index, a manifest, an answer of the hub) has to. Where links lead is not asked:
/// a folder may hold links of its owner's making, and no file that is read here can make one.
pub fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}
