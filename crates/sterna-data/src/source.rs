//! Rows of a source: JSON, Parquet and Arrow files, local or from the hub; splits and slices.
//!
//! Local paths are read as they are; anything else is a data set on the hub, whose snapshot folder is read the same way. Columns
//! that the role mapping does not name are not loaded from Parquet and Arrow files.
//!
//! Where the reference can only read a local folder written by `save_to_disk`, every format works here; where it ignores the
//! split of a folder without named splits, the name is ignored here too but a slice (`train[:100]`) is applied.

mod columnar;
mod files;
mod json;
mod readme;
mod split;

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde_json::{Map, Value};
use sterna_recipe::Source;

pub(crate) use self::json::kind;
pub use self::split::{Piece, SplitSpec};
use self::{columnar::Columns, files::Format, json::JsonFile};
use crate::error::{Error, Result, RowId};

/// Which columns to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Columns that the source must have.
    pub required: Vec<String>,
    /// Columns that are read if they are there.
    pub optional: Vec<String>,
    /// The folder for rows that cannot be read where they lie.
    pub scratch_dir: Option<PathBuf>,
}

/// A source whose files are known: cheap to make, and enough to tell whether its tokens are cached.
#[derive(Debug)]
pub struct OpenSource<'a> {
    /// The recipe's entry.
    pub source: &'a Source,
    spec: SplitSpec,
    /// Name and files of each split that is read.
    splits: Vec<(String, Vec<PathBuf>)>,
    /// For each piece of `spec`, its split.
    split_of_piece: Vec<usize>,
}

impl<'a> OpenSource<'a> {
    /// Finds the files of `source`, fetching a hub data set if it is one.
    ///
    /// # Errors
    ///
    /// Everything that can be wrong with a name, a split expression, a folder or the hub.
    pub fn find(source: &'a Source) -> Result<Self> {
        let root = locate(source)?;
        let files = files::split_files(&source.name_or_path, &root, &source.kwargs)?;
        let spec = match source.split.as_str() {
            // The datasets library's word for every split, one after the other.
            "all" if !files.names().is_empty() => SplitSpec::parse(&files.names().join("+"))?,
            split => SplitSpec::parse(split)?,
        };
        let mut splits: Vec<(String, Vec<PathBuf>)> = Vec::new();
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
                splits.push((piece.name.clone(), files.to_vec()));
            }
        }
        Ok(Self { source, spec, splits, split_of_piece })
    }

    /// Every file that the rows come from, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.splits.iter().flat_map(|(_, files)| files.iter().map(PathBuf::as_path))
    }

    /// The names of the columns.
    pub fn columns(&self) -> Result<Vec<String>> {
        let mut columns = Vec::new();
        for path in self.files() {
            let part = Part::open(path, &[])?;
            match &part.content {
                Content::Columns(found) => columns.extend(found.names.clone()),
                Content::Json(_) => {
                    for i in 0..part.len().min(100) {
                        columns.extend(part.row(i)?.keys().cloned());
                    }
                }
            }
        }
        columns.dedup();
        Ok(columns)
    }

    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`Error::MissingColumn`]; [`Error::EmptySource`]; what is wrong with a file.
    pub fn read(&self, columns: &Wanted) -> Result<Rows> {
        let wanted: Vec<String> =
            columns.required.iter().chain(&columns.optional).cloned().collect();
        let open_split = |(_, files): &(String, Vec<PathBuf>)| {
            let parts = files.par_iter().map(|path| Part::open(path, &wanted));
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
        rows.check_columns(&columns.required)?;
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
        && Format::of(path).is_none();
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
    /// [`Error::Json`] or [`Error::JsonShape`] for a bad line, [`Error::Arrow`] for a column of an unknown type.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Self::len`].
    pub fn row(&self, index: usize) -> Result<Map<String, Value>> {
        let (part, offset) = self.part(index);
        part.row(offset)
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

    /// Every wanted column is in every columnar file, and in at least one row of the JSON files.
    fn check_columns(&self, wanted: &[String]) -> Result<()> {
        let missing = |column: &String, available: &[String]| Error::MissingColumn {
            source_name: self.source_name.clone(),
            column: column.clone(),
            available: available.to_vec(),
        };
        for part in self.tables.iter().flat_map(|table| &table.parts) {
            if let Content::Columns(columns) = &part.content
                && let Some(column) = wanted.iter().find(|column| !columns.names.contains(column))
            {
                return Err(missing(column, &columns.names));
            }
        }
        let mut unseen: Vec<&String> = wanted.iter().collect();
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
    content: Content,
}

#[derive(Debug)]
enum Content {
    Json(JsonFile),
    Columns(Columns),
}

impl Part {
    fn open(path: &Path, wanted: &[String]) -> Result<Self> {
        let content = match Format::of(path) {
            Some(Format::Json) => Content::Json(JsonFile::open(path)?),
            Some(Format::Parquet) => Content::Columns(Columns::open_parquet(path, wanted)?),
            Some(Format::Arrow) => Content::Columns(Columns::open_arrow(path, wanted)?),
            None => return Err(Error::UnknownFormat { path: path.to_path_buf() }),
        };
        Ok(Self { path: path.to_path_buf(), content })
    }

    fn len(&self) -> usize {
        match &self.content {
            Content::Json(file) => file.len(),
            Content::Columns(columns) => columns.len(),
        }
    }

    fn row(&self, index: usize) -> Result<Map<String, Value>> {
        match &self.content {
            Content::Json(file) => file.row(&self.path, index),
            Content::Columns(columns) => columns.row(&self.path, index),
        }
    }

    fn line(&self, index: usize) -> Option<usize> {
        match &self.content {
            Content::Json(file) => file.line(index),
            Content::Columns(_) => None,
        }
    }
}
