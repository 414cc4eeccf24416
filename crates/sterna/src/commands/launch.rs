//! `sterna launch`: `sterna train`, or a look at what that would start.

use super::train;
use crate::cli::Launch;
use crate::launch;
use crate::report::Failure;

/// Trains, or prints the commands.
pub(crate) fn run(args: &Launch) -> Result<(), Failure> {
    if !args.print {
        return train::run(&args.train);
    }
    train::refuse_what_is_not_done(&args.train)?;
    let (_, launch) = train::plan(&args.train)?;
    launch::print(&launch)
}
