//! What can be wrong with data, and what to do about it.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    path::PathBuf,
};

use arrow_schema::ArrowError;
use parquet::errors::ParquetError;

use crate::source::MAX_ROW_BYTES;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the names of data files end in.
const DATA_FILES: &str = ".json, .jsonl or .ndjson (also with .gz or .zst), .parquet or .arrow";

/// A row of a source, as a person can find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowId {
    /// The source as typed in the recipe.
    pub source_name: String,
    /// Position in the selected split, from 0.
    pub row: usize,
    /// The file that holds it.
    pub path: PathBuf,
    /// The line of the file, from 1, where the file has lines.
    pub line: Option<usize>,
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sample `{}` of `{}` (`{}", self.row, self.source_name, self.path.display())?;
        match self.line {
            Some(line) => write!(f, ":{line}`)"),
            None => f.write_str("`)"),
        }
    }
}

/// Why a reply could not be located in the text that the chat template printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unaligned {
    /// The reply's place is not in the text.
    NotPrinted,
    /// The reply's text is printed more than once.
    PrintedTwice,
    /// The text around the reply changes with the reply.
    ContextChanges,
    /// The reply calls tools, and the calls are not in the text.
    CallsNotPrinted,
    /// Messages are printed in another order than they have.
    OtherOrder,
    /// A part that the template marks is of no reply, or of one that is trained on and one that is not.
    OtherGenerations,
}

impl fmt::Display for Unaligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPrinted => "the template does not print it",
            Self::PrintedTwice => "the template prints it more than once",
            Self::ContextChanges => {
                "the template prints other text around it depending on what it says"
            }
            Self::CallsNotPrinted => "the template does not print its calls of tools",
            Self::OtherOrder => "the template prints messages in another order than they have",
            Self::OtherGenerations => {
                "only some replies are trained on, and a `{% generation %}` part of the template is of none of them, or of several"
            }
        })
    }
}

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
    /// The system refused to write a file or folder.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// What was being written.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A source names a path that does not exist.
    #[error("data source `{}` not found", path.display())]
    SourceNotFound {
        /// The path.
        path: PathBuf,
    },
    /// A folder has no file that can be read as data.
    #[error("`{}` has no data file, required: a {DATA_FILES} file", path.display())]
    NoDataFiles {
        /// The folder.
        path: PathBuf,
    },
    /// A file has none of the endings that say how to read it.
    #[error("`{}` is not read: {why}, required: a name that ends in {DATA_FILES}", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What its name says.
        why: &'static str,
    },
    /// A file with the name of a JSON file starts as something else does.
    #[error("`{}` holds {found}, required: JSON in UTF-8, plain or compressed with gzip or Zstandard", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Compressed data is damaged, or ends too early.
    #[error("`{}` cannot be decompressed", path.display())]
    Decompress {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        #[source]
        source: std::io::Error,
    },
    /// A line ends within a value.
    #[error("`{}:{line}` ends before its JSON value does, required: one object on each line", path.display())]
    UnfinishedLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A line is longer than any chat.
    #[error("`{}:{line}` has more than `{MAX_ROW_BYTES}` bytes, required: one object of at most that many on each line", path.display())]
    RowTooLong {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The rows of a compressed or columnar file take far more bytes than the file.
    #[error("`{}` holds rows of more than `{max_bytes}` bytes, required: at most 1024 for each byte of the file", path.display())]
    GrowsTooMuch {
        /// The file.
        path: PathBuf,
        /// The limit.
        max_bytes: u64,
    },
    /// A file was written to or replaced while its rows were read.
    #[error("`{}` changed while it was read", path.display())]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// A line of a JSONL file, or a JSON file, does not parse.
    #[error("`{}:{line}` is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Where the parser stopped and why.
        #[source]
        source: serde_json::Error,
    },
    /// A file that lists others names one outside its folder.
    #[error("`{}` names `{found}`, required: a path inside its folder", path.display())]
    LeavesFolder {
        /// The file that lists.
        path: PathBuf,
        /// What it names.
        found: String,
    },
    /// A JSON value stands where a row or a list of rows is required.
    #[error("`{}:{line}` holds {found}, required: {required}", path.display())]
    JsonShape {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What kind of value it is.
        found: &'static str,
        /// What it has to be.
        required: &'static str,
    },
    /// A Parquet file is damaged or uses something unknown.
    #[error("`{}` cannot be read as Parquet", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: ParquetError,
    },
    /// An Arrow file is damaged or uses something unknown.
    #[error("`{}` cannot be read as Arrow", path.display())]
    Arrow {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: ArrowError,
    },
    /// An Arrow stream ends before its end marker.
    #[error("`{}` is truncated: `{found_bytes}` bytes without the end marker of an Arrow stream", path.display())]
    TruncatedArrow {
        /// The file.
        path: PathBuf,
        /// How long it is.
        found_bytes: u64,
    },
    /// A split expression does not follow the grammar.
    #[error(
        "split `{spec}` cannot be read, required: `name`, `name[from:to]`, `name[from%:to%]`, or several joined by `+`"
    )]
    BadSplit {
        /// The expression as typed.
        spec: String,
    },
    /// A percentage of a split is outside -100 to 100.
    #[error("split `{spec}` has the percentage `{found}`, required: -100 to 100")]
    PercentOutOfRange {
        /// The expression as typed.
        spec: String,
        /// The percentage.
        found: i64,
    },
    /// `pct1_dropremainder` on fewer than 100 rows always selects nothing.
    #[error(
        "split `{spec}` rounds to whole percents of `{rows}` rows, required: at least `100` rows"
    )]
    TooFewForPercents {
        /// The expression as typed.
        spec: String,
        /// Rows of the split.
        rows: usize,
    },
    /// A source has no split of this name.
    #[error("source `{source_name}` has no split `{split}`, available: {}", list(available))]
    UnknownSplit {
        /// The source.
        source_name: String,
        /// The split asked for.
        split: String,
        /// What there is.
        available: Vec<String>,
    },
    /// A hub data set has several configurations and the recipe picks none, or one that does not exist.
    #[error(
        "source `{source_name}` has no configuration `{found}`, available: {}",
        list(available)
    )]
    UnknownConfiguration {
        /// The source.
        source_name: String,
        /// The configuration asked for.
        found: String,
        /// What there is.
        available: Vec<String>,
    },
    /// The head of a data set's README calls several configurations the default one, and the recipe picks none.
    #[error("`{}` has the default configurations {}, required: one", path.display(), list(found))]
    SeveralDefaults {
        /// The file.
        path: PathBuf,
        /// Their names.
        found: Vec<String>,
    },
    /// The head of a data set's README lists a split twice.
    #[error("`{}` lists the split `{split}` twice in data_files, required: once, with a list of paths", path.display())]
    SplitTwice {
        /// The file.
        path: PathBuf,
        /// The split.
        split: String,
    },
    /// The head of a data set's README does not parse.
    #[error("`{}` has front matter that is not valid YAML", path.display())]
    FrontMatter {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// A pattern of `data_files` matches nothing.
    #[error("data_files `{pattern}` matches no file in `{}`", path.display())]
    NoFileMatches {
        /// The folder.
        path: PathBuf,
        /// The pattern.
        pattern: String,
    },
    /// A key of `kwargs` has a value of the wrong kind.
    #[error("source `{source_name}`: kwargs `{key}` is `{found}`, required: {required}")]
    BadKwarg {
        /// The source.
        source_name: String,
        /// The key.
        key: &'static str,
        /// The value.
        found: String,
        /// What it has to be.
        required: &'static str,
    },
    /// The hub client could not bring a data set here.
    #[error("data source `{source_name}` could not be fetched")]
    Hub {
        /// The source.
        source_name: String,
        /// What the client said.
        #[source]
        source: Box<sterna_hf::Error>,
    },
    /// The source has no row to read.
    #[error("source `{source_name}` gives no row for split `{split}`")]
    EmptySource {
        /// The source.
        source_name: String,
        /// The split, with its slice.
        split: String,
    },
    /// The recipe, or the format of the rows, names a column that the source does not have.
    #[error(
        "source `{source_name}` has no column `{column}`, which the recipe or its format names; available: {}",
        list(available)
    )]
    MissingColumn {
        /// The source.
        source_name: String,
        /// The column.
        column: String,
        /// The columns that there are.
        available: Vec<String>,
    },
    /// A column has a type whose values have no JSON form.
    #[error("`{}`: column `{column}` is of type {found}, required: text, numbers, booleans, dates, or lists and structs of them", path.display())]
    UnreadableColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type, as Arrow calls it.
        found: String,
    },
    /// A row gives no message under the role mapping.
    #[error(
        "{row} gives no message with role_mapping `{role_mapping}`; the row has {}",
        list(available)
    )]
    NoMessages {
        /// The row.
        row: Box<RowId>,
        /// The mapping, as `role: path, role: path`.
        role_mapping: String,
        /// The keys of the row, with the fields of lists.
        available: Vec<String>,
    },
    /// A message is not text.
    #[error("{row}: `{path}` is {found}, required: text")]
    NotText {
        /// The row.
        row: Box<RowId>,
        /// Where in the row.
        path: String,
        /// What kind of value it is.
        found: &'static str,
    },
    /// A number is too large to be text without losing digits.
    #[error("{row}: `{path}` is a number of more than 64 bits, required: text")]
    LongNumber {
        /// The row.
        row: Box<RowId>,
        /// Where in the row.
        path: String,
    },
    /// A part of a message is not text: an image, a call of a tool.
    #[error("{row}: `{path}` is a part of type `{kind}`, required: text")]
    NotTextPart {
        /// The row.
        row: Box<RowId>,
        /// Where in the row.
        path: String,
        /// The type of the part.
        kind: String,
    },
    /// A role that no template knows.
    #[error(
        "{row}: `{path}` is `{role}`, required: a role such as `system`, `user`, `assistant` or `tool`"
    )]
    UnknownRole {
        /// The row.
        row: Box<RowId>,
        /// Where in the row.
        path: String,
        /// The role.
        role: String,
    },
    /// A message, or a part of one, is not what messages are.
    #[error("{row}: `{path}` is {found}, required: {required}")]
    BadMessage {
        /// The row.
        row: Box<RowId>,
        /// Where in the row.
        path: String,
        /// What is there.
        found: String,
        /// What has to be there.
        required: &'static str,
    },
    /// A row has columns that do not fit each other, or a value that its format does not have.
    #[error("{row}: {found}, required: {required}")]
    BadRow {
        /// The row.
        row: Box<RowId>,
        /// What is there.
        found: String,
        /// What has to be there.
        required: &'static str,
    },
    /// A message that the role mapping does not name calls a tool or is its result.
    #[error(
        "{row}: role_mapping leaves out the message of role `{role}`, which calls a tool or is its result"
    )]
    LosesTools {
        /// The row.
        row: Box<RowId>,
        /// The role.
        role: String,
        /// What would select it, as `list.field.value`.
        path: String,
    },
    /// The columns of a source are those of no format.
    #[error("source `{source_name}` has columns of no known format: {}", list(available))]
    UnknownColumns {
        /// The source.
        source_name: String,
        /// The columns that there are.
        available: Vec<String>,
    },
    /// A key of a source is set that the format of its rows, which was recognised from the columns, does not read.
    #[error("source `{source_name}` sets {key}, which is not read: its rows are {format}")]
    UnreadKey {
        /// The source.
        source_name: String,
        /// The key.
        key: &'static str,
        /// What the rows are.
        format: String,
    },
    /// A source holds what another trainer is for.
    #[error(
        "source `{source_name}` has preferences ({columns}), required: chats, texts or tokens for `type: sft`"
    )]
    Preferences {
        /// The source.
        source_name: String,
        /// The columns that say so.
        columns: &'static str,
    },
    /// Samples are longer than `max_length` and `data.excess_length` is `raise`.
    #[error(
        "`{samples}` samples are longer than max_length `{max_length}` (longest `{longest}` tokens) and data.excess_length is `raise`"
    )]
    TooLong {
        /// How many.
        samples: usize,
        /// Their limit in tokens.
        max_length: usize,
        /// The longest of them in tokens.
        longest: usize,
    },
    /// `sample_count`, `sample_ratio` or `epochs` chooses no row.
    #[error(
        "source `{source_name}`: sample_count, sample_ratio, epochs or weight chooses none of `{rows}` rows"
    )]
    NothingSampled {
        /// The source.
        source_name: String,
        /// Its rows.
        rows: usize,
    },
    /// Every row was dropped.
    #[error("no row of source `{source_name}` can be trained on: {}", reasons(dropped))]
    NothingLeft {
        /// The source.
        source_name: String,
        /// Why rows were dropped, and how many.
        dropped: BTreeMap<String, usize>,
    },
    /// Roles kept in separate lists do not have the same number of messages.
    #[error(
        "{row}: role_mapping gives {}, required: the same number for every role",
        counts_text(counts)
    )]
    UnequalTurns {
        /// The row.
        row: Box<RowId>,
        /// Messages of each role.
        counts: Vec<(String, usize)>,
    },
    /// The chat template refused a chat.
    #[error("the chat template failed on {row}")]
    Template {
        /// The row.
        row: Box<RowId>,
        /// What the template engine said.
        #[source]
        source: Box<sterna_hf::Error>,
    },
    /// The tokenizer refused a text.
    #[error("the tokenizer failed on {row}")]
    Tokenize {
        /// The row.
        row: Box<RowId>,
        /// What the tokenizer said.
        #[source]
        source: Box<sterna_hf::Error>,
    },
    /// A reply could not be located in the rendered chat.
    #[error("{row}: reply `{turn}` cannot be located in the rendered chat: {why}")]
    ReplyUnaligned {
        /// The row.
        row: Box<RowId>,
        /// Which message of the chat, from 0.
        turn: usize,
        /// What went wrong.
        why: Unaligned,
    },
    /// Every sample is longer than `max_length`.
    #[error(
        "no data left: all `{dropped}` samples are longer than max_length `{max_length}` (shortest `{shortest}`, longest `{longest}` tokens)"
    )]
    AllTooLong {
        /// Samples dropped.
        dropped: usize,
        /// Their limit in tokens.
        max_length: usize,
        /// The shortest of them in tokens.
        shortest: usize,
        /// The longest of them in tokens.
        longest: usize,
    },
    /// `drop_last` dropped every pack.
    #[error(
        "no data left: drop_last dropped every pack, none of `{samples}` samples with `{tokens}` tokens filled max_length `{max_length}`"
    )]
    NoPackLeft {
        /// Samples that were packed.
        samples: usize,
        /// Their tokens.
        tokens: usize,
        /// The length to fill in tokens.
        max_length: usize,
    },
    /// A sample is longer than what it is padded or packed to.
    #[error("a sample has `{len}` tokens, required: at most max_length `{max_length}`")]
    LongerThanMaxLength {
        /// Its tokens.
        len: usize,
        /// The limit.
        max_length: usize,
    },
    /// `always_max_length` with a packing that never goes past `max_length`.
    #[error("always_max_length `true` needs packing `reference`, found: `global`")]
    AlwaysMaxLengthWithGlobal,
    /// Fewer samples than ranks.
    #[error(
        "the {what} data has `{samples}` samples, required: at least one for each of `{world_size}` ranks"
    )]
    FewerSamplesThanRanks {
        /// `training` or `evaluation`.
        what: &'static str,
        /// Samples, or packs, after filtering and packing.
        samples: usize,
        /// Ranks.
        world_size: usize,
    },
    /// No rank can fill one micro-batch.
    #[error(
        "the {what} data has `{samples}` samples, `{per_rank}` for each of `{world_size}` ranks, required: micro_batch_size `{micro_batch_size}` for each"
    )]
    NoFullMicroBatch {
        /// `training` or `evaluation`.
        what: &'static str,
        /// Samples, or packs, after filtering and packing.
        samples: usize,
        /// Samples of one rank.
        per_rank: usize,
        /// Ranks.
        world_size: usize,
        /// Rows of a micro-batch.
        micro_batch_size: usize,
    },
    /// More samples than the reference's sampler can be reproduced for.
    #[error(
        "the {what} data has `{samples}` samples, required: at most `{}`",
        crate::rng::MAX_RANDPERM_LEN
    )]
    TooManySamples {
        /// `training` or `evaluation`.
        what: &'static str,
        /// Samples.
        samples: usize,
    },
    /// `train_eval_split` leaves one side empty.
    #[error(
        "train_eval_split gives `{eval}` of `{samples}` samples to evaluation, required: at least one on each side"
    )]
    EmptySplit {
        /// Samples to divide.
        samples: usize,
        /// How many of them would be evaluated on.
        eval: usize,
    },
    /// `fail_on_missing_cache` is on and the tokens are not there.
    #[error("`{}` is missing and fail_on_missing_cache is on", path.display())]
    MissingCache {
        /// The cache entry of a source.
        path: PathBuf,
    },
    /// A source changed between the hash that names its cache entry and the reading of its rows.
    #[error("the files of source `{source_name}` changed while they were read")]
    SourceChanged {
        /// The source.
        source_name: String,
    },
    /// A cache entry that was checked when it was opened no longer reads as it did.
    #[error("cache entry `{}` changed while it was in use", path.display())]
    CacheChanged {
        /// The file of the entry.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// What the user can do about it, when that is known.
    #[expect(clippy::too_many_lines, reason = "one arm for each kind of error")]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::SourceNotFound { .. } => {
                "give a JSON, JSONL or Parquet file, a folder of them, a folder written by save_to_disk, or a hub data set `owner/name`"
            }
            Self::Json { .. } | Self::JsonShape { .. } => {
                "write one JSON object per line, or a list of objects"
            }
            Self::UnfinishedLine { .. } | Self::RowTooLong { .. } => {
                "if an object goes over several lines, rewrite the file with `jq -c . FILE`, or with `jq -c '.KEY[]' FILE` if it is one object with the rows under a key; if this is the last line, the file may have been cut off"
            }
            Self::UnknownFormat { .. } => {
                "write the rows as JSON Lines or Parquet, as `to_json` and `to_parquet` of the datasets library do; compressed or packed files can be unpacked, or compressed with gzip or zstd"
            }
            Self::NotJson { .. } => {
                "unpack or convert the file, or rename it to what it is; the rows are read from JSON Lines in UTF-8"
            }
            Self::Parquet { source: ParquetError::NYI(_), .. }
            | Self::Arrow { source: ArrowError::NotYetImplemented(_), .. } => {
                "the file uses something that is not read here: write it again, with pyarrow for example, compressed with zstd"
            }
            Self::Parquet { .. }
            | Self::Arrow { .. }
            | Self::TruncatedArrow { .. }
            | Self::Decompress { .. } => {
                "the file may have been cut off while it was copied or downloaded: fetch it again"
            }
            Self::GrowsTooMuch { .. } => {
                "write the rows to plain JSON Lines if the file is not a trick"
            }
            Self::UnreadableColumn { .. } => {
                "leave the column out of role_mapping, or write it as text"
            }
            Self::UnknownConfiguration { .. } | Self::SeveralDefaults { .. } => {
                "name one with `kwargs: {name: ...}` of the source"
            }
            Self::MissingColumn { .. } => {
                "name a column that is there, with role_mapping, messages_key, tools_key or text_key of the source"
            }
            Self::NoMessages { .. } => {
                "set role_mapping of the source: `role: column`, or `role: list.field.value` for a list of messages"
            }
            Self::UnequalTurns { .. } => {
                "keep the turns in one list of messages, or set data.label_mask to reference to cut to the shortest role"
            }
            Self::NotTextPart { kind, .. }
                if ["thinking", "tool_use", "tool_call", "tool_result"].contains(&&**kind) =>
            {
                "write thoughts as `reasoning_content`, calls as `tool_calls`, and results as messages of role `tool`"
            }
            Self::NotTextPart { .. } => {
                "leave out rows with images, audio or video: models are trained on text"
            }
            Self::LongNumber { .. } => "write it as text",
            Self::NotText { .. } => {
                "set content_key of the source to the field that holds the text"
            }
            Self::LosesTools { role, path, .. } => {
                return Some(format!(
                    "add `{role}: {path}` to role_mapping, or remove role_mapping to take messages as they are, or set unmapped_roles to drop"
                ));
            }
            Self::UnknownColumns { .. } => {
                "set format of the source, or messages_key or text_key to the column that holds messages or text, or role_mapping"
            }
            Self::Preferences { .. } => {
                "to train on other columns, set format, messages_key or role_mapping of the source"
            }
            Self::UnreadKey { .. } => "remove it, or set format of the source",
            Self::TooLong { .. } => {
                "raise data.max_length, or set data.excess_length to drop, truncate or split"
            }
            Self::NothingSampled { .. } => {
                "raise sample_count, sample_ratio, epochs, weight or max_length, or remove the source"
            }
            Self::NothingLeft { .. } => {
                "`sterna data RECIPE --show 3` shows rows as the model sees them"
            }
            Self::UnknownRole { .. } => {
                "set role_mapping of the source, such as `{user: messages.role.customer, assistant: messages.role.agent}`, or unmapped_roles to drop"
            }
            Self::ReplyUnaligned { why: Unaligned::CallsNotPrinted, .. } => {
                "use a chat template that knows tools, or leave such rows out"
            }
            Self::ReplyUnaligned { .. } => {
                "use a chat template that prints each reply once, or data.label_mask: reference, or data.mask_inputs: false"
            }
            Self::AllTooLong { .. } => "raise data.max_length",
            Self::NoPackLeft { .. } => {
                "lower data.max_length, turn data.drop_last off, or set data.packing to global"
            }
            Self::LongerThanMaxLength { .. } => {
                "turn data.filter_samples on, or raise data.max_length; data.always_max_length needs pad_to div_length"
            }
            Self::AlwaysMaxLengthWithGlobal => {
                "remove always_max_length: global packing fills packs without going past max_length"
            }
            Self::FewerSamplesThanRanks { .. } | Self::NoFullMicroBatch { .. } => {
                "set min_iterations to repeat the data until it suffices"
            }
            Self::TooManySamples { .. } => {
                "choose some with sample_count or sample_ratio of the sources, or lower min_iterations"
            }
            Self::EmptySplit { .. } => "change data.train_eval_split, or give data.eval_sources",
            Self::MissingCache { .. } => {
                "run once with data.fail_on_missing_cache off, with the same recipe and files"
            }
            Self::SourceChanged { .. } | Self::FileChanged { .. } => {
                "start again when nobody writes to them any more"
            }
            Self::CacheChanged { .. } => "start again; the entry is rebuilt if it is damaged",
            Self::Hub { source, .. }
            | Self::Template { source, .. }
            | Self::Tokenize { source, .. } => {
                return source.hint();
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// `a`, `b`, `c`.
fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let mut text = String::new();
    for (i, name) in names.iter().enumerate() {
        let _ = write!(text, "{}`{name}`", if i == 0 { "" } else { ", " });
    }
    text
}

/// `3` reason, `1` other reason.
pub(crate) fn reasons(counts: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = counts.iter().map(|(why, count)| format!("`{count}` {why}")).collect();
    parts.join(", ")
}

fn counts_text(counts: &[(String, usize)]) -> String {
    let parts: Vec<String> =
        counts.iter().map(|(role, count)| format!("`{count}` of role `{role}`")).collect();
    parts.join(" and ")
}
