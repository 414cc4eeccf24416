//! Recipes from text to plan.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod accepted;
mod bad;
mod fuzz;
mod keys;
mod plan;
mod published;
mod reference_page;
