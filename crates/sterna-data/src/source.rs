//! Rows of a source: JSON, Parquet and Arrow files, local or from the hub; splits and slices.
//!
//! Local paths are read as they are; anything else is a data set on the hub, whose snapshot folder is read the same way. Columns
//! that nobody wants are not loaded from Parquet and Arrow files. Memory does not grow with the data (`scratch.rs`).
//!
//! Where the reference can only read a local folder written by `save_to_disk`, every format works here; where it ignores the
//! split of a folder without named splits, the name is ignored here too but a slice (`train[:100]`) is applied.

mod cell;
mod columnar;
mod files;
mod iso;
mod json;
mod readme;
mod scratch;
mod split;

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use rayon::prelude::*;
use serde_json::{Map, Value};
use sterna_recipe::{RolePath, Source};

pub use self::{
    files::LeftOut,
    split::{Piece, SplitSpec},
};
use self::{
    files::{Format, Kind},
    scratch::{LastRead, Lines, Scratch, Writer},
};
pub(crate) use self::{json::kind, scratch::MAX_ROW_BYTES};
use crate::{
    error::{Error, Result, RowId},
    messages::extra_columns,
};

/// Rows of JSON files whose keys are taken for the columns.
const ROWS_FOR_COLUMNS: usize = 100;

/// Which columns to read, and where to keep them. The rows of JSON files always have all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Columns that the source must have.
    pub required: Vec<String>,
    /// Columns that are read if they are there.
    pub optional: Vec<String>,
    /// The folder for rows that cannot be read where they lie; the system's temporary folder if there is none, which may be
    /// too small.
    pub scratch_dir: Option<PathBuf>,
}

impl Wanted {
    /// The columns that the messages of `source` are made of.
    pub fn mapped(source: &Source) -> Self {
        let mut required: Vec<String> =
            extra_columns(source).iter().map(|&column| column.to_owned()).collect();
        for (_, path) in &source.role_mapping {
            let (RolePath::Column(column) | RolePath::Items { array: column, .. }) = path;
            if !required.contains(column) {
                required.push(column.clone());
            }
        }
        Self { required, ..Self::default() }
    }

    /// Whether `column` is read.
    pub fn contains(&self, column: &str) -> bool {
        self.required.iter().chain(&self.optional).any(|wanted| wanted == column)
    }
}

/// A source whose files are known: cheap to make, and enough to tell whether its tokens are cached.
#[derive(Debug)]
pub struct OpenSource<'a> {
    /// The recipe's entry.
    pub source: &'a Source,
    spec: SplitSpec,
    /// Name and files of each split that is read.
    splits: Vec<(String, Vec<(PathBuf, Format)>)>,
    /// For each piece of `spec`, its split.
    split_of_piece: Vec<usize>,
    left_out: Vec<LeftOut>,
}

impl<'a> OpenSource<'a> {
    /// Finds the files of `source`, fetching a hub data set if it is one.
    ///
    /// # Errors
    ///
    /// Everything that can be wrong with a name, a split expression, a folder or the hub.
    pub fn find(source: &'a Source) -> Result<Self> {
        let root = locate(source)?;
        let mut left_out = Vec::new();
        let files = files::split_files(&source.name_or_path, &root, &source.kwargs, &mut left_out)?;
        let spec = match source.split.as_str() {
            // The datasets library's word for every split, one after the other.
            "all" if !files.names().is_empty() => SplitSpec::parse(&files.names().join("+"))?,
            split => SplitSpec::parse(split)?,
        };
        let mut splits: Vec<(String, Vec<(PathBuf, Format)>)> = Vec::new();
        let mut split_of_piece = Vec::new();
        for piece in spec.pieces() {
            let known = splits.iter().position(|(name, _)| *name == piece.name);
            split_of_piece.push(known.unwrap_or(splits.len()));
            if known.is_none() {
                let files = files.of(&piece.name).ok_or_else(|| Error::UnknownSplit {
                    source_name: source.name_or_path.clone(),
                    split: piece.name.clone(),
                    available: files.names(),
                })?;
                let files = files::of_one_format(files.to_vec(), &mut left_out)?;
                splits.push((piece.name.clone(), files));
            }
        }
        warn_about(source, &left_out);
        Ok(Self { source, spec, splits, split_of_piece, left_out })
    }

    /// Every file that the rows come from, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.formats().map(|(path, _)| path)
    }

    /// Files that look like data and are not read.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The columns of all files, in order, without reading the rows: for JSON files the keys of the first 100.
    ///
    /// # Errors
    ///
    /// What is wrong with the head of a file.
    pub fn columns(&self) -> Result<Vec<String>> {
        let mut columns: Vec<String> = Vec::new();
        let mut add = |name: &String| {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        };
        let mut rows_left = ROWS_FOR_COLUMNS;
        for (path, format) in self.formats() {
            match format {
                Format::Columnar(kind) => columnar::columns(kind, path)?.iter().for_each(&mut add),
                Format::Json if rows_left > 0 => json::first_rows(path, rows_left, |row| {
                    rows_left = rows_left.saturating_sub(1);
                    row.keys().for_each(&mut add);
                })?,
                Format::Json => {}
            }
        }
        Ok(columns)
    }

    fn formats(&self) -> impl Iterator<Item = (&Path, Format)> {
        let files = self.splits.iter().flat_map(|(_, files)| files);
        files.map(|(path, format)| (path.as_path(), *format))
    }

    /// Reads the `wanted` columns of the files.
    ///
    /// # Errors
    ///
    /// [`Error::MissingColumn`]; [`Error::UnreadableColumn`]; [`Error::EmptySource`]; what is wrong with a file.
    pub fn read(&self, wanted: &Wanted) -> Result<Rows> {
        let scratch_dir = wanted.scratch_dir.clone().unwrap_or_else(std::env::temp_dir);
        let scratch = Scratch::create(&scratch_dir)?;
        let source_name = &self.source.name_or_path;
        let open_split = |(split, files): &(String, Vec<(PathBuf, Format)>)| {
            // The first rows of a large data set are read without the others.
            let limit = self.spec.max_rows(split).unwrap_or(usize::MAX);
            let parts = files.par_iter().map(|(path, format)| {
                Part::open(path, *format, wanted, source_name, limit, &scratch)
            });
            parts.collect::<Result<Vec<_>>>().map(Table::new)
        };
        let tables = self.splits.iter().map(open_split).collect::<Result<Vec<_>>>()?;
        let pieces = self.spec.pieces().iter().zip(&self.split_of_piece).map(|(piece, &split)| {
            let range = self.spec.range(piece, tables[split].len())?;
            Ok((split, range))
        });
        let pieces = pieces.collect::<Result<_>>()?;
        let rows = Rows { source_name: self.source.name_or_path.clone(), tables, pieces };
        if rows.is_empty() {
            return Err(Error::EmptySource {
                source_name: self.source.name_or_path.clone(),
                split: self.source.split.clone(),
            });
        }
        rows.check_columns(&wanted.required)?;
        Ok(rows)
    }
}

/// The folder or file of a source.
fn locate(source: &Source) -> Result<PathBuf> {
    let name = &source.name_or_path;
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let is_hub_name = name.matches('/').count() <= 1
        && !name.starts_with(['/', '.', '~'])
        && Kind::of(path) == Kind::Other;
    if !is_hub_name {
        return Err(Error::SourceNotFound { path: path.to_path_buf() });
    }
    let with_revision = match source.kwargs.get("revision").and_then(Value::as_str) {
        Some(revision) => format!("{name}@{revision}"),
        None => name.clone(),
    };
    sterna_hf::hub::resolve_dataset(&with_revision)
        .map_err(|error| Error::Hub { source_name: with_revision, source: Box::new(error) })
}

/// How many files a warning names.
const NAMED_FILES: usize = 5;

fn warn_about(source: &Source, left_out: &[LeftOut]) {
    if left_out.is_empty() {
        return;
    }
    let named = left_out.iter().take(NAMED_FILES);
    let named: Vec<String> =
        named.map(|file| format!("`{}` ({})", file.path.display(), file.why)).collect();
    let more = left_out.len() - named.len();
    let more = if more == 0 { String::new() } else { format!(" and `{more}` more") };
    tracing::warn!(
        "source `{}` leaves data files out: {}{more}; `kwargs: {{data_files: ...}}` names the files to read",
        source.name_or_path,
        named.join(", ")
    );
}

/// The rows that a split expression selects, in order.
#[derive(Debug)]
pub struct Rows {
    source_name: String,
    tables: Vec<Table>,
    /// Table and rows of it.
    pieces: Vec<(usize, Range<usize>)>,
}

impl Rows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|(_, rows)| rows.len()).sum()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row `index` as a JSON object.
    ///
    /// # Errors
    ///
    /// [`Error::Json`], [`Error::UnfinishedLine`] or [`Error::JsonShape`] for a bad line; [`Error::FileChanged`].
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Self::len`].
    pub fn row(&self, index: usize) -> Result<Map<String, Value>> {
        let (part, offset) = self.part(index);
        part.row(offset, &mut LastRead::default())
    }

    /// [`Self::row`] of each of `indices`, in less time than one by one.
    pub(crate) fn rows(
        &self,
        indices: impl Iterator<Item = usize>,
    ) -> impl Iterator<Item = Result<Map<String, Value>>> {
        let mut last_read = LastRead::default();
        indices.map(move |index| {
            let (part, offset) = self.part(index);
            part.row(offset, &mut last_read)
        })
    }

    /// Where row `index` comes from.
    pub fn id(&self, index: usize) -> RowId {
        let (part, offset) = self.part(index);
        RowId {
            source_name: self.source_name.clone(),
            row: index,
            path: part.path.clone(),
            line: part.line(offset),
        }
    }

    fn part(&self, index: usize) -> (&Part, usize) {
        let mut rest = index;
        for (table, rows) in &self.pieces {
            if rest < rows.len() {
                return self.tables[*table].part(rows.start + rest);
            }
            rest -= rows.len();
        }
        panic!("row {index} of {}", self.len());
    }

    /// Every required column is in at least one row of the JSON files; columnar files were asked for theirs.
    fn check_columns(&self, required: &[String]) -> Result<()> {
        let is_columnar = |part: &Part| matches!(part.format, Format::Columnar(_));
        if self.tables.iter().flat_map(|table| &table.parts).all(is_columnar) {
            return Ok(());
        }
        let missing = |column: &String, available: &[String]| Error::MissingColumn {
            source_name: self.source_name.clone(),
            column: column.clone(),
            available: available.to_vec(),
        };
        let mut unseen: Vec<&String> = required.iter().collect();
        let mut available: Vec<String> = Vec::new();
        // Usually over after the first row; a column that only some rows have is looked for in all of them.
        for index in 0..self.len() {
            let row = self.row(index)?;
            unseen.retain(|column| !row.contains_key(*column));
            if unseen.is_empty() {
                return Ok(());
            }
            for key in row.keys() {
                if !available.contains(key) {
                    available.push(key.clone());
                }
            }
        }
        unseen.first().map_or(Ok(()), |column| Err(missing(column, &available)))
    }
}

/// The files of one split.
#[derive(Debug)]
struct Table {
    parts: Vec<Part>,
    /// First row of each part.
    starts: Vec<usize>,
    len: usize,
}

impl Table {
    fn new(parts: Vec<Part>) -> Self {
        let mut len = 0;
        let starts = parts
            .iter()
            .map(|part| {
                len += part.len();
                len - part.len()
            })
            .collect();
        Self { parts, starts, len }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn part(&self, index: usize) -> (&Part, usize) {
        let part = self.starts.partition_point(|&start| start <= index) - 1;
        (&self.parts[part], index - self.starts[part])
    }
}

/// One file.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    format: Format,
    lines: Lines,
}

impl Part {
    fn open(
        path: &Path,
        format: Format,
        wanted: &Wanted,
        source_name: &str,
        limit: usize,
        scratch: &Arc<Scratch>,
    ) -> Result<Self> {
        let writer = Writer::new(path, limit, scratch)?;
        let lines = match format {
            Format::Json => json::open(path, limit, writer)?,
            Format::Columnar(kind) => columnar::read(kind, path, wanted, source_name, writer)?,
        };
        Ok(Self { path: path.to_path_buf(), format, lines })
    }

    fn len(&self) -> usize {
        self.lines.len()
    }

    fn row(&self, index: usize, last_read: &mut LastRead) -> Result<Map<String, Value>> {
        let text = self.lines.read(&self.path, index, last_read)?;
        json::parse_row(&self.path, self.line(index).unwrap_or(1), &text)
    }

    fn line(&self, index: usize) -> Option<usize> {
        self.lines.number(index)
    }
}
