//! Exports: a Hugging Face folder written so that it is there whole, or not at all.
//!
//! Everything goes to a sibling folder `DIR.incomplete-PID`. When the last file is synced, that
//! folder takes the place of `DIR` in one step, so whatever was in `DIR` is intact until then,
//! whichever way the run fails. Tensors pass through one at a time: the header of a file needs only
//! their names and shapes, and each tensor's bytes have their place in the file before any is
//! known, so no more than one tensor is ever in memory.

mod destination;
mod layout;
pub mod merge;
mod rewrite;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use self::layout::Shard;
use crate::assets;
use crate::error::{Error, Result};
use crate::weights::{INDEX_FILE, TensorSpec};
use sterna_arch::DType;
use sterna_arch::{Family, adapters};

pub use self::destination::{check_destination, put_in_place};
pub use self::rewrite::rewrite;

/// The size that Hugging Face recommends files to stay under, and transformers' default.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Writes an export, tensor by tensor. Dropped before [`finish`](ExportWriter::finish), it leaves
/// nothing behind.
#[derive(Debug)]
pub struct ExportWriter {
    dir: PathBuf,
    incomplete: PathBuf,
    shards: Vec<Shard>,
    dtype: Option<DType>,
    num_shards_done: usize,
    /// The shard being written, and how many of its tensors have been.
    open: Option<(File, usize)>,
    is_finished: bool,
}

impl ExportWriter {
    /// Lays out the files of an export to `dir` and reserves the disk space.
    ///
    /// `tensors` are in the order in which they will be written. No file exceeds
    /// `max_shard_bytes` of data unless it has just one tensor.
    ///
    /// # Errors
    ///
    /// Those of [`check_destination`]; [`Error::Write`] when the folder cannot be made.
    pub fn create(
        dir: &Path,
        tensors: &[(TensorSpec, DType)],
        max_shard_bytes: u64,
    ) -> Result<ExportWriter> {
        ExportWriter::create_files(dir, &layout::fill(tensors, max_shard_bytes))
    }

    /// The same for adapters, in the one file that PEFT reads.
    ///
    /// # Errors
    ///
    /// As [`create`](ExportWriter::create).
    pub fn create_adapter(dir: &Path, tensors: &[(TensorSpec, DType)]) -> Result<ExportWriter> {
        let mut writer = ExportWriter::create_files(dir, &[tensors.to_vec()])?;
        adapters::WEIGHTS_FILE.clone_into(&mut writer.shards[0].file_name);
        Ok(writer)
    }

    /// Writes `config` as `adapter_config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn write_adapter_config(&mut self, config: &Map<String, Value>) -> Result<()> {
        self.write_json(adapters::CONFIG_FILE, &Value::Object(config.clone()))
    }

    /// As [`create`](ExportWriter::create), with one file for each list of tensors.
    fn create_files(dir: &Path, files: &[Vec<(TensorSpec, DType)>]) -> Result<ExportWriter> {
        let shards = layout::shards(files);
        let total_bytes = shards.iter().map(Shard::file_bytes).sum();
        check_destination(dir, total_bytes)?;
        let incomplete = destination::sibling(dir, "incomplete");
        let write_error =
            |source| Error::Write { path: incomplete.clone(), needed_bytes: total_bytes, source };
        if incomplete.exists() {
            // Only a process with our id can have left it, and that one is gone.
            fs::remove_dir_all(&incomplete).map_err(write_error)?;
        }
        fs::create_dir_all(&incomplete).map_err(write_error)?;
        let mut tensors = files.iter().flatten();
        let first_dtype = tensors.clone().next().map(|(_, dtype)| *dtype);
        Ok(ExportWriter {
            dir: dir.to_owned(),
            incomplete,
            shards,
            dtype: first_dtype.filter(|first| tensors.all(|(_, dtype)| dtype == first)),
            num_shards_done: 0,
            open: None,
            is_finished: false,
        })
    }

    /// Writes the next tensor: row-major little-endian elements.
    ///
    /// # Errors
    ///
    /// [`Error::ExportOrder`] when it is not the next tensor or not of its size; [`Error::Write`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mismatch = |required: Option<&layout::Slot>| Error::ExportOrder {
            found: name.to_owned(),
            found_bytes: bytes.len(),
            required: required.map(|slot| (slot.name.clone(), slot.num_bytes)),
        };
        let Some(shard) = self.shards.get(self.num_shards_done) else {
            return Err(mismatch(None));
        };
        let path = self.incomplete.join(&shard.file_name);
        let write_error =
            |source| Error::Write { path: path.clone(), needed_bytes: bytes.len() as u64, source };
        let num_written = self.open.as_ref().map_or(0, |(_, num_written)| *num_written);
        let slot = &shard.slots[num_written];
        if slot.name != name || slot.num_bytes != bytes.len() {
            return Err(mismatch(Some(slot)));
        }
        if self.open.is_none() {
            self.open = Some((start_shard(&path, shard)?, 0));
        }
        let Some((file, num_written)) = &mut self.open else { return Err(mismatch(None)) };
        file.write_all_at(bytes, slot.offset).map_err(write_error)?;
        *num_written += 1;
        if *num_written == shard.slots.len() {
            file.sync_all().map_err(write_error)?;
            self.open = None;
            self.num_shards_done += 1;
        }
        Ok(())
    }

    /// Writes `config` as `config.json`, with the dtype of the tensors and a class for loaders to
    /// pick, and copies from a model folder how it generates, its tokenizer and its chat template.
    ///
    /// # Errors
    ///
    /// [`Error::Write`], or [`Error::Read`] for a file that is there and cannot be copied.
    pub fn copy_assets(&mut self, from: &Path, config: &Map<String, Value>) -> Result<()> {
        for name in assets::names().filter(|name| *name != "config.json") {
            self.copy(from, name)?;
        }
        let config = Value::Object(export_config(config, self.dtype));
        self.write_json("config.json", &config)
    }

    /// Takes the tokenizer and chat template of another folder than the model's.
    ///
    /// # Errors
    ///
    /// As [`copy_assets`](ExportWriter::copy_assets).
    pub fn copy_tokenizer(&mut self, from: &Path) -> Result<()> {
        for name in assets::TOKENIZER_FILES {
            let path = self.incomplete.join(name);
            if path.exists() {
                fs::remove_file(&path).map_err(|source| Error::Write {
                    path,
                    needed_bytes: 0,
                    source,
                })?;
            }
            self.copy(from, name)?;
        }
        Ok(())
    }

    /// Syncs everything and puts the export in its place.
    ///
    /// # Errors
    ///
    /// [`Error::ExportIncomplete`] when tensors are missing; [`Error::Write`].
    pub fn finish(mut self) -> Result<()> {
        if let Some(shard) = self.shards.get(self.num_shards_done) {
            let num_written = self.open.as_ref().map_or(0, |(_, num_written)| *num_written);
            return Err(Error::ExportIncomplete {
                dir: self.dir.clone(),
                next: shard.slots[num_written].name.clone(),
            });
        }
        // One that was copied says the same in its own words.
        if self.shards.len() > 1 && !self.incomplete.join(INDEX_FILE).exists() {
            self.write_json(INDEX_FILE, &layout::index(&self.shards))?;
        }
        destination::sync_dir(&self.incomplete)?;
        destination::put_in_place(&self.incomplete, &self.dir)?;
        self.is_finished = true;
        Ok(())
    }

    fn copy(&self, from: &Path, name: &str) -> Result<()> {
        let source_path = from.join(name);
        match fs::read(&source_path) {
            Ok(bytes) => self.write_file(name, &bytes),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::Read { path: source_path, source }),
        }
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        self.write_file(name, format!("{value:#}\n").as_bytes())
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.incomplete.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|source| Error::Write {
            path: path.clone(),
            needed_bytes: bytes.len() as u64,
            source,
        })
    }
}

impl Drop for ExportWriter {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = fs::remove_dir_all(&self.incomplete)
        {
            tracing::warn!(
                path = %self.incomplete.display(),
                %error,
                "an unfinished export could not be removed"
            );
        }
    }
}

/// Makes a shard's file: its space reserved, its header written.
fn start_shard(path: &Path, shard: &Shard) -> Result<File> {
    let write_error =
        |source| Error::Write { path: path.to_owned(), needed_bytes: shard.file_bytes(), source };
    let file = File::create(path).map_err(write_error)?;
    destination::reserve(&file, shard.file_bytes()).map_err(write_error)?;
    file.write_all_at(&shard.header, 0).map_err(write_error)?;
    Ok(file)
}

/// A model's config as its export has it.
fn export_config(config: &Map<String, Value>, dtype: Option<DType>) -> Map<String, Value> {
    let mut config = config.clone();
    // What is quantised is widened where it is read.
    config.remove("quantization_config");
    if let Some(dtype) = dtype {
        let is_named_dtype = config.contains_key("dtype");
        if is_named_dtype {
            config.insert("dtype".to_owned(), json!(dtype.torch_name()));
        }
        if !is_named_dtype || config.contains_key("torch_dtype") {
            config.insert("torch_dtype".to_owned(), json!(dtype.torch_name()));
        }
    }
    let model_type = config.get("model_type").and_then(Value::as_str);
    if let Some(family) = model_type.and_then(Family::find)
        && config.get("architectures").is_none_or(Value::is_null)
    {
        config.insert("architectures".to_owned(), json!([family.causal_lm_class()]));
    }
    config
}
