//! The recipe as typed: every key that exists, with its type, before defaults and rules.
//!
//! A section lists its keys once, and from that list come the typed struct, the error for an unknown key, the note for a
//! key with nothing to do, the refusal of a key whose feature is not here, and the table of `keys.rs`: all keys,
//! which the reference page is tested against, and what another value of each changes. What the row of a section says of
//! that holds for whatever is below it without a row. A wrong value is reported and then reads as absent, so that the
//! rest of the recipe is checked too.

mod reader;
mod sections;
mod values;

pub(crate) use self::{
    reader::{At, Read, Reader, canonical, nearest},
    sections::{
        CheckpointFile, CurveFile, DataFile, DeepSpeedFile, LoggerFile, MemoryFile, ModelFile,
        ModelKind, ONE_MOE, OffloadDevice, OffloadOptimizerFile, OptimizerFile, RecipeFile,
        SchedulerFile, SchedulerKind, SourceFile, SourceKeys, SourceKind, ZeroFile,
    },
    values::{DtypeWord, Int, OptimizerWord},
};
