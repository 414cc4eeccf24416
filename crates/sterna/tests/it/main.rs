//! The command line, from the outside: exit status, stdout and stderr of the real binary on tiny models and chats.

mod check;
mod data;
mod help;
mod launch;
mod train;
mod workspace;
