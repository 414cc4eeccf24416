//! What can be wrong with a model folder, a hub answer or an export, and what to do about it.

use std::io::ErrorKind;
use std::path::PathBuf;

use crate::chat_template::Overrun;
use crate::hub::HubError;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything this crate can refuse, with the values that the message needs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read a file or folder.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// What was being read.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A folder lacks a file that it must have.
    #[error("`{}` not found", path.display())]
    MissingFile {
        /// The file that is missing.
        path: PathBuf,
        /// What it is needed for, as a noun phrase.
        purpose: &'static str,
    },
    /// A JSON file does not parse.
    #[error("`{}` is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped and why.
        #[source]
        source: serde_json::Error,
    },
    /// A key of a JSON file has a value that cannot be used, or none.
    #[error("`{}`: key `{key}` is {found}, required: {required}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted from the root of the file.
        key: String,
        /// The value as JSON in backticks, or `missing`.
        found: String,
        /// What it has to be.
        required: String,
    },
    /// The config cannot be used.
    #[error(transparent)]
    Config(#[from] sterna_arch::Error),
    /// A chat template is not valid Jinja.
    #[error("`{}`: the chat template does not parse", path.display())]
    TemplateSyntax {
        /// The file the template came from.
        path: PathBuf,
        /// The line and what is wrong with it.
        #[source]
        source: minijinja::Error,
    },
    /// A chat template is longer than any model's.
    #[error(
        "`{}`: the chat template has `{found_bytes}` bytes, at most `{max_bytes}` are read",
        path.display()
    )]
    TemplateTooLong {
        /// The file the template came from.
        path: PathBuf,
        /// Its length.
        found_bytes: usize,
        /// The longest that is read.
        max_bytes: usize,
    },
    /// A chat template was given up. It may still be at work on a thread that cannot be stopped: the process should end.
    #[error("`{}`: the chat template was given up", path.display())]
    TemplateOverrun {
        /// The file the template came from.
        path: PathBuf,
        /// The limit it ran into.
        #[source]
        source: Overrun,
    },
    /// A chat template failed on a conversation, or ran into a limit.
    #[error("`{}`: the chat template cannot render this conversation", path.display())]
    TemplateRender {
        /// The file the template came from.
        path: PathBuf,
        /// The line and what is wrong with it.
        #[source]
        source: minijinja::Error,
    },
    /// A chat template called `raise_exception`.
    #[error("`{}`: the chat template refuses this conversation: {message}", path.display())]
    TemplateRefused {
        /// The file the template came from.
        path: PathBuf,
        /// What the template said.
        message: String,
    },
    /// A conversation was to be rendered, but the folder has no template for it.
    #[error("`{}` has no chat template", dir.display())]
    NoChatTemplate {
        /// The model folder.
        dir: PathBuf,
    },
    /// `tokenizer.json` cannot be used, or not on this text.
    #[error("`{}`: the tokenizer failed", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the `tokenizers` crate said.
        #[source]
        source: tokenizers::Error,
    },
    /// The folder has the files of a slow tokenizer only.
    #[error(
        "`{}` not found; `{}` is of a slow tokenizer, required: a fast one",
        path.display(),
        found.display()
    )]
    SlowTokenizer {
        /// The `tokenizer.json` that is missing.
        path: PathBuf,
        /// The slow tokenizer's file.
        found: PathBuf,
    },
    /// A folder has no weights that we read.
    #[error(
        "`{}` has neither `model.safetensors` nor `model.safetensors.index.json`{}",
        dir.display(),
        pickled.map(|name| format!(", only the pickled `{name}`")).unwrap_or_default()
    )]
    NoWeights {
        /// The model folder.
        dir: PathBuf,
        /// A file of pickled weights that is there instead.
        pickled: Option<&'static str>,
    },
    /// A folder has no weights of adapters.
    #[error("`{}` not found", path.display())]
    NoAdapter {
        /// The file that is missing.
        path: PathBuf,
    },
    /// A file of adapters has a tensor that the model has no place for.
    #[error("`{}` has `{name}`, which is of another base or of another `adapter_config.json`", path.display())]
    OtherAdapter {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A file is not in the safetensors format.
    #[error("`{}` is not a safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What the `safetensors` crate said.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A safetensors file ends before its header says.
    #[error(
        "`{}` is cut off: it has `{found_bytes}` bytes, its header requires `{required_bytes}`",
        path.display()
    )]
    TruncatedSafetensors {
        /// The file.
        path: PathBuf,
        /// Bytes it has.
        found_bytes: u64,
        /// Bytes it should have, at least.
        required_bytes: u64,
    },
    /// An index names a file that is not there.
    #[error("`{}`: tensor `{tensor}` is in `{file}`, which is not in the folder", index.display())]
    IndexedFileMissing {
        /// The index.
        index: PathBuf,
        /// The file it names.
        file: String,
        /// The first tensor said to be in it.
        tensor: String,
    },
    /// An index names a path that is not below its folder.
    #[error(
        "`{}`: tensor `{tensor}` is in `{file}`, required: a file inside the folder",
        index.display()
    )]
    IndexLeavesFolder {
        /// The index.
        index: PathBuf,
        /// The path it names.
        file: String,
        /// The tensor said to be in it.
        tensor: String,
    },
    /// An index names a file that lacks the tensor.
    #[error("`{}`: tensor `{tensor}` is in `{file}`, but that file lacks it", index.display())]
    IndexedTensorMissing {
        /// The index.
        index: PathBuf,
        /// The file it names.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// The weights lack tensors that the config requires.
    #[error("`{}`: tensor `{name}` is missing{}", dir.display(), and_others(*num_missing))]
    TensorMissing {
        /// The model folder.
        dir: PathBuf,
        /// The first tensor missing.
        name: String,
        /// How many are missing, this one included.
        num_missing: usize,
    },
    /// A tensor has not the shape that the config requires.
    #[error("`{}`: tensor `{name}` has shape `{found:?}`, required: `{required:?}`", path.display())]
    TensorShape {
        /// The file that has the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// Its shape by the config.
        required: Vec<usize>,
    },
    /// A tensor is stored in a type that we do not read.
    #[error("`{}`: tensor `{name}` is `{found}`, required: `F32`, `F16` or `BF16`", path.display())]
    TensorDType {
        /// The file that has the tensor.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The type found.
        found: String,
    },
    /// The two tensors of a weight of four bits do not fit each other.
    #[error("`{}`: tensors `{name}_blocks` and `{name}_scales` are `{blocks:?}` and `{scales:?}`, required: `[experts, out, blocks, 16]`, and the same without the last, all above `0`", path.display())]
    PackedShape {
        /// The file that has the blocks.
        path: PathBuf,
        /// The weight.
        name: String,
        /// The shape of the blocks.
        blocks: Vec<usize>,
        /// The shape of the scales.
        scales: Vec<usize>,
    },
    /// The system refused to write a file or folder.
    #[error("cannot write `{}`{}", path.display(), bytes_needed(*needed_bytes))]
    Write {
        /// What was being written.
        path: PathBuf,
        /// How many bytes it needs, `0` when it is not about bytes.
        needed_bytes: u64,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The disk has not the space for an export.
    #[error(
        "`{}` needs `{needed_bytes}` bytes, its disk has `{free_bytes}` bytes free",
        path.display()
    )]
    DiskFull {
        /// Where the export goes.
        path: PathBuf,
        /// Bytes it needs.
        needed_bytes: u64,
        /// Bytes there are.
        free_bytes: u64,
    },
    /// An export would take the place of a folder that has other files.
    #[error(
        "an export to `{}` would delete `{}`, required: a new folder or an earlier export",
        dir.display(),
        entry.display()
    )]
    ExportWouldDelete {
        /// Where the export goes.
        dir: PathBuf,
        /// A file in it that no export writes.
        entry: PathBuf,
    },
    /// A tensor came out of turn, or not with the bytes that were announced.
    #[error(
        "tensor `{found}` of `{found_bytes}` bytes is not the next of the export, required: {}",
        next_tensor(required.as_ref())
    )]
    ExportOrder {
        /// The tensor that came.
        found: String,
        /// Its bytes.
        found_bytes: usize,
        /// The tensor expected and its bytes; `None` after the last.
        required: Option<(String, usize)>,
    },
    /// An export ended before its last tensor.
    #[error("the export to `{}` lacks tensor `{next}`", dir.display())]
    ExportIncomplete {
        /// Where the export goes.
        dir: PathBuf,
        /// The first tensor that was not written.
        next: String,
    },
    /// The hub, or the cache in its place, did not give what was asked for.
    #[error(transparent)]
    Hub(Box<HubError>),
}

impl From<HubError> for Error {
    fn from(error: HubError) -> Error {
        Error::Hub(Box::new(error))
    }
}

fn bytes_needed(num_bytes: u64) -> String {
    if num_bytes == 0 { String::new() } else { format!(" (it needs `{num_bytes}` bytes)") }
}

fn next_tensor(required: Option<&(String, usize)>) -> String {
    match required {
        Some((name, num_bytes)) => format!("`{name}` of `{num_bytes}` bytes"),
        None => "none, all are written".to_owned(),
    }
}

fn and_others(num_missing: usize) -> String {
    match num_missing {
        0 | 1 => String::new(),
        n => format!(", and `{}` others", n - 1),
    }
}

impl Error {
    /// What the user can do about it, when that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::MissingFile { purpose, .. } => {
                return Some(format!("a model folder needs it: it is {purpose}"));
            }
            Error::Config(error) => return error.hint(),
            Error::TemplateRefused { .. } => {
                "turns have to be as the template wants them, often user and assistant by turns"
            }
            Error::TemplateOverrun { .. } => {
                "no template of a model comes near its limits: look at the file, it may be made to do harm"
            }
            Error::NoChatTemplate { .. } => {
                "use an instruction-tuned checkpoint, or put a `chat_template.jinja` into the folder"
            }
            Error::SlowTokenizer { .. } => {
                "transformers converts it: `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` \
                 writes a `tokenizer.json`"
            }
            Error::NoAdapter { .. } => {
                "PEFT's `save_pretrained` writes it; pickled adapters are refused"
            }
            Error::OtherAdapter { .. } => {
                "the adapters have to be of the recipe's model, whose layers and sizes they name"
            }
            Error::NoWeights { pickled: Some(_), .. } => {
                "transformers converts them: `model.save_pretrained(DIR)` writes safetensors"
            }
            Error::TruncatedSafetensors { .. } | Error::IndexedFileMissing { .. } => {
                "download the file again, it is incomplete"
            }
            Error::TensorMissing { name, .. } if name == "lm_head.weight" => {
                "the head may be the embedding: then `tie_word_embeddings` in `config.json` is `true`"
            }
            Error::TensorMissing { .. } | Error::TensorShape { .. } | Error::PackedShape { .. } => {
                "`config.json` and the weights have to be of the same model"
            }
            Error::TensorDType { .. } => {
                "quantised weights cannot be trained, use the checkpoint in bf16"
            }
            Error::Write { source, .. } => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => FREE_SPACE,
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                    "name a folder that you may write to"
                }
                _ => return None,
            },
            Error::DiskFull { .. } => FREE_SPACE,
            Error::ExportWouldDelete { .. } => {
                "name a folder of its own for the export, or move the file away"
            }
            Error::Hub(error) => return error.hint(),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

const FREE_SPACE: &str = "free some space, or name a folder on another disk";
