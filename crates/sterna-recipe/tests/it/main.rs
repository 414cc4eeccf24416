//! Recipes from text to checked values.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod accepted;
mod bad;
mod fuzz;
mod keys;
mod reference_page;
